"""Tasks on local processes: each loads its model once; one that dies is replaced.

The driver waits on the pipes and the sentinels of its processes and on nothing else, so it
learns of a death when it happens, and no clock decides that a slow worker is a dead one.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from steerkit.errors import SteerkitError
from steerkit.stores.executor import MakeWorker
from steerkit.stores.executors.attempts import DEATHS, RETRIES, Failure
from steerkit.stores.executors.child import Built, Done, Seat, serve
from steerkit.stores.executors.queue import Queue

T = TypeVar("T")
R = TypeVar("R")

GRACE = 5.0
"""Seconds that a process has to end by itself before it is killed."""

ADVICE = (
    "what it printed says why. A script must make this call under `if __name__ == '__main__':`, "
    "because its processes import the script"
)


@dataclass(frozen=True)
class Processes:
    """Runs on local processes, started by spawn.

    The torch threads of this process are divided among them, and so are its GPUs: four workers
    on eight have two each, over which `device="auto"` spreads a large model. Shards are
    bit-identical for any number of workers with as many threads each; another number of
    threads may sum in another order, so state `threads` where that must not happen.

    Attributes:
        workers: how many processes.
        threads: torch threads of each; `None` divides this process's.
        retries: how often a task is run again after an exception that is not a `SteerkitError`.
        deaths: how many processes a task may take with it before the run is given up.
    """

    workers: int
    threads: int | None = None
    retries: int = RETRIES
    deaths: int = DEATHS

    def run(self, tasks: Sequence[T], make_worker: MakeWorker[T, R]) -> Iterator[R]:
        """The records of all tasks, as they arrive.

        Raises:
            WorkerError: processes died with one task too often, or cannot be started; or a
                task raised once more than it may be retried.
            SteerkitError: whatever a task raised on purpose, at once.
        """
        pool = _Pool(self, Queue(tasks, self.deaths), make_worker)
        try:
            yield from pool.records()
        finally:
            pool.end()


@dataclass
class _Child:
    """One process, the driver's end of its pipe, and the task it has."""

    process: BaseProcess
    pipe: Connection
    seat: int
    built: bool = False
    task: int | None = None


@dataclass
class _Pool(Generic[T, R]):
    """The processes of one run."""

    settings: Processes
    queue: Queue[T]
    make_worker: MakeWorker[T, R]
    children: list[_Child] = field(default_factory=list)

    def records(self) -> Iterator[R]:
        """Give tasks to idle processes until every one has its record."""
        while self.queue.left:
            while len(self.children) < min(self.settings.workers, self.queue.left):
                self.children.append(self.start())
            for child in self.children:
                if child.built and child.task is None:
                    self.give(child)
            by_handle: dict[Any, _Child] = {}
            for child in self.children:
                by_handle[child.pipe] = by_handle[child.process.sentinel] = child
            heard = {id(by_handle[h]): by_handle[h] for h in connection.wait(list(by_handle))}
            wrong: SteerkitError | None = None
            for child in heard.values():
                for said in self.messages(child):
                    if isinstance(said, Failure):
                        wrong = said.error(
                            None if child.task is None else self.queue.tasks[child.task]
                        )
                    if isinstance(said, Built):
                        child.built = True
                        self.queue.built()
                    if isinstance(said, Done):
                        child.task = None
                        self.queue.left -= 1
                        yield said.record
            if wrong is not None:  # only now: what the others had finished is handed over
                raise wrong

    def messages(self, child: _Child) -> Iterator[Any]:
        """Everything that a process has said; if it has died, it is buried."""
        dead = not child.process.is_alive()  # asked first: what it said before is still in the pipe
        while True:
            try:
                if not child.pipe.poll():
                    break
                said = child.pipe.recv()
            except (EOFError, OSError):  # its end of the pipe is gone, and so is it
                dead = True
                break
            yield said
        if dead:
            self.bury(child)

    def give(self, child: _Child) -> None:
        """Hand the next task to an idle process; if it just died, the next wait tells."""
        child.task = self.queue.next()
        if child.task is not None:
            with suppress(OSError):
                child.pipe.send(self.queue.tasks[child.task])

    def bury(self, child: _Child) -> None:
        """Take a dead process out, and put its task back in front."""
        code = _reaped(child.process)
        self.children.remove(child)
        child.pipe.close()
        if child.task is not None:
            self.queue.died(child.task, how_it_ended(code))
        elif not child.built:
            # An exception while Python started comes again; a signal need not.
            self.queue.died_unbuilt(how_it_ended(code), ADVICE, hopeless=code > 0)

    def start(self) -> _Child:
        """A new process in the first free seat."""
        taken = {child.seat for child in self.children}
        number = next(i for i in range(self.settings.workers) if i not in taken)
        seat = Seat(
            threads=self.settings.threads or threads_of_each(self.settings.workers),
            devices=devices_of(number, self.settings.workers, visible_devices()),
            retries=self.settings.retries,
        )
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve,
            args=(theirs, self.make_worker, seat),
            name=f"steerkit worker {number}",
            daemon=True,
        )
        try:
            with _interrupts_held():
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return _Child(process, ours, number)

    def end(self) -> None:
        """End every process: idle ones by closing their pipe, busy ones by a signal."""
        for child in self.children:
            child.pipe.close()
            if child.task is not None or not child.built:
                child.process.terminate()
        for child in self.children:
            _reaped(child.process)
        self.children.clear()


def _reaped(process: BaseProcess) -> int:
    """Wait for a process that is ending, kill it if it does not; its exit code."""
    process.join(GRACE)
    if process.is_alive():
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    return 0 if code is None else code


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: the driver hears it and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_it_ended(code: int) -> str:
    """An exit code in words.

    >>> how_it_ended(3)
    'with exit code 3'
    >>> how_it_ended(-9)
    'by signal SIGKILL (as the system does when memory runs out)'
    """
    if code >= 0:
        return f"with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    memory = " (as the system does when memory runs out)" if name == "SIGKILL" else ""
    return f"by signal {name}{memory}"


def threads_of_each(workers: int) -> int:
    """This process's torch threads, divided; at least one."""
    import torch

    return max(1, torch.get_num_threads() // workers)


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]


def devices_of(seat: int, workers: int, devices: Sequence[str]) -> str | None:
    """The GPUs of a seat: neighbours, or one in turn where there are fewer than workers.

    `None` leaves the process what this one sees.

    >>> [devices_of(seat, 2, ["0", "1", "2", "3"]) for seat in range(2)]
    ['0,1', '2,3']
    >>> [devices_of(seat, 3, ["0", "1"]) for seat in range(3)]
    ['0', '1', '0']
    """
    if len(devices) < 2:
        return None
    each = len(devices) // workers
    if not each:
        return devices[seat % len(devices)]
    return ",".join(devices[seat * each : (seat + 1) * each])
