"""One matrix of faults for every executor: after each, the store is what it is undisturbed.

Execution is at least once and publication exactly once, so the files of a store are compared
byte for byte with those of a run in which nothing happened, and the number of times that the
model ran for each shard with what was promised: a finished shard is never computed again.
The model is a fake one, which a new process has in no time; a network is met at the end.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import faults
from faults import FAKE, PLACES, Disturbed, Log, executor

from steerkit.errors import OutputError
from steerkit.stores import ActivationStore
from steerkit.stores.executors import InProcess, Processes

GOOD = [
    "the cat is happy and the dog is sad",
    "tell me how to make cake",
    "rain was not good",
    "please write song",
    "the sun",
    "i loved the film and hated the book",
    "you see the big red house in the river",
    "one day we sing",
    "bird",
    "she is not very small",
]
BAD = ["", "cat " * 40, 17]
ROWS = [*GOOD[:3], BAD[0], *GOOD[3:6], BAD[1], BAD[2], *GOOD[6:]]
SHARDS = 5

linux = pytest.mark.skipif(sys.platform == "win32", reason="kills processes by signals")
place = pytest.mark.parametrize("place", PLACES)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """The store of a run in which nothing happens."""
    return faults.capture(FAKE, ROWS, str(tmp_path_factory.mktemp("undisturbed")), InProcess())


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """Where workers count."""
    (tmp_path / "log").mkdir()
    return Log(str(tmp_path / "log"))


def address(place: str) -> str | None:
    """Of the cluster, where there is one; skips where there could be none."""
    return faults.start_ray() if place == "ray" else None


def drive(place: str, out: Path, log: Log, plan: faults.Plan, **more: Any) -> int:
    """The capture in a driver of its own; how that ended."""
    given = {
        "place": place,
        "workers": 1,
        "address": address(place),
        "model": FAKE,
        "rows": ROWS,
        "out": str(out),
        "log": log.folder,
        "plan": plan,
        "die_after": 0,
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", "import faults; faults.main()", json.dumps(given)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, faults.paths()))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode <= 0, done.stderr
    return done.returncode


def files(store: ActivationStore) -> dict[str, bytes]:
    """The bytes of every shard."""
    return {
        path.name: path.read_bytes() for path in (store.path / "shards").glob("[!.]*.safetensors")
    }


def assert_same(store: ActivationStore, undisturbed: ActivationStore) -> None:
    """Complete, sound, in the same order, the same bits; and nothing beside them."""
    assert store.complete and store.verify().ok
    assert store.sha256 == undisturbed.sha256
    assert files(store) == files(undisturbed)
    assert store.n_prompts == len(GOOD) and len(store) == len(undisturbed)
    assert [prompt.text for prompt, _ in store.prompts()] == GOOD


def test_rows_are_exact_where_some_are_no_prompts(undisturbed: ActivationStore) -> None:
    """Each token of ten prompts: one a word, and a BOS."""
    assert len(undisturbed) == sum(len(text.split()) + 1 for text in GOOD)
    assert len(files(undisturbed)) == SHARDS
    rows = [int(i) for i in undisturbed.prompt_index()]
    assert rows == sorted(rows) and set(rows) == set(range(len(GOOD)))


@linux
@place
def test_workers_die_and_the_model_raises(
    place: str, undisturbed: ActivationStore, tmp_path: Path, log: Log
) -> None:
    """A process killed before the rename, one after it, and an exception in the model.

    In this process the driver is the worker, and dies with it: it is run again.
    """
    plan = ((0, 1, "raise"), (1, 1, "kill before rename"), (4, 1, "kill after rename"))
    out = tmp_path / "store"
    if place == "in_process":
        for _ in range(2):
            assert drive(place, out, log, plan) == -9
    run = Disturbed(executor(place, 2, address(place)), log, plan)
    store = faults.capture(FAKE, ROWS, str(out), run)
    assert_same(store, undisturbed)
    assert log.counts("executed", SHARDS) == [2, 2, 1, 1, 2]
    # What was published before its process died is adopted; what was not is computed again.
    assert log.counts("computed", SHARDS) == [2, 2, 1, 1, 1]
    again = faults.capture(FAKE, ROWS, str(out), run)
    assert again.sha256 == store.sha256
    assert log.counts("executed", SHARDS) == [2, 2, 1, 1, 2]
    assert not list(out.rglob("*.tmp"))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the disk is filled by its call")
@place
def test_the_driver_is_killed_a_shard_is_damaged_and_the_disk_is_full(
    place: str, undisturbed: ActivationStore, tmp_path: Path, log: Log
) -> None:
    """One misfortune after another in one folder; each leaves what is finished as it is."""
    out = tmp_path / "store"
    assert drive(place, out, log, (), die_after=2) == -9
    assert not outlived(log), "workers end with their driver"
    half = ActivationStore(out)
    finished = SHARDS - len(half.missing)
    assert finished == 2 and half.verify().damaged == ()

    first = min((out / "shards").glob("[!.]*.safetensors"))
    whole = first.read_bytes()
    (out / "shards" / ".half.safetensors.0badbeef.tmp").write_bytes(whole[: len(whole) // 2])
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = ActivationStore(out).verify()
    assert found.damaged == (f"shards/{first.name}",) and found.marked

    full = Disturbed(executor(place, 1, address(place)), log, ((4, 0, "disk full"),))
    with pytest.raises(OutputError, match=r"No space left on device; choose a folder") as caught:
        faults.capture(FAKE, ROWS, str(out), full)
    assert caught.value.__notes__ == [
        "in shard 4 (dataset rows 8 to 9); what is finished is kept: the same call goes on with "
        "the rest"
    ]
    assert log.counts("executed", SHARDS)[4] == 1, "a full disk is not tried again"
    assert len(ActivationStore(out).missing) == 1

    # Whatever ran before, any executor goes on.
    store = faults.capture(FAKE, ROWS, str(out), Disturbed(InProcess(), log))
    assert_same(store, undisturbed)
    computed = log.counts("computed", SHARDS)
    assert computed[:2] == [2, 1] and computed[3:] == [1, 2]
    assert computed[2] in (1, 2), "it may have been in work when the driver died"
    assert not list(out.rglob("*.tmp"))


def test_a_process_loads_the_network_that_is_named(bare_folder: Path, tmp_path: Path) -> None:
    """Given by its path: the bits of a run in this process, which loads it too."""
    here, there = (
        faults.capture(str(bare_folder), ROWS, str(tmp_path / str(i)), run)
        for i, run in enumerate((InProcess(), Processes(1)))
    )
    assert files(here) == files(there) and len(files(here)) == SHARDS
    assert here.sha256 == there.sha256


def outlived(log: Log) -> list[int]:
    """Workers that still run, after a moment in which they may have noticed."""
    pids = {pid for number in range(SHARDS) for pid in log.pids("executed", number)}
    until = time.monotonic() + 20
    while alive := [pid for pid in pids if runs(pid)]:
        if time.monotonic() > until:
            return alive
        time.sleep(0.1)
    return []


def runs(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
