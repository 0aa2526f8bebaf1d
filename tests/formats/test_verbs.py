"""Reading and writing across formats: which one it is, and what is said when that is unclear."""

from dataclasses import replace

import pytest
import torch

import steerkit as sk
from steerkit.errors import DirectionError, InterventionError, OutputError
from steerkit.formats import FORMATS, read_vectors, write_vectors
from steerkit.interventions import save_steering


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
        (sk.Add(rich[0], strength=0.0), "does nothing at strength 0"),
        (sk.Add(rich[0]).when(sk.When(rich[0], above=0.0)), "under a condition or in an order"),
        (sk.InOrder(sk.Add(rich[0]), sk.Add(rich[0])), "under a condition or in an order"),
    ):
        with pytest.raises(InterventionError, match=why):
            write_vectors(given, tmp_path / "v.gguf")
    with pytest.raises(OutputError, match="no strength of their own"):
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


def test_interventions_of_our_own_come_back_as_they_act(rich, llama, batch, logits, tmp_path):
    given = (
        sk.Add(rich[0], strength=-0.5, sites=["resid_post@0", "resid_post@2"]),
        sk.Ablate(rich[1], reference="negative_mean"),
        sk.Clamp(rich[0], low=0.5, high=0.5, sites="attn_out@1"),
        sk.Affine(rich[0], gain=0.0, bias=0.25, sites="mlp_out@1"),
    )
    save_steering(tmp_path / "ours.safetensors", given)
    found = sk.read_steering(tmp_path / "ours.safetensors", model=llama)
    assert len(found) == 5
    expected = logits(llama.with_(*given), batch)
    torch.testing.assert_close(logits(llama.with_(*found), batch), expected, rtol=1e-4, atol=1e-4)
    write_vectors(found, tmp_path / "again.safetensors", "steering")
    again = sk.read_steering(tmp_path / "again.safetensors", model=llama)
    assert [op.describe() for op in again] == [op.describe() for op in found]
    assert not torch.allclose(expected, logits(llama, batch), atol=1e-2)


def test_a_rule_of_positions_is_lost_aloud(rich, tmp_path):
    save_steering(tmp_path / "ours.safetensors", sk.Add(rich[0], positions="generated"))
    with pytest.warns(UserWarning, match="positions 'generated'.*its tool decides"):
        sk.read_steering(tmp_path / "ours.safetensors")


@pytest.mark.parametrize("name", ["gguf", "caa", "refusal_direction", "lm_eval", "steerkit"])
def test_every_format_gives_back_vectors_sites_and_polarity(name, llama, direction, tmp_path):
    """The contract that a new format inherits."""
    given = replace(direction(llama.info, 1, seed=5), scale=0.123456789, polarity=-1)
    path = tmp_path / {"gguf": "v.gguf", "lm_eval": "v.pt"}.get(name, "v")
    written = write_vectors(given, path, name)
    (found,) = read_vectors(path, name, model=llama)
    assert torch.equal(found.vector, given.vector) and found.site == given.site
    assert found.scale == given.scale and found.polarity == -1 and written.sites == (given.site,)
    assert not [loss for loss in written.losses if loss.dropped]
    with pytest.raises(DirectionError, match="was taken on tiny-llama"):
        read_vectors(path, name, model=Other(llama, "b" * 64))
    assert len(read_vectors(path, name, model=Other(llama, "b" * 64), force=True)) == 1


class Other:
    """The same model with other weights."""

    def __init__(self, model, fingerprint):
        self.info = replace(model.info, fingerprint=fingerprint)
