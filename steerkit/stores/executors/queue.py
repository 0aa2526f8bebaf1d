"""Which tasks wait, and which processes died of what: the same for local processes and Ray."""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from steerkit.errors import WorkerError
from steerkit.stores.executors.attempts import RESUME, describe

T = TypeVar("T")


class Queue(Generic[T]):
    """Tasks that wait for a worker, with the deaths of those that had one.

    Attributes:
        tasks: all of them; they go by their index here.
        left: how many have no record yet.
    """

    def __init__(self, tasks: Sequence[T], deaths: int) -> None:
        self.tasks = tasks
        self.left = len(tasks)
        self._limit = deaths
        self._waiting = deque(range(len(tasks)))
        self._deaths: Counter[int] = Counter()
        self._stillborn = 0

    def next(self) -> int | None:
        """Take the next task; `None` where all are taken."""
        return self._waiting.popleft() if self._waiting else None

    def built(self) -> None:
        """A process has its worker."""
        self._stillborn = 0

    def died(self, number: int, ending: str) -> None:
        """A process died with a task: it is the next to be taken.

        Raises:
            WorkerError: it has died of this task too often.
        """
        self._deaths[number] += 1
        if self._deaths[number] >= self._limit:
            raise WorkerError(
                f"{describe(self.tasks[number])} ended its worker process "
                f"{self._deaths[number]} times, at last {ending}; fewer rows a shard or fewer "
                f"workers need less memory; {RESUME}"
            )
        self._waiting.appendleft(number)

    def died_unbuilt(self, ending: str, advice: str, *, hopeless: bool = False) -> None:
        """A process died before it had a worker; `advice` says what the user may do.

        Raises:
            WorkerError: it is hopeless, or too many did so one after another.
        """
        self._stillborn += 1
        if hopeless or self._stillborn >= self._limit:
            raise WorkerError(
                f"a worker process ended before it had built its worker, {ending}; {advice}"
            )
