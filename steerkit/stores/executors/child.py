"""What runs inside a local worker process: build once, then one task after another."""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from typing import Any

from steerkit.stores.executor import MakeWorker
from steerkit.stores.executors.attempts import Failure, attempt, build


@dataclass(frozen=True)
class Seat:
    """What a process is given.

    Attributes:
        threads: torch threads.
        devices: the GPUs it may see, by their names; `None` for those that its parent sees.
        retries: how often a task is run again after an exception.
    """

    threads: int
    devices: str | None
    retries: int


@dataclass(frozen=True)
class Built:
    """The worker stands and waits for a task."""


@dataclass(frozen=True)
class Done:
    """A task's record."""

    record: Any


def serve(pipe: Connection, make_worker: MakeWorker[Any, Any], seat: Seat) -> None:
    """Answer every task that comes through the pipe, until it is closed."""
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_die_with_the_driver, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(seat.threads)
    if seat.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = seat.devices  # before CUDA is first used
    _set_threads(seat.threads)
    worker = build(make_worker)
    _set_threads(seat.threads)
    try:
        pipe.send(worker if isinstance(worker, Failure) else Built())
        while not isinstance(worker, Failure):
            result = attempt(worker, pipe.recv(), seat.retries)
            pipe.send(result if isinstance(result, Failure) else Done(result))
    except (EOFError, OSError):
        pass  # the driver has closed the pipe: there is nothing more to do
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to unwind


def _set_threads(threads: int) -> None:
    """Applies where the worker has brought torch along; loading it takes seconds otherwise."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _leave(signum: int, frame: Any) -> None:
    """End by unwinding, so that a temporary file is removed on the way."""
    sys.exit(128 + signum)


def _die_with_the_driver() -> None:
    """A driver that was killed cannot end its workers: they end themselves."""
    driver = parent_process()
    if driver is not None:
        connection.wait([driver.sentinel])
        os._exit(1)
