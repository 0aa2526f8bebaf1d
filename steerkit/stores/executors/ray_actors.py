"""Tasks on a Ray cluster, one actor a worker: many machines, many GPUs.

Actors of Ray's core rather than Ray Data's pool of them: the pool restarts a dead actor without
end and does not say which task it died of, and goes on with tasks for a while after its
iterator is closed. Here each actor has one task at a time, the driver knows which, and a death
is an answer like any other. Only tasks and metadata travel; activations never do.
"""

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

from steerkit.errors import WorkerError
from steerkit.stores.executor import MakeWorker
from steerkit.stores.executors.attempts import DEATHS, RESUME, RETRIES, Failure, attempt, build
from steerkit.stores.executors.queue import Queue

T = TypeVar("T")
R = TypeVar("R")

SETTLE = 10.0
"""Seconds in which Ray must report as free what an earlier job has just left."""

LOOK = 10.0
"""Seconds without an answer after which the cluster is looked at again: is it still there?"""

ADVICE = (
    "Ray's log of the worker says more. Every machine needs steerkit, and the store's folder and "
    "the model under the same paths"
)

OBJECTS = 100_000_000
"""Bytes of object store of a Ray that is started here: it holds metadata alone."""


@dataclass(frozen=True)
class RayActors:
    """Runs on Ray actors, here or on a cluster.

    One CPU beyond the actors' is asked for: where actors hold every CPU of a cluster, whatever
    else its jobs need waits without a word. Ray gives an actor as many torch threads as it has
    CPUs, and the GPUs that it was promised and no other. The store's folder, the dataset and
    the model must be at the same path on every machine.

    Attributes:
        workers: how many actors.
        address: of a running cluster ("auto", "HOST:PORT"); `None` uses the Ray that this
            process is connected to, or else starts one here for the time of the run, as does
            "local".
        cpus: CPUs of each actor.
        gpus: GPUs of each actor; a fraction shares one.
        retries: how often a task is run again after an exception that is not a `SteerkitError`.
        deaths: how many processes a task may take with it before the run is given up.
    """

    workers: int
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = RETRIES
    deaths: int = DEATHS

    def run(self, tasks: Sequence[T], make_worker: MakeWorker[T, R]) -> Iterator[R]:
        """The records of all tasks, as they arrive.

        Raises:
            WorkerError: Ray is missing or has too few CPUs or GPUs; processes died with one
                task too often; or a task raised once more than it may be retried.
            SteerkitError: whatever a task raised on purpose, at once.
        """
        if not tasks:
            return
        with connected(self) as ray:
            require_room(ray, self)
            pool: _Pool[T, R] = _Pool(ray, self, Queue(tasks, self.deaths), ray.put(make_worker))
            try:
                yield from pool.records()
            except ray.exceptions.RayError as error:
                raise WorkerError(f"Ray ended the run ({_first_line(error)}); {RESUME}") from error
            finally:
                pool.end()


class Actor:
    """What Ray keeps in each of its processes."""

    def __init__(self, make_worker: MakeWorker[Any, Any], retries: int) -> None:
        self.make_worker, self.retries = make_worker, retries
        self.worker: Any = None

    def build(self) -> Failure | None:
        """Build the worker; why there is none, if there is none."""
        self.worker = build(self.make_worker)
        return self.worker if isinstance(self.worker, Failure) else None

    def do(self, task: Any) -> Any:
        """The record of a task, or its failure: a result too, so that nothing wraps it."""
        return attempt(self.worker, task, self.retries)


@dataclass
class _Pool(Generic[T, R]):
    """The actors of one run, each with the answer that it owes."""

    ray: Any
    settings: RayActors
    queue: Queue[T]
    make_worker: Any
    owed: dict[Any, tuple[Any, int | None]] = field(default_factory=dict)
    """Reference of an answer -> actor, and the task it has (`None` while it builds)."""

    def records(self) -> Iterator[R]:
        """Give tasks to idle actors until every one has its record."""
        while self.queue.left:
            while len(self.owed) < min(self.settings.workers, self.queue.left):
                self.start()
            for reference in self.answered():
                actor, number = self.owed.pop(reference)
                try:
                    said = self.ray.get(reference)
                except self.ray.exceptions.RayActorError as error:
                    self.ray.kill(actor)  # certainly, where it was only out of reach
                    self.bury(number, error)
                    continue
                if isinstance(said, Failure):
                    self.ray.kill(actor)
                    raise said.error(None if number is None else self.queue.tasks[number])
                if number is None:
                    self.queue.built()
                else:
                    self.queue.left -= 1
                self.give(actor)
                if number is not None:
                    yield said

    def answered(self) -> list[Any]:
        """Wait for an answer; all that are there then, so that many cost no more looks than one."""
        found, others = self.ray.wait(list(self.owed), timeout=LOOK)
        if not found:
            require_some_room(self.ray, self.settings)
        elif others:
            found += self.ray.wait(others, num_returns=len(others), timeout=0)[0]
        return found

    def start(self) -> None:
        """A new actor, which begins by building its worker."""
        make = self.ray.remote(
            num_cpus=self.settings.cpus,
            num_gpus=self.settings.gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )(Actor)
        actor = make.remote(self.make_worker, self.settings.retries)
        self.owed[actor.build.remote()] = (actor, None)

    def give(self, actor: Any) -> None:
        """Hand the next task to an idle actor, or let it go."""
        number = self.queue.next()
        if number is None:
            self.ray.kill(actor)
        else:
            self.owed[actor.do.remote(self.queue.tasks[number])] = (actor, number)

    def bury(self, number: int | None, error: Exception) -> None:
        """Note a death."""
        if number is None:
            # An exception before the first call, such as of a missing module, comes again.
            hopeless = "creation task" in str(error)
            self.queue.died_unbuilt(how_it_died(error), ADVICE, hopeless=hopeless)
        else:
            self.queue.died(number, how_it_died(error))

    def end(self) -> None:
        """Kill every actor, busy or not: a half-written file is a temporary one."""
        for actor, _ in self.owed.values():
            self.ray.kill(actor)
        self.owed.clear()


