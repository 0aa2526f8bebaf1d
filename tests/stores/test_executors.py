"""Executors by themselves: what a fault becomes, and that nothing is left behind.

The matrix over whole captures is in test_faults.py; here the workers are toys.
"""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import faults
from faults import Log, Toy, tasks

from steerkit.errors import PromptError, SteerkitError, WorkerError
from steerkit.stores.executors import InProcess, Processes, RayActors, choose, ray_actors
from steerkit.stores.executors.attempts import Failure, attempt
from steerkit.stores.executors.processes import devices_of, how_it_ended
from steerkit.stores.executors.ray_cluster import (
    Needs,
    connected,
    lacking,
    require_room,
    require_some_room,
)

RESUME = "what is finished is kept: the same call goes on with the rest"
linux = pytest.mark.skipif(sys.platform == "win32", reason="kills processes by signals")


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """Where workers count."""
    return Log(str(tmp_path))


def pids(log: Log) -> set[int]:
    """Every process that built a worker."""
    return set(log.pids("built", 0))


def test_the_executor_follows_from_workers_and_address() -> None:
    assert choose() == InProcess()
    assert choose(3) == Processes(3)
    assert choose(1, "auto") == RayActors(1, "auto")
    assert choose(2, "head:6379", gpus=0.5) == RayActors(2, "head:6379", gpus=0.5)
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(WorkerError, match="a number from 1"):
            choose(wrong)  # type: ignore[arg-type]
    with pytest.raises(WorkerError, match="gpus must be at least 0"):
        choose(2, "auto", gpus=-1)
    with pytest.raises(WorkerError, match=r"gpus= is for workers on Ray"):
        choose(2, gpus=1)


def test_in_process_keeps_the_order_and_retries(log: Log) -> None:
    toy = Toy(log, ((1, 1, "raise"), (1, 2, "raise")))
    assert [record[0] for record in InProcess().run(tasks(3), toy)] == [0, 1, 2]
    assert log.counts("executed", 3) == [1, 3, 1] and len(log.pids("built", 0)) == 1


def test_in_process_gives_up_with_shard_and_rows(log: Log) -> None:
    seen = []
    with pytest.raises(WorkerError) as caught:
        seen.extend(record[0] for record in InProcess().run(tasks(3), Toy(log, ((1, 0, "raise"),))))
    assert str(caught.value) == (
        "shard 1 (dataset rows 10 to 19) failed 3 times in its worker, at last with "
        f"RuntimeError: planted in the worker; {RESUME}"
    )
    assert isinstance(caught.value.__cause__, RuntimeError), "a debugger gets to the place"
    assert log.counts("executed", 3) == [1, 3, 0]


def test_an_error_on_purpose_is_raised_at_once_and_stays_what_it_was(log: Log) -> None:
    with pytest.raises(PromptError) as caught:
        list(InProcess().run(tasks(2), Toy(log, ((1, 0, "refuse"),))))
    assert str(caught.value) == "row 7 is empty"
    assert caught.value.__notes__ == [f"in shard 1 (dataset rows 10 to 19); {RESUME}"]
    assert log.counts("executed", 2) == [1, 1]


def test_a_worker_that_cannot_be_built_is_no_shards_fault(log: Log) -> None:
    for run in (InProcess(), Processes(1)):
        with pytest.raises(WorkerError, match=r"could not be built \(ValueError: planted in the m"):
            list(run.run(tasks(2), Toy(log, building="raise")))
    assert log.counts("executed", 2) == [0, 0]


def test_failures_survive_the_way_between_processes() -> None:
    def fail(task: Any) -> None:
        raise Unpicklable(lambda: None)

    failure = attempt(fail, None, 0)
    assert isinstance(failure, Failure) and failure.original is not None
    again = pickle.loads(pickle.dumps(failure))
    assert again == Failure("Unpicklable", failure.message, failure.trace, 1)
    raised = again.error(tasks(1)[0])
    assert type(raised) is WorkerError
    assert "raise Unpicklable(lambda: None)" in str(raised.__cause__)


