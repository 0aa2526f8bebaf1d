"""`.pt` files: only tensors, only what is stored, and nothing is ever run."""

import os
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from steerkit.errors import OutputError, SteerkitError
from steerkit.formats import FORMATS, read_vectors, torch_file, write_vectors


class Runs:
    """Unpickling it makes a folder: what a malicious file would do, harmlessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "code-was-run"


@pytest.mark.parametrize("name", ["vec_layer_3.pt", "direction.pt", "mean_diffs.pt", "steer.pt"])
@pytest.mark.parametrize("chosen", [None, "caa", "refusal_direction", "lm_eval"])
def test_a_file_that_would_run_code_is_refused_and_does_not(name, chosen, mark, tmp_path):
    file = tmp_path / name
    torch.save({"layers.1": {"steering_vector": torch.ones(4), "more": Runs(mark)}}, file)
    with pytest.raises(OutputError, match=r"can run any code when it is loaded, so it was not"):
        read_vectors(file, chosen, at="resid_pre@3")
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists(), "the file of this test does what it is there for"


def rewritten(source: Path, target: Path, change=lambda name, data: data, **options) -> Path:
    """The archive with its records changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record.filename)))
    return target


@pytest.fixture
def plain(tmp_path):
    torch.save(torch.arange(4.0), tmp_path / "plain.pt")
    return tmp_path / "plain.pt"


def test_claims_beyond_what_is_stored_are_refused(plain, tmp_path):
    def bigger(name, data):
        # Both the storage's length and the tensor's: a million values over 16 bytes.
        return data.replace(b"K\x04", b"J\x00\x00\x10\x00") if name.endswith(".pkl") else data

    def longer(name, data):
        # The tensor's shape alone, with stride 0: no read past the end, but no vector either.
        return data.replace(b"K\x00K\x04\x85", b"K\x00J\x00\x00\x00\x7f\x85").replace(
            b"K\x01\x85", b"K\x00\x85"
        ) if name.endswith(".pkl") else data  # fmt: skip

    for change in (bigger, longer):
        bad = rewritten(plain, tmp_path / "bad.pt", change)
        with pytest.raises(OutputError, match=r"does not add up|damaged"):
            torch_file.load(bad)
    assert torch.equal(
        torch_file.load(rewritten(plain, tmp_path / "same.pt"))[0], torch.arange(4.0)
    )


def test_compressed_records_are_refused(tmp_path):
    torch.save(torch.zeros(10_000_000), tmp_path / "zeros.pt")
    bomb = rewritten(tmp_path / "zeros.pt", tmp_path / "bomb.pt", compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(OutputError, match="compressed or larger than the file"):
        torch_file.load(bomb)


def test_every_cut_of_a_file_is_refused(plain, tmp_path):
    whole = plain.read_bytes()
    for n in range(0, len(whole), 7):
        (tmp_path / "cut.pt").write_bytes(whole[:n])
        with pytest.raises(OutputError, match=r"not a complete \.pt|damaged"):
            torch_file.load(tmp_path / "cut.pt")


def test_old_files_and_other_files_are_refused(tmp_path):
    torch.save(torch.ones(3), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(OutputError, match=r"before PyTorch 1\.6"):
        torch_file.load(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a/b.txt", "hello")
    with pytest.raises(OutputError, match=r"damaged or not written by torch\.save"):
        torch_file.load(tmp_path / "other.pt")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_views_keep_their_offset_and_strides(dtype, tmp_path):
    big = torch.randn(5, 7, 11, dtype=torch.float64).to(dtype)
    for view in (big[3, 2], big[:, 2, 4], big[1, ::2, 3], big[2, 5].flip(0)):
        torch.save(view, tmp_path / "view.pt")
        found, kept = torch_file.load(tmp_path / "view.pt")
        assert torch.equal(found, view) and not kept
    torch.save(big[3, 2], tmp_path / "direction.pt")
    assert (tmp_path / "direction.pt").stat().st_size > big.nbytes, "the whole table is in it"
    (made,) = read_vectors(tmp_path / "direction.pt", at="resid_pre@1")
    torch.testing.assert_close(made.vector, big[3, 2].float(), rtol=2**-23, atol=0)


def test_what_is_kept_does_not_disturb_torch(tmp_path):
    rows = OrderedDict(a=torch.arange(3.0), b=torch.arange(12.0).reshape(3, 4).T[1])
    torch_file.save(tmp_path / "v.pt", rows, {"note": ["ü"]})
    found, kept = torch_file.load(tmp_path / "v.pt")
    assert kept == {"note": ["ü"]}
    for read in (found, torch.load(tmp_path / "v.pt"), torch.load(tmp_path / "v.pt", mmap=True)):
        assert list(read) == ["a", "b"] and torch.equal(read["b"], torch.tensor([1.0, 5, 9]))


def test_a_saved_view_does_not_carry_its_table(tmp_path):
    torch_file.save(tmp_path / "v.pt", torch_file.owned(torch.zeros(1000, 1000)[5]), {})
    assert (tmp_path / "v.pt").stat().st_size < 10_000


def test_no_format_takes_a_bare_tensor_for_its_own(tmp_path):
    torch.save(torch.ones(4), tmp_path / "some.pt")
    assert not [name for name in FORMATS if FORMATS[name].recognises(tmp_path / "some.pt")]
    with pytest.raises(OutputError, match=r"does not say its kind; say which with format="):
        read_vectors(tmp_path / "some.pt")


def test_a_value_that_holds_itself_ends(tmp_path):
    held: dict = {"layers.1": {"steering_vector": torch.ones(3)}}
    held["layers.2"] = held
    torch.save(held, tmp_path / "s.pt")
    with pytest.raises(OutputError, match="nests more than 20 deep"):
        read_vectors(tmp_path / "s.pt")


@pytest.mark.parametrize("name", ["v.gguf", "s.pt", "direction.pt"])
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_are_read_or_explained(name, rich, tmp_path):
    """Whatever a damaged file says, the answer is vectors or one of our errors."""
    formats = {"v.gguf": "gguf", "s.pt": "lm_eval", "direction.pt": "refusal_direction"}
    write_vectors(rich[:1], tmp_path / name, formats[name])
    data = (tmp_path / name).read_bytes()
    rng = random.Random(0)
    ends = {"read": 0, "explained": 0}
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / name).write_bytes(changed)
        try:
            read_vectors(tmp_path / name, formats[name])
            ends["read"] += 1
        except SteerkitError:
            ends["explained"] += 1
    assert min(ends.values()) > 10
