"""Tasks one after another in this process: the plainest executor, and the reference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from steerkit.stores.executor import MakeWorker
from steerkit.stores.executors.attempts import RETRIES, Failure, attempt, build

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class InProcess:
    """Runs in the calling process, with its threads and on its device.

    Attributes:
        retries: how often a task is run again after an exception that is not a `SteerkitError`.
    """

    retries: int = RETRIES

    @property
    def workers(self) -> int:
        """One task at a time."""
        return 1

    def run(self, tasks: Sequence[T], make_worker: MakeWorker[T, R]) -> Iterator[R]:
        """The records of all tasks, in their order.

        Raises:
            WorkerError: a task raised once more than it may be retried.
            SteerkitError: whatever a task raised on purpose, at once.
        """
        if not tasks:
            return
        worker = build(make_worker)
        if isinstance(worker, Failure):
            raise worker.error(tasks[0])
        for task in tasks:
            result = attempt(worker, task, self.retries)
            if isinstance(result, Failure):
                raise result.error(task)
            yield result