class Unpicklable(Exception):
    """Holds what no other process can read."""


@linux
@pytest.mark.parametrize("kind", (Processes, RayActors))
def test_a_task_that_kills_every_worker_ends_the_run(kind: Any, log: Log) -> None:
    if kind is RayActors:
        faults.start_ray()
    seen = []
    with pytest.raises(WorkerError) as caught:
        for record in kind(1, deaths=2).run(tasks(3), Toy(log, ((1, 0, "die"),))):
            seen.append(record[0])
    text = str(caught.value)
    assert text.startswith(
        "shard 1 (dataset rows 10 to 19) ended its worker process 2 times, at last"
    )
    if kind is Processes:
        assert "by signal SIGKILL (as the system does when memory runs out)" in text
    assert text.endswith(f"fewer rows a shard or fewer workers need less memory; {RESUME}")
    assert seen == [0] and log.counts("executed", 3) == [1, 2, 0]


@linux
def test_ctrl_c_leaves_no_process(log: Log) -> None:
    """One worker sits in a task of ten minutes; neither it nor a zombie stays."""
    records = Processes(2).run(tasks(3), Toy(log, ((1, 0, "sleep"),)))
    assert next(records)[2] == 1, "two workers divide one thread: one each"
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt)
    assert not multiprocessing.active_children()
    assert not [pid for pid in pids(log) if (Path("/proc") / str(pid)).exists()]


@linux
def test_processes_that_never_start_end_the_run(log: Log) -> None:
    with pytest.raises(WorkerError, match=r"had built its worker, with exit code 4; .*__main__"):
        list(Processes(1).run(tasks(1), Toy(log, building="exit")))
    assert len(pids(log)) == 1, "an exit on purpose comes again"
    with pytest.raises(WorkerError, match=r"had built its worker, by signal SIGKILL"):
        list(Processes(1, deaths=1).run(tasks(1), Toy(log, building="die")))


def test_nothing_to_do_starts_nothing(log: Log) -> None:
    for run in (InProcess(), Processes(2), RayActors(2, "nowhere:1")):
        assert list(run.run([], Toy(log))) == []
    assert not pids(log)


def test_endings_and_devices_in_words() -> None:
    assert how_it_ended(-11) == "by signal SIGSEGV"
    assert how_it_ended(-250) == "by signal 250"
    assert devices_of(3, 4, ["GPU-a", "GPU-b"]) == "GPU-b"
    assert devices_of(1, 2, ["a", "b", "c", "d", "e"]) == "c,d"
    assert devices_of(0, 2, ["0"]) is None and devices_of(1, 2, []) is None


def test_a_cluster_that_is_too_small_is_refused_with_what_would_fit(log: Log) -> None:
    faults.start_ray()
    with pytest.raises(WorkerError) as caught:
        list(RayActors(faults.CPUS).run(tasks(1), Toy(log)))
    assert str(caught.value) == (
        "4 Ray workers need 5 CPUs, and the cluster has 4. One CPU is kept free for Ray's own "
        "tasks: where workers hold every CPU, they wait for ever without a word. Ask for "
        "workers=3, or start Ray with more --num-cpus or --num-gpus, or add machines"
    )
    with pytest.raises(WorkerError, match=r"1 Ray workers need 1 GPUs, and the cluster has 0\."):
        list(RayActors(1, gpus=1).run(tasks(1), Toy(log)))
    assert not pids(log)


