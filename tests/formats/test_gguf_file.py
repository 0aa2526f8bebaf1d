"""The GGUF container against its specification, another implementation, and hostile bytes."""

import struct
from pathlib import Path

import pytest
import torch

from steerkit.formats import gguf_file

VECTOR = torch.tensor([1.0, -2.0, 0.5])


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def golden(vector: torch.Tensor = VECTOR) -> bytes:
    """The bytes of a file with one string, one number and two tensors, by the specification."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 2)
    head += text("general.architecture") + struct.pack("<I", 8) + text("controlvector")
    head += text("controlvector.layer_count") + struct.pack("<II", 4, 2)
    head += text("direction.1") + struct.pack("<IQIQ", 1, 3, 0, 0)
    head += text("direction.2") + struct.pack("<IQIQ", 1, 3, 0, 32)
    head += b"\0" * (-len(head) % 32)
    data = struct.pack("<3f", *vector.tolist())
    return head + data + b"\0" * 20 + data + b"\0" * 20


METADATA = {"general.architecture": "controlvector", "controlvector.layer_count": 2}


def put(folder: Path, data: bytes) -> Path:
    path = folder / "some.gguf"
    path.write_bytes(data)
    return path


def test_written_bytes_are_those_of_the_specification(tmp_path):
    path = tmp_path / "out.gguf"
    gguf_file.write(path, METADATA, {"direction.1": VECTOR, "direction.2": VECTOR})
    assert path.read_bytes() == golden()


def test_it_reads_what_the_specification_says(tmp_path):
    header = gguf_file.parse(put(tmp_path, golden()))
    assert header.metadata == METADATA and list(header.tensors) == ["direction.1", "direction.2"]
    found = gguf_file.read_tensor(tmp_path / "some.gguf", header, "direction.2")
    assert found.dtype == torch.float32 and torch.equal(found, VECTOR)


def test_both_ways_with_the_package_of_llama_cpp(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    rows = {f"direction.{n}": torch.randn(40, generator=torch.Generator().manual_seed(n))
            for n in (1, 2, 7)}  # fmt: skip
    gguf_file.write(ours, METADATA, rows)
    read = gguf.GGUFReader(ours)
    assert {t.name: t.data.tolist() for t in read.tensors} == {
        k: v.tolist() for k, v in rows.items()
    }
    assert read.get_field("controlvector.layer_count").contents() == 2
    writer = gguf.GGUFWriter(theirs, "controlvector")
    writer.add_uint32("controlvector.layer_count", 2)
    for name, row in rows.items():
        writer.add_tensor(name, row.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert theirs.read_bytes() == ours.read_bytes()


def test_metadata_of_every_kind_is_passed_over_in_step(tmp_path):
    kinds = [("<B", 0), ("<b", 1), ("<H", 2), ("<h", 3), ("<I", 4), ("<i", 5), ("<f", 6),
             ("<?", 7), ("<Q", 10), ("<q", 11), ("<d", 12)]  # fmt: skip
    pairs = [text(f"k{t}") + struct.pack("<I", t) + struct.pack(kind, 1) for kind, t in kinds]
    pairs.append(text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"))
    pairs.append(text("bytes") + struct.pack("<IIQ", 9, 2, 3) + b"\1\0\2\0\3\0")
    pairs.append(text("last") + struct.pack("<I", 8) + text("end"))
    data = b"GGUF" + struct.pack("<IQQ", 2, 0, len(pairs)) + b"".join(pairs)
    found = gguf_file.parse(put(tmp_path, data)).metadata
    assert found["last"] == "end" and found["words"] == 2 and found["bytes"] == 3
    assert all(found[f"k{t}"] == 1 for _, t in kinds)


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = golden()
    end_of_data = len(whole) - 20
    for n in range(end_of_data):
        path = put(tmp_path, whole[:n])
        with pytest.raises(ValueError, match=r"cut off|begins with"):
            header = gguf_file.parse(path)
            for name in header.tensors:
                gguf_file.read_tensor(path, header, name)


HEAD = b"GGUF" + struct.pack("<I", 3)
HUGE = 2**63


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"PK\3\4 not this", r"begins with b'PK"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<I", 1), "version 1 is not read"),
        (HEAD + struct.pack("<QQ", HUGE, 0), f"{HUGE} tensors would take"),
        (HEAD + struct.pack("<QQ", 0, HUGE), f"{HUGE} metadata pairs would take"),
        (HEAD + struct.pack("<QQQ", 0, 1, HUGE) + b"x" * 64, "metadata key would take"),
        (HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IIQ", 9, 4, HUGE),
         f"{HUGE} values of 'k' would take"),
        (HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<I", 77) + b"x" * 8,
         "unknown type 77"),
        (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"\xff" + b"x" * 12,
         "not UTF-8"),
        (HEAD + struct.pack("<QQ", 0, 2) + 2 * (text("k") + struct.pack("<IB", 0, 1)) + b"x" * 20,
         "'k' twice"),
        (HEAD + struct.pack("<QQ", 2, 0) + 2 * (text("t") + struct.pack("<IQIQ", 1, 1, 0, 0)),
         "tensor 't' twice"),
        (HEAD + struct.pack("<QQ", 1, 0) + text("t") + struct.pack("<I", 9) + b"x" * 40,
         "9 dimensions"),
        (HEAD + struct.pack("<QQ", 1, 0) + text("t") + struct.pack("<IQIQ", 1, 1, 0, 5),
         "no multiple of 32"),
        (HEAD + struct.pack("<QQ", 0, 1) + text("general.alignment") + struct.pack("<II", 4, 24),
         "alignment is 24"),
    ],
)  # fmt: skip
def test_hostile_headers_are_explained(tmp_path, data, why):
    with pytest.raises(ValueError, match=why):
        gguf_file.parse(put(tmp_path, data))


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (struct.pack("<IQIQ", 1, HUGE - 1, 0, 0), "needs bytes"),
        (struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0), "needs bytes"),
        (struct.pack("<IQIQ", 1, 3, 0, 2**62), "needs bytes"),
        (struct.pack("<IQIQ", 1, 3, 12, 0), "type 12, which is quantised"),
        (struct.pack("<IQIQ", 1, 3, 26, 0), "type 26, which is quantised or no float"),
    ],
)
def test_hostile_tensors_are_never_read(tmp_path, entry, why):
    path = put(tmp_path, HEAD + struct.pack("<QQ", 1, 0) + text("t") + entry + b"\0" * 256)
    header = gguf_file.parse(path)
    with pytest.raises(ValueError, match=why):
        gguf_file.read_tensor(path, header, "t")
