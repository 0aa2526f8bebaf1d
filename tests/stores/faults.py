"""What goes wrong in the tests of executors, and where it is counted.

Other processes import this module by its name, so it stands beside the tests and not in one;
it is also the driver that a test kills: `python -c "import faults; faults.main()" ARGUMENTS`.
"""

import errno
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from steerkit.stores.executor import Task
from steerkit.stores.executors import InProcess, Processes, RayActors

HERE = Path(__file__).parent
CPUS = 4
PLACES = ("in_process", "processes", "ray")
FAKE = "sines"
"""The name under which every process finds the model of `fakes.py`."""

Plan = tuple[tuple[int, int, str], ...]
"""(shard, on which of its executions, what goes wrong); execution 0 is every one."""


def executor(place: str, workers: int, address: str | None = None) -> Any:
    """The executor under test."""
    return {
        "in_process": lambda: InProcess(),
        "processes": lambda: Processes(workers),
        "ray": lambda: RayActors(workers, address),
    }[place]()


def start_ray() -> str:
    """One small cluster for the tests of a process, whose workers find this module."""
    import pytest

    ray = pytest.importorskip("ray", reason="Ray is not installed")
    if not ray.is_initialized():
        with importable():
            ray.init(
                address="local",
                num_cpus=CPUS,
                object_store_memory=100_000_000,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
    return ray.get_runtime_context().gcs_address


@contextmanager
def importable() -> Iterator[None]:
    """What is started inherits where this module is found. What Ray itself puts there stays."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, paths()))
    yield
    del os.environ["PYTHONPATH"]
    os.environ.update({} if before is None else {"PYTHONPATH": before})


def paths() -> tuple[Path, Path]:
    """Where another process finds this module and the package."""
    return HERE, HERE.parent.parent


@dataclass(frozen=True)
class Log:
    """What workers did, counted in files, which outlive them."""

    folder: str

    def note(self, number: int, what: str) -> int:
        """One more of something for a shard; how many that makes."""
        with (Path(self.folder) / f"{what}-{number}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return len(self.pids(what, number))

    def counts(self, what: str, n: int) -> list[int]:
        """How often, for each shard."""
        return [len(self.pids(what, number)) for number in range(n)]

    def pids(self, what: str, number: int) -> list[int]:
        """By which processes."""
        path = Path(self.folder) / f"{what}-{number}"
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []


@dataclass(frozen=True)
class Faulty:
    """Builds a worker to which a plan happens."""

    make_worker: Callable[[], Callable[[Any], Any]]
    log: Log
    plan: Plan

    def __call__(self) -> Callable[[Task], Any]:
        """The worker of this process."""
        with fake_model():
            worker = self.make_worker()

        def run(task: Task) -> Any:
            count = self.log.note(task.number, "executed")
            wrong = [w for n, on, w in self.plan if n == task.number and on in (0, count)]
            with ExitStack() as stack:
                stack.enter_context(forward(lambda: self.log.note(task.number, "computed"), wrong))
                if "kill before rename" in wrong:
                    stack.enter_context(mock.patch.object(Path, "replace", killed_for(task)))
                if "disk full" in wrong:
                    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    stack.enter_context(mock.patch.object(os, "posix_fallocate", side_effect=full))
                record = worker(task)
            if "kill after rename" in wrong:
                die()
            return record

        return run


@contextmanager
def fake_model() -> Iterator[None]:
    """Let `load` find the fake model; networks cost a process seconds before it can be killed."""
    from steerkit import models
    from steerkit.models import outline

    def faked(find: Callable[..., Any]) -> Callable[..., Any]:
        def found(name: Any, **options: Any) -> Any:
            if name != FAKE:
                return find(name, **options)
            from fakes import Sines

            return Sines()

        return found

    with (
        mock.patch.object(models, "load", faked(models.load)),
        mock.patch.object(outline, "outline", faked(outline.outline)),
    ):
        yield


@contextmanager
def forward(note: Callable[[], Any], wrong: Sequence[str]) -> Iterator[None]:
    """Note the first time that a model runs; raise inside it where that is planned."""
    import torch

    noted: list[bool] = []

    def hook(module: Any, inputs: Any) -> None:
        if not noted:
            noted.append(True)
            note()
        if "raise" in wrong:
            raise RuntimeError("planted in the model")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def killed_for(task: Task) -> Callable[[Path, Path], Path]:
    """A rename that the process does not live to make, once the shard is written in full."""
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == Path(task.name).name:
            assert self.stat().st_size > 0
            die()
        return rename(self, target)

    return replace


def die() -> None:
    """As the system kills a process: nothing is unwound."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Disturbed:
    """An executor whose workers follow a plan, in a driver that may die after some records."""

    inner: Any
    log: Log
    plan: Plan = ()
    die_after: int = 0

    @property
    def workers(self) -> int:
        """As many as inside."""
        return self.inner.workers

    def run(self, tasks: Sequence[Task], make_worker: Any) -> Iterator[Any]:
        """The records."""
        records = self.inner.run(tasks, Faulty(make_worker, self.log, self.plan))
        for n, record in enumerate(records, 1):
            yield record
            if n == self.die_after:
                die()


@dataclass
class Elsewhere:
    """Runs tasks as another process would: all that it is given is pickled.

    Attributes:
        backwards: the last task first.
        made: the worker.
    """

    backwards: bool = False
    made: list[Any] = field(default_factory=list)
    workers: int = 1

    def run(self, tasks: Sequence[Any], make_worker: Any) -> Iterator[Any]:
        """The records."""
        self.made.append(pickle.loads(pickle.dumps(make_worker))())
        given = pickle.loads(pickle.dumps(list(tasks)))
        yield from map(self.made[-1], given[::-1] if self.backwards else given)


@dataclass(frozen=True)
class Toy:
    """Builds a worker without a model: it says who ran what, unless something goes wrong."""

    log: Log
    plan: Plan = ()
    building: str = ""

    def __call__(self) -> Callable[[Task], Any]:
        """The worker of this process."""
        self.log.note(0, "built")
        if self.building == "raise":
            raise ValueError("planted in the making")
        if self.building == "die":
            die()
        if self.building == "exit":
            os._exit(4)
        return partial(self.run, parent=os.getppid())  # asked now: a parent may die

    def run(self, task: Task, parent: int) -> tuple[int, int, int, int]:
        """Number, process, threads, and the process that started this one."""
        count = self.log.note(task.number, "executed")
        for number, on, wrong in self.plan:
            if number == task.number and on in (0, count):
                if wrong == "die":
                    die()
                if wrong == "sleep":
                    time.sleep(600)
                if wrong == "nap":
                    time.sleep(0.2)
                if wrong == "raise":
                    raise RuntimeError("planted in the worker")
                if wrong == "refuse":
                    from steerkit.errors import PromptError

                    raise PromptError("row 7 is empty")
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if torch else int(os.environ["OMP_NUM_THREADS"])
        return task.number, os.getpid(), threads, parent


def tasks(n: int) -> list[Task]:
    """So many shards of ten rows."""
    return [Task(i, 10 * i, 10 * i + 10, f"shards/{i}", "group") for i in range(n)]


def capture(model: str, rows: list[Any], out: str, run: Any) -> Any:
    """The capture under test: every token of a dataset some rows of which are no prompts."""
    from steerkit.stores import capture_dataset

    with fake_model():
        return capture_dataset(
            model,
            [{"text": row} for row in rows],
            out=out,
            positions="all",
            max_tokens=20,
            on_bad_row="skip",
            rows_per_shard=2,
            executor=run,
            progress=False,
        )


def lose_a_machine(log: str) -> None:
    """A driver of its own: a cluster of two nodes, one of which is killed while it works."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
    with importable():
        cluster = Cluster(initialize_head=True, head_node_args=node)
        lost = cluster.add_node(**node)
    naps = tuple((number, 0, "nap") for number in range(12))
    seen = []
    for number, _, _, parent in RayActors(2, cluster.address).run(tasks(12), Toy(Log(log), naps)):
        seen.append([number, parent])  # the process that starts a node's workers stands for it
        if len({parent for _, parent in seen}) == 2 and lost in cluster.worker_nodes:
            cluster.remove_node(lost, allow_graceful=False)
    sys.stdout.write(json.dumps(seen) + "\n")


def main() -> None:
    """A driver of its own, to be killed."""
    given = json.loads(sys.argv[1])
    inner = executor(given["place"], given["workers"], given.get("address"))
    plan = tuple(tuple(step) for step in given["plan"])
    run = Disturbed(inner, Log(given["log"]), plan, given["die_after"])
    capture(given["model"], given["rows"], given["out"], run)
