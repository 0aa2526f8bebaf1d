"""Files appear whole or not at all, open mapped, and say what is wrong with them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from steerkit.errors import OutputError
from steerkit.files import (
    read_header,
    read_json,
    read_tensors,
    sha256_of,
    tensors_on_disk,
    write_tensors,
    write_text,
    written_whole,
)

TENSORS = {
    "values": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "rows": torch.arange(3),
    "flags": torch.tensor([True, False, True]),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "none": torch.empty(0, 4),
}


@pytest.fixture
def path(tmp_path):
    return write_tensors(tmp_path / "deep" / "x.safetensors", "thing", TENSORS, {"note": "é"})


def same(found):
    return found.keys() == TENSORS.keys() and all(
        torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in TENSORS.items()
    )


def test_what_is_written_is_read_here_and_by_safetensors(path):
    tensors, header = read_tensors(path, "thing")
    assert same(tensors) and same(load_file(path))
    assert header == {"kind": "thing", "format_version": 1, "note": "é"}
    assert list(path.parent.iterdir()) == [path]


def test_a_file_written_in_place_is_an_ordinary_safetensors_file(tmp_path):
    path = tmp_path / "x.safetensors"
    layout = {k: (v.dtype, tuple(v.shape)) for k, v in TENSORS.items()}
    with tensors_on_disk(path, "thing", layout, {"note": 1}) as tensors:
        assert not path.exists()
        for name, value in TENSORS.items():
            tensors[name].copy_(value)
    assert same(load_file(path)) and same(read_tensors(path, "thing")[0])
    assert read_header(path, "thing")["note"] == 1


def test_reading_maps_and_writing_to_the_tensors_leaves_the_file_alone(path):
    before = sha256_of(path)
    tensors, _ = read_tensors(path, "thing")
    tensors["values"].zero_()
    assert sha256_of(path) == before
    assert same(read_tensors(path, "thing")[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, error):
    path = write_text(tmp_path / "x.txt", "old")
    with pytest.raises(error), written_whole(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(error), tensors_on_disk(path, "t", {"a": (torch.float32, (2,))}, {}):
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" / "x"
    message = r"cannot write .*file/x: a file stands where its folder should be; choose a folder"
    with pytest.raises(OutputError, match=message):
        write_text(where, "x")
    with pytest.raises(OutputError, match=message):
        write_tensors(where, "thing", TENSORS, {})
    with (
        pytest.raises(OutputError, match=message),
        tensors_on_disk(where, "t", {"a": (torch.float32, (2,))}, {}),
    ):
        raise RuntimeError("never reached")


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with (
        pytest.raises(OutputError, match=r"No space left on device; choose a folder .* has space"),
        tensors_on_disk(tmp_path / "x", "t", {"a": (torch.float32, (2,))}, {}),
    ):
        raise RuntimeError("never reached")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:4], "its header is cut off"),
        (lambda data: data[:100], "its header is cut off"),
        (lambda data: data[:-1], r"it has \d+ bytes where \d+ are expected"),
        (lambda data: data + b"x", r"it has \d+ bytes where \d+ are expected"),
        (lambda data: data[:8] + b"?" + data[9:], "Expecting value"),
        (lambda data: data.replace(b'"F32"', b'"X32"'), "its header is malformed: KeyError"),
        (lambda data: data.replace(b"[3,4]", b"[3,5]"), "its header does not add up"),
        (lambda data: data.replace(b'"I64"', b'"I32"'), "its header does not add up"),
    ],
)
def test_a_damaged_file_is_refused(path, damage, message):
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(
        OutputError, match=rf"x.safetensors is not a complete safetensors file .*{message}"
    ):
        read_tensors(path, "thing")


def test_files_of_others_and_of_other_kinds_are_refused(path, tmp_path):
    with pytest.raises(OutputError, match="holds thing, not directions"):
        read_header(path, "directions")
    with pytest.raises(OutputError, match=r"no thing file at .*nowhere"):
        read_header(tmp_path / "nowhere", "thing")
    foreign = tmp_path / "foreign.safetensors"
    save_file(TENSORS, foreign)
    with pytest.raises(OutputError, match="was not written by steerkit: it has no steerkit header"):
        read_header(foreign, "thing")
    save_file(TENSORS, foreign, {"steerkit": "{"})
    with pytest.raises(OutputError, match=r"the steerkit header of .* is not valid JSON"):
        read_header(foreign, "thing")
    save_file(TENSORS, foreign, {"steerkit": json.dumps({"kind": "thing", "format_version": 2})})
    with pytest.raises(OutputError, match="has format version 2; this steerkit reads up to 1"):
        read_tensors(foreign, "thing")


def test_json_of_another_kind_is_refused(tmp_path):
    path = write_text(tmp_path / "m.json", '{"kind": "manifest", "a": 1}')
    assert read_json(path, "manifest")["a"] == 1
    with pytest.raises(OutputError, match=r"m.json is not a capture written by steerkit"):
        read_json(path, "capture")
    path.write_text("[")
    with pytest.raises(OutputError, match=r"m.json is not a readable manifest"):
        read_json(path, "manifest")
    with pytest.raises(OutputError, match="no manifest file at"):
        read_json(tmp_path / "none", "manifest")
