"""One task in one worker: run, run again after a passing fault, or given up with a clear error.

The same few lines stand inside every kind of process, so that a fault means the same wherever
a capture runs.
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from steerkit import errors
from steerkit.errors import SteerkitError, WorkerError

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 2
"""How often a task is run again in its process after an exception, unless told otherwise."""

DEATHS = 3
"""How many processes a task may take with it before the run is given up."""

PAUSE = 0.2
"""Seconds before the first retry, doubled for the next: a full GPU needs a moment."""

RESUME = "what is finished is kept: the same call goes on with the rest"


@dataclass(frozen=True)
class Failure:
    """An exception in a form that survives the way to another process.

    Attributes:
        kind: name of its class.
        message: what it said.
        trace: its traceback as text.
        attempts: how often the task was tried; 0 where it was not even begun.
        original: the exception itself, while it is in the process that raised it.
    """

    kind: str
    message: str
    trace: str
    attempts: int
    original: Exception | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the exception: not every one can be pickled, or read elsewhere."""
        return Failure, (self.kind, self.message, self.trace, self.attempts)

    @classmethod
    def of(cls, error: Exception, attempts: int) -> "Failure":
        """What is known of an exception that was just caught."""
        return cls(
            type(error).__name__,
            str(error),
            "".join(traceback.format_exception(error)),
            attempts,
            error,
        )

    def error(self, task: Any) -> SteerkitError:
        """The error to raise in the driver: a steerkit error stays what it was.

        Its cause carries the traceback of the process in which it happened.
        """
        note = f"in {describe(task)}; {RESUME}"
        if isinstance(self.original, SteerkitError):
            if self.attempts:
                self.original.add_note(note)
            return self.original
        kinds = {kind.__name__: kind for kind in errors.KINDS}
        raised: SteerkitError
        if self.kind in kinds:
            raised = kinds[self.kind](self.message)
            if self.attempts:
                raised.add_note(note)
        elif not self.attempts:
            raised = WorkerError(
                f"a worker could not be built ({self.kind}: {self.message}); "
                "the model loads in a process of its own there, as it must load here"
            )
        else:
            raised = WorkerError(
                f"{describe(task)} failed {self.attempts} times in its worker, at last with "
                f"{self.kind}: {self.message}; {RESUME}"
            )
        raised.__cause__ = self.original or RemoteTraceback(self.trace)
        return raised


class RemoteTraceback(Exception):
    """Shows the traceback of another process as the cause of an error in this one."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def build(make_worker: Callable[[], Callable[[T], R]]) -> Callable[[T], R] | Failure:
    """The worker of this process, or why there is none."""
    try:
        return make_worker()
    except Exception as error:
        return Failure.of(error, 0)


def attempt(worker: Callable[[T], R], task: T, retries: int) -> R | Failure:
    """What the worker makes of a task, or its last exception after so many more tries.

    A `SteerkitError` is not tried again: a bad prompt or a full disk does not get better.
    """
    for tried in range(1, retries + 2):
        try:
            return worker(task)
        except SteerkitError as error:
            return Failure.of(error, tried)
        except Exception as error:
            if tried > retries:
                return Failure.of(error, tried)
            time.sleep(PAUSE * 2 ** (tried - 1))
    raise WorkerError(f"{describe(task)} was tried {retries + 1} times; ask for 0 or more retries")


def describe(task: Any) -> str:
    """A task in the words of an error message."""
    if all(hasattr(task, name) for name in ("number", "start", "stop")):
        return f"shard {task.number} (dataset rows {task.start} to {task.stop - 1})"
    return f"task {task!r}"
