import pytest

from steerkit.commands.outputs import check_free, staged
from steerkit.errors import OutputError


def test_files_appear_together(tmp_path):
    out = tmp_path / "a" / "b"
    with staged(out, ["x.json"], force=False) as folder:
        (folder / "x.json").write_text("1")
        assert not (out / "x.json").exists()
    assert [p.name for p in out.iterdir()] == ["x.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_leaves_nothing(tmp_path, error):
    with pytest.raises(error), staged(tmp_path / "a" / "b", ["x"], force=False) as folder:
        (folder / "x").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_rerun_keeps_what_stood_there(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), staged(tmp_path, ["x"], force=True) as folder:
        (folder / "x").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "x").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_stands_there_is_replaced_only_when_forced(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(OutputError, match="exists; pass --force"):
        check_free([tmp_path / "x"], force=False)
    with staged(tmp_path, ["x"], force=True) as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "x").read_text() == "new"


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file" / "x", tmp_path / "file" / "deeper" / "x"):
        with pytest.raises(OutputError, match="is not a writable folder"):
            check_free([place], force=True)
    with pytest.raises(OutputError, match="is a folder, expected a file"):
        check_free([tmp_path], force=True)
