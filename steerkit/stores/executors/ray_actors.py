"""Tasks on a Ray cluster, one actor a worker: many machines, many GPUs.

Actors of Ray's core rather than Ray Data's pool of them: the pool restarts a dead actor without
end and does not say which task it died of, goes on with tasks for a while after its iterator is
closed, and took 19 to 31 seconds to close. Here each actor has one task at a time, the driver
knows which, and a death is an answer like any other. Only tasks and metadata travel;
activations never do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Generic, TypeVar

from steerkit.errors import SteerkitError, WorkerError
from steerkit.stores.executor import MakeWorker
from steerkit.stores.executors.attempts import DEATHS, RESUME, RETRIES, Failure, attempt, build
from steerkit.stores.executors.queue import Queue
from steerkit.stores.executors.ray_cluster import (
    Needs,
    connected,
    how_it_died,
    require_room,
    require_some_room,
)

T = TypeVar("T")
R = TypeVar("R")

LOOK = 10.0
"""Seconds without an answer after which the cluster is looked at again: is it still there?"""

PATIENCE = 120.0
"""Seconds in which Ray must give a process to one of the actors, where none has one."""

ADVICE = (
    "Ray's log of the worker says more. Every machine needs steerkit, and the store's folder and "
    "the model under the same paths"
)


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
        gpus: GPUs of each actor; a fraction shares one, several hold a model that is spread over
            them (`device="auto"`). `None`: one where the cluster has any.
        retries: how often a task is run again after an exception that is not a `SteerkitError`.
        deaths: how many processes a task may take with it before the run is given up.
    """

    workers: int
    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
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
        asked = Needs(self.workers, self.cpus, self.gpus)
        with connected(self.address, asked) as ray:
            needs = asked.on(ray)
            require_room(ray, needs)
            queue = Queue(tasks, self.deaths)
            pool: _Pool[T, R] = _Pool(ray, needs, self.retries, queue, ray.put(make_worker))
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

    def here(self) -> None:
        """Answered as soon as there is a process."""

    def build(self) -> Failure | None:
        """Build the worker; why there is none, if there is none."""
        self.worker = build(self.make_worker)
        return self.worker if isinstance(self.worker, Failure) else None

    def do(self, task: Any) -> Any:
        """The record of a task, or its failure: a result too, so that nothing wraps it."""
        return attempt(self.worker, task, self.retries)


@dataclass(frozen=True)
class _Seat:
    """An actor, and the answer that it gives once Ray has found a place for it."""

    actor: Any
    here: Any


@dataclass
class _Pool(Generic[T, R]):
    """The actors of one run, each with the answer that it owes."""

    ray: Any
    needs: Needs
    retries: int
    queue: Queue[T]
    make_worker: Any
    owed: dict[Any, tuple[_Seat, int | None]] = field(default_factory=dict)
    """Reference of an answer -> seat, and the task it has (`None` while it builds)."""
    heard: float = field(default_factory=monotonic)
    """When there was an answer, or the run began."""

    def records(self) -> Iterator[R]:
        """Give tasks to idle actors until every one has its record."""
        while self.queue.left:
            while len(self.owed) < min(self.needs.workers, self.queue.left):
                self.start()
            wrong: SteerkitError | None = None
            for reference in self.answered():
                seat, number = self.owed.pop(reference)
                try:
                    said = self.ray.get(reference)
                except self.ray.exceptions.RayActorError as error:
                    self.ray.kill(seat.actor)  # certainly, where it was only out of reach
                    self.bury(number, error)
                    continue
                if isinstance(said, Failure):
                    self.ray.kill(seat.actor)
                    wrong = said.error(None if number is None else self.queue.tasks[number])
                    continue
                if number is None:
                    self.queue.built()
                else:
                    self.queue.left -= 1
                self.give(seat)
                if number is not None:
                    yield said
            if wrong is not None:  # only now: what the others had finished is handed over
                raise wrong

    def answered(self) -> list[Any]:
        """Wait for an answer; all that are there then, so that many cost no more looks than one."""
        found: list[Any]
        found, others = self.ray.wait(list(self.owed), timeout=LOOK)
        if not found:
            require_some_room(self.ray, self.needs)
            self.require_a_place()
            return []
        self.heard = monotonic()
        if others:
            found += self.ray.wait(others, num_returns=len(others), timeout=0)[0]
        return found

    def require_a_place(self) -> None:
        """Do not wait for ever where Ray has no process for any actor; a model may load long."""
        here = [seat.here for seat, _ in self.owed.values()]
        placed, _ = self.ray.wait(here, num_returns=len(here), timeout=0)
        if not placed and monotonic() - self.heard > PATIENCE:
            raise WorkerError(
                f"Ray has started none of {len(here)} workers in {PATIENCE:.0f} seconds, though it "
                f"reported room for them: other jobs may have taken it; {RESUME}"
            )

    def start(self) -> None:
        """A new actor, which begins by building its worker."""
        make = self.ray.remote(
            num_cpus=self.needs.cpus,
            num_gpus=self.needs.gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )(Actor)
        actor = make.remote(self.make_worker, self.retries)
        seat = _Seat(actor, actor.here.remote())
        self.owed[actor.build.remote()] = (seat, None)

    def give(self, seat: _Seat) -> None:
        """Hand the next task to an idle actor, or let it go."""
        number = self.queue.next()
        if number is None:
            self.ray.kill(seat.actor)
        else:
            self.owed[seat.actor.do.remote(self.queue.tasks[number])] = (seat, number)

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
        for seat, _ in self.owed.values():
            self.ray.kill(seat.actor)
        self.owed.clear()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
