"""The log of finished shards survives what a crash does to it."""

import json

import pytest

from steerkit.errors import OutputError
from steerkit.stores import Record, Task
from steerkit.stores.progress import Progress
from steerkit.stores.records import NOTE, RecordLog


def record(number, **more):
    name = f"shards/{number}"
    return Record(number, number * 4, number * 4 + 4, name, 4, 40, 100, f"{number:064d}", **more)


@pytest.fixture
def log(tmp_path):
    (tmp_path / "shards").mkdir()
    made = RecordLog(tmp_path)
    with made.appending() as file:
        for number in range(3):
            (tmp_path / f"shards/{number}{NOTE}").write_text("{}")
            file.add(record(number))
    return made


def test_records_come_back_and_their_notes_are_gone(log, tmp_path):
    assert log.read() == {f"shards/{i}": record(i) for i in range(3)}
    assert not list(tmp_path.rglob(f"*{NOTE}"))


@pytest.mark.parametrize("keep", range(1, 40, 7))
def test_a_torn_line_counts_as_not_there_and_swallows_nothing(log, keep):
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[: len(whole) - keep])
    assert set(log.read()) == {"shards/0", "shards/1"}
    with log.appending() as file:
        file.add(record(7))
    assert set(log.read()) == {"shards/0", "shards/1", "shards/7"}
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


def test_a_damaged_line_costs_its_own_record_only(log):
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(lines[0] + b"\x00" * 30 + b"\n" + lines[2])
    assert set(log.read()) == {"shards/0", "shards/2"}


def test_what_is_withdrawn_is_gone_until_it_is_made_again(log):
    log.withdraw({"shards/1": "damaged"})
    assert set(log.read()) == {"shards/0", "shards/2"}
    with log.appending() as file:
        file.add(record(1, resumed=True))
    assert log.read()["shards/1"].resumed


def test_what_cannot_be_written_says_so(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write to .*nowhere: .* goes on from here"):
        with RecordLog(tmp_path / "nowhere").appending():
            pass


def test_the_estimate_is_right_where_every_token_costs_the_same():
    """Shards of 1 s for 100 tokens of 400 characters, on two workers; one was adopted."""
    tasks = [Task(i, 0, 4, f"shards/{i}", characters=400 * (1 + i % 2)) for i in range(20)]
    progress = Progress(tasks, workers=2)
    assert progress.seconds_left is None and progress.total_tokens == 0
    for i in range(20):
        size = 1 + i % 2
        about = {"seconds": 0.0, "resumed": True} if i == 3 else {"seconds": 1.0 * size}
        progress.add(Record(i, 0, 4, f"shards/{i}", 4, 100 * size, 1, "", **about))
        left = sum(1 + j % 2 for j in range(i + 1, 20))
        assert progress.seconds_left == pytest.approx(left / 2)
        assert progress.total_tokens == 3000