@contextmanager
def connected(settings: RayActors) -> Iterator[Any]:
    """Ray, connected; shut down afterwards only if it was connected here."""
    try:
        import ray
    except ImportError as error:
        raise WorkerError(
            "Ray is not installed here; pip install 'steerkit[ray]', or leave `address` out to "
            "capture on local processes"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if settings.address in (None, "local"):
            ray.init(
                address="local",
                num_cpus=ceil(settings.workers * settings.cpus) + 1,
                object_store_memory=OBJECTS,
                include_dashboard=False,
                **quiet,
            )
        else:
            _require_answer(str(settings.address))
            ray.init(address=settings.address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkerError(
            f"no connection to Ray at {settings.address!r} ({_reason(error)}); start one with "
            "`ray start --head`, or give its address as HOST:PORT"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Knock: Ray itself would try for minutes, without a word, where nobody listens."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=SETTLE).close()


def require_room(ray: Any, settings: RayActors) -> None:
    """Refuse a run for which the cluster is too small or too busy.

    Raises:
        WorkerError: with what is missing, and the number of workers that would fit.
    """
    until = monotonic() + SETTLE
    for report, which in ((ray.cluster_resources, ""), (ray.available_resources, " free")):
        while refusal := lacking(settings, report(), which):
            if not which or monotonic() > until:
                raise WorkerError(refusal)
            sleep(0.25)


def require_some_room(ray: Any, settings: RayActors) -> None:
    """Go on with what is left of a cluster, but do not wait for one that is gone.

    Raises:
        WorkerError: machines have left, and not one worker fits on the rest.
    """
    has = ray.cluster_resources()
    if has.get("CPU", 0.0) < settings.cpus or has.get("GPU", 0.0) < settings.gpus:
        raise WorkerError(f"the Ray cluster has no room left for a single worker; {RESUME}")


def lacking(settings: RayActors, has: dict[str, float], which: str = "") -> str:
    """What a cluster lacks, in words; empty where it lacks nothing.

    >>> lacking(RayActors(2), {"CPU": 3.0})
    ''
    >>> lacking(RayActors(2), {"CPU": 2.0})[:59]
    '2 Ray workers need 3 CPUs, and the cluster has 2. One CPU i'
    """
    each = {"CPU": settings.cpus, "GPU": settings.gpus}
    spare = {"CPU": 1.0, "GPU": 0.0}
    needs = {name: settings.workers * each[name] + spare[name] for name in each if each[name]}
    short = [name for name in needs if has.get(name, 0.0) < needs[name]]
    if not short:
        return ""
    fit = int(min((has.get(name, 0.0) - spare[name]) // each[name] for name in needs))
    lack = " and ".join(f"{needs[name]:g} {name}s{which}" for name in short)
    there = " and ".join(f"{has.get(name, 0.0):g}" for name in short)
    advice = f"Ask for workers={fit}, or start" if fit > 0 else "Start"
    return (
        f"{settings.workers} Ray workers need {lack}, and the cluster has {there}. One CPU is "
        "kept free for Ray's own tasks: where workers hold every CPU, they wait for ever without "
        f"a word. {advice} Ray with more --num-cpus or --num-gpus, or add machines"
    )


def how_it_died(error: Exception) -> str:
    """How an actor died, in Ray's words, without its identifiers.

    >>> how_it_died(RuntimeError("... Worker exit detail: End of file. Some common causes ..."))
    'because of: End of file'
    """
    text = str(error).strip()
    for mark in ("Worker exit detail:", "The actor is dead because"):
        if mark in text:
            return "because of: " + text.split(mark)[1].strip().splitlines()[0].split(". Some")[0]
    return f"because of: {(text.splitlines() or [''])[-1].strip()}"


def _reason(error: BaseException) -> str:
    """The last line of the first cause, where Ray puts what went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