def test_workers_that_find_no_place_are_not_waited_for_in_silence(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """As when another job takes the room between the question and the start."""
    faults.start_ray()
    monkeypatch.setattr(ray_actors, "require_room", lambda *_: None)
    monkeypatch.setattr(ray_actors, "require_some_room", lambda *_: None)
    monkeypatch.setattr(ray_actors, "LOOK", 0.2)
    monkeypatch.setattr(ray_actors, "PATIENCE", 0.3)
    with pytest.raises(WorkerError, match="has started none of 1 workers in 0 seconds"):
        list(RayActors(1, cpus=99).run(tasks(1), Toy(log)))
    assert not pids(log)


@linux
def test_workers_are_spread_over_machines_and_one_that_leaves_is_done_without(log: Log) -> None:
    """A cluster of two nodes, found by its address; one node is killed."""
    pytest.importorskip("ray", reason="Ray is not installed")
    done = subprocess.run(
        [sys.executable, "-c", f"import faults; faults.lose_a_machine({log.folder!r})"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, faults.paths()))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert not done.returncode, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert sorted(number for number, _ in seen) == list(range(12))
    nodes = [node for _, node in seen]
    assert len(set(nodes)) == 2 and len(set(nodes[-4:])) == 1


def test_room_is_counted_for_what_is_lacking() -> None:
    assert lacking(Needs(4, cpus=0.5), {"CPU": 3.0}) == ""
    both = lacking(Needs(4, gpus=1), {"CPU": 4.0, "GPU": 2.0}, " free")
    assert both.startswith("4 Ray workers need 5 CPUs free and 4 GPUs free, and the cluster has 4 ")
    assert "Ask for workers=2" in both and both.endswith("or gpus=0 for workers that run on CPUs")
    gone = SimpleNamespace(cluster_resources=lambda: {"CPU": 0.0})
    with pytest.raises(WorkerError, match="no room left for a single worker"):
        require_some_room(gone, Needs(2))


def test_workers_that_fit_into_the_cluster_and_on_none_of_its_machines_are_refused() -> None:
    """Ray itself would wait for ever for a machine with four GPUs."""
    machine = {"CPU": 16.0, "GPU": 2.0}
    nodes = [{"Resources": machine, "Alive": i < 4} for i in range(5)]
    total = {"CPU": 64.0, "GPU": 8.0}
    ray = SimpleNamespace(
        cluster_resources=lambda: total, available_resources=lambda: total, nodes=lambda: nodes
    )
    require_room(ray, Needs(4, gpus=2))
    with pytest.raises(WorkerError) as caught:
        require_room(ray, Needs(2, gpus=4))
    assert str(caught.value) == (
        "0 of 2 Ray workers find a place: each needs 1 CPUs and 4 GPUs on one machine, and the "
        "cluster's 4 have 16 CPUs and 2 GPUs (4 times). Ask for fewer or smaller workers, or add "
        "machines"
    )


def test_workers_have_a_gpu_each_where_the_cluster_has_any() -> None:
    """Ray hides every GPU from an actor that was promised none: it would run on a CPU."""
    with_two = SimpleNamespace(cluster_resources=lambda: {"CPU": 9.0, "GPU": 2.0})
    without = SimpleNamespace(cluster_resources=lambda: {"CPU": 9.0})
    assert Needs(2).on(with_two).gpus == 1 and Needs(2).on(without).gpus == 0
    assert Needs(2, gpus=0).on(with_two).gpus == 0 and Needs(1, gpus=2).on(with_two).gpus == 2


def test_ray_is_shut_down_by_whoever_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    calls: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda **given: calls.append(given))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with connected(None, Needs(2)):
        pass
    assert calls == []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SteerkitError), connected(None, Needs(2, cpus=1.5)):
        assert calls[0]["num_cpus"] == 4, "three for the workers, one free"
        raise WorkerError("anything")
    assert calls[1:] == ["shutdown"]


def test_where_nobody_listens_is_said_at_once(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(WorkerError, match=r"no connection to Ray at '127.0.0.1:1' \(.*refused"):
        list(RayActors(1, "127.0.0.1:1").run(tasks(1), Toy(log)))


def test_without_ray_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerError, match=r"pip install 'steerkit\[ray\]'"):
        list(RayActors(1).run(tasks(1), Toy(log)))
