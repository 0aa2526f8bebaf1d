"""Tasks run to their end: each record noted in the store as it arrives."""

from collections.abc import Callable, Sequence

from steerkit.stores.executor import Executor, MakeWorker, Record, Task
from steerkit.stores.manifest import Folder
from steerkit.stores.progress import Bar, Progress


def finish(
    executor: Executor,
    folder: Folder,
    tasks: Sequence[Task],
    make_worker: MakeWorker[Task, Record],
    *,
    progress: bool,
    what: str = "capture",
    then: Callable[[Record], None] = lambda record: None,
) -> None:
    """Run tasks, if there are any; `then` is given each record once it is in the store's log."""
    if not tasks:
        return
    shown = Progress(tasks, workers=executor.workers)
    with folder.log.appending() as log, Bar(shown, shown=progress, what=what) as bar:
        for record in executor.run(tasks, make_worker):
            log.add(record)
            bar.add(record)
            then(record)
