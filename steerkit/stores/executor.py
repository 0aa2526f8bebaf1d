"""The contract between a capture at dataset scale and what runs it: this process, others, Ray.

A *task* says which rows become which file; a *worker* is a function that a process builds once
(it loads the model there) and calls with one task after another; a *record* says what it
published. Activations never pass through here: a worker writes its file itself and returns
metadata of about a kilobyte.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Worker = Callable[[T], R]
"""What a process calls with one task after another; it holds the model."""

MakeWorker = Callable[[], Callable[[T], R]]
"""Builds a worker: picklable (a frozen dataclass with `__call__`), called once in each process."""


@dataclass(frozen=True)
class Task:
    """One shard: rows `start` to `stop` of the dataset, and the file they become.

    Attributes:
        number: which shard, from 0 in the dataset's order.
        start: the first row.
        stop: one past the last row.
        name: the file to publish, relative to the store's folder. It is a function of dataset,
            spec and rows alone, so that a second attempt writes the same bytes to it.
        group: hash of the spec it belongs to.
        characters: length of the texts, from which the remaining time is estimated.
        prompts_sha256: hash of the file that holds the prompts; not compared where empty.
    """

    number: int
    start: int
    stop: int
    name: str
    group: str = ""
    characters: int = 0
    prompts_sha256: str = ""


@dataclass(frozen=True)
class Record:
    """What became of a task: metadata only.

    Attributes:
        number: which shard.
        start: the first prompt row.
        stop: one past the last prompt row.
        name: the published file, relative to the store's folder.
        rows: activation rows in the file: one a prompt, or one a token.
        tokens: tokens that were run through the model, padding not counted.
        bytes: size of the file.
        sha256: hash of the file's bytes.
        errors: for each site, bounds on what the stored dtype lost against float32: `max_abs`
            of any element, in activation units, and `max_relative` of any row, |x - y| / |x|.
        seconds: what it took.
        resumed: whether the file was already there, found sound and not computed again.
    """

    number: int
    start: int
    stop: int
    name: str
    rows: int
    tokens: int
    bytes: int
    sha256: str
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: bool = False

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, one line of the store's `records.jsonl`."""
        return asdict(self)


class Executor(Protocol):
    """Runs every task in some process and hands back its record as soon as it is there.

    Execution is at least once, and so a task must be safe to repeat: a worker publishes by
    renaming a file that it has written whole, and finds what an earlier attempt published.

    An executor

    - calls `make_worker` once in each of its processes (again where it replaces a dead one),
      after narrowing that process to its own device, and gives it one task at a time;
    - yields each task's record exactly once, in any order; order is the store's business;
    - when a process dies (killed, out of memory), starts another and runs its task again, up to
      a stated number of times, then raises `WorkerError` that names the task;
    - when a worker or `make_worker` raises a `SteerkitError`, ends the run with it, after yielding
      the records that had already arrived: what is wrong with a prompt does not get better by
      repetition. A worker that raises anything else runs its task again, up to a stated number
      of times, before the run ends with a `WorkerError` that names the task;
    - never hangs in silence: where the resources that it was promised do not come, it raises
      `WorkerError` and says what is missing;
    - leaves no process behind, however the iteration ends: exhausted, closed or broken by an
      error, and by KeyboardInterrupt too.
    """

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""
        ...

    def run(self, tasks: Sequence[T], make_worker: MakeWorker[T, R]) -> Iterator[R]:
        """The records of all tasks, as they arrive. Tasks and records are picklable."""
        ...
