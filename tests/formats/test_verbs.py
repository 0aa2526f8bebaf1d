"""Reading and writing across formats: which one it is, and what is said when that is unclear."""

from dataclasses import replace

import pytest
import torch

import steerkit as sk
from steerkit.errors import InterventionError, OutputError
from steerkit.formats import FORMATS, read_vectors, write_vectors


def test_our_own_format_is_told_from_the_file_and_loses_nothing(rich, llama, tmp_path):
    two = [*rich, replace(rich[0], method="pca")]
    written = write_vectors(two, tmp_path / "v.safetensors")
    assert written.format == "steerkit" and not written.losses
    found = read_vectors(tmp_path / "v.safetensors", model=llama)
    for before, after in zip(two, found, strict=True):
        assert torch.equal(before.unit, after.unit)
        assert before.to_json() == after.to_json() | {
            "examples": before.examples,
            "tokens": before.tokens,
        }


def test_what_cannot_be_written_is_refused(rich, tmp_path):
    both = [rich[0], replace(rich[0], unit=rich[1].unit)]
    for given, why in (
        ([], "no directions to write"),
        (sk.Ablate(both), "neither adds a vector nor sets one projection"),
        (sk.Ablate(rich[0], strength=0.5), "neither adds"),
        (sk.Clamp(rich[0], high=1.0), "neither adds"),
    ):
        with pytest.raises(InterventionError, match=why):
            write_vectors(given, tmp_path / "v.gguf")
    with pytest.raises(OutputError, match="directions have no strength"):
        write_vectors(sk.Add(rich[0], strength=2.0), tmp_path / "v.safetensors")
    assert not list(tmp_path.iterdir())


def test_names_that_say_nothing_ask_for_a_format(rich, tmp_path):
    with pytest.raises(OutputError, match=r"'v.bin' does not say its format.*gguf"):
        write_vectors(rich, tmp_path / "v.bin")
    with pytest.raises(OutputError, match="no format named 'ggml'; did you mean 'gguf'"):
        write_vectors(rich, tmp_path / "v.bin", "ggml")
    with pytest.raises(OutputError, match="there is nothing at"):
        read_vectors(tmp_path / "absent.gguf")
    (tmp_path / "v.txt").write_text("hello")
    with pytest.raises(OutputError, match="does not say its kind"):
        read_vectors(tmp_path / "v.txt")
    assert all(FORMATS[name].summary for name in FORMATS)


def test_a_place_that_cannot_be_written_to_leaves_nothing(rich, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_vectors(rich, tmp_path / "file" / "v.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
