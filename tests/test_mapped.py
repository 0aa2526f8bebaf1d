"""Mapped safetensors: byte for byte readable by others, and opened without reading."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from steerkit import mapped


@pytest.mark.parametrize("dtype", list(mapped.DTYPES.values()), ids=str)
def test_every_element_type_goes_both_ways(tmp_path, dtype):
    values = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    save_file({"odd": torch.ones(3, dtype=torch.uint8), "x": values}, tmp_path / "theirs")
    assert torch.equal(mapped.read(tmp_path / "theirs")["x"], values)
    layout = {"odd": (torch.uint8, (3,)), "x": (dtype, (2, 3)), "empty": (dtype, (0, 2))}
    written = mapped.create(tmp_path / "ours", layout, {"note": "n"})
    written["x"].copy_(values)
    written["odd"].fill_(1)
    found = load_file(tmp_path / "ours")
    assert torch.equal(found["x"], values) and found["x"].dtype == dtype
    assert found["odd"].tolist() == [1, 1, 1] and found["empty"].shape == (0, 2)
    assert mapped.parse(tmp_path / "ours")[0]["__metadata__"] == {"note": "n"}


def test_tensors_start_at_multiples_of_their_element_size(tmp_path):
    layout = {"a": (torch.uint8, (3,)), "b": (torch.float64, (1,)), "c": (torch.int16, (1,))}
    mapped.create(tmp_path / "x", layout, {"odd length": "é"})
    entries, begin = mapped.parse(tmp_path / "x")
    for name, (dtype, _) in layout.items():
        assert (begin + entries[name]["data_offsets"][0]) % dtype.itemsize == 0


def test_a_file_may_be_larger_than_memory(tmp_path):
    """A sparse file far larger than this machine's memory opens at once."""
    path = tmp_path / "huge"
    shape = (2**40,)
    entries = {"a": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * shape[0]]}}
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        try:
            file.truncate(8 + len(head) + 4 * shape[0])
        except OSError:
            pytest.skip("this file system has no sparse files of 4 TiB")
    assert float(mapped.read(path)["a"][-1]) == 0.0
