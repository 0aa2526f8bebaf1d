"""Files of the refusal-direction code: the input of a block, positions from the end."""

import json

import pytest
import torch

import steerkit as sk
from steerkit.errors import DirectionError, OutputError
from steerkit.formats import read_steering, read_vectors, write_vectors


def table(n_pos=2, n_layers=3, d=32):
    """Mean differences as the tool saves them: float64, layer 0 the same for all prompts."""
    rows = torch.randn(n_pos, n_layers, d, dtype=torch.float64, generator=torch.Generator())
    rows[:, 0] = 0
    return rows


def chosen(folder, rows, pos, layer):
    """What the tool writes for its choice: a view of the table, and where it is from."""
    torch.save(rows[pos, layer], folder / "direction.pt")
    (folder / "direction_metadata.json").write_text(json.dumps({"pos": pos, "layer": layer}))
    return folder / "direction.pt"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_its_layer_is_the_input_of_that_block(
    family, tiny, batch, logits, blocks, by_hand, tmp_path
):
    model = tiny(family)
    rows = table()
    file = chosen(tmp_path, rows, -1, 2)
    (found,) = read_vectors(file, model=model)
    assert found.site == sk.Site(2, "resid_pre") and found.pooling == "last"
    said = found.provenance["read_from"]["convention"]
    assert said == "layer 2 is the input of block 2: resid_pre@2, which is resid_post@1"
    vector = rows[-1, 2].float()
    at_input = by_hand(model, batch, blocks(model)[2], vector, "input")
    one_early = by_hand(model, batch, blocks(model)[1], vector, "output")
    one_late = by_hand(model, batch, blocks(model)[2], vector, "output")
    torch.testing.assert_close(at_input, one_early, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(at_input, one_late, atol=1e-2)
    for steered in (model.with_(*read_steering(file, model=model)), model.with_(
        sk.Add(found, sites="resid_post@1")
    )):  # fmt: skip
        torch.testing.assert_close(logits(steered, batch), at_input, rtol=1e-4, atol=1e-4)


def test_it_becomes_the_control_vector_of_the_block_before(llama, tmp_path):
    (found,) = read_vectors(chosen(tmp_path, table(), -1, 2), model=llama)
    written = write_vectors(found, tmp_path / "v.gguf")
    assert written.conversions == ("resid_pre@2 is written as direction.1: the same stream",)


@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_round_trip_of_one_keeps_every_bit(where, rich, llama, tmp_path):
    target = tmp_path / "out" if where == "folder" else tmp_path / "direction.pt"
    written = write_vectors(rich[0], target, "refusal_direction")
    assert [p.name for p in written.paths] == ["direction.pt", "direction_metadata.json"]
    assert json.loads(written.paths[1].read_text()) == {"pos": -1, "layer": 2}
    assert written.conversions == ("resid_post@1 is layer 2 there: the same stream",)
    raw = torch.load(written.paths[0], weights_only=True)
    assert torch.equal(raw, rich[0].vector)
    (found,) = read_vectors(target, model=llama)
    assert torch.equal(found.vector, rich[0].vector) and found.site == rich[0].site
    assert found.polarity == 1 and found.scale == rich[0].scale


def test_a_round_trip_of_several_is_a_table(llama, direction, tmp_path):
    given = [direction(llama.info, n, "resid_pre", seed=n) for n in (0, 2)]
    with pytest.warns(UserWarning, match="inputs of blocks"):
        written = write_vectors(
            [*given, direction(llama.info, 2)], tmp_path / "t", "refusal_direction"
        )
    raw = torch.load(tmp_path / "t" / "mean_diffs.pt", weights_only=True)
    assert raw.shape == (1, 3, 32) and not raw[0, 1].any()
    found = read_vectors(tmp_path / "t" / "mean_diffs.pt", model=llama)
    assert len(written.losses) == 2 and [d.site for d in found] == [d.site for d in given]
    for before, after in zip(given, found, strict=True):
        assert torch.equal(before.vector, after.vector) and after.method == before.method


def test_the_table_of_the_tool(llama, tmp_path):
    rows = table()
    torch.save(rows, tmp_path / "mean_diffs.pt")
    found = read_vectors(tmp_path / "mean_diffs.pt", model=llama)
    assert [(str(d.site), d.pooling) for d in found] == [
        ("resid_pre@1", "-2"), ("resid_pre@1", "last"),
        ("resid_pre@2", "-2"), ("resid_pre@2", "last"),
    ]  # fmt: skip
    one = found.at("resid_pre@2", "refusal_direction -2")
    torch.testing.assert_close(one.vector, rows[0, 2].float(), rtol=2**-23, atol=0)
    assert len(read_vectors(tmp_path / "mean_diffs.pt", at="resid_post@1")) == 2
    rows[1, 2] = 0
    torch.save(rows, tmp_path / "mean_diffs.pt")
    with pytest.warns(UserWarning, match=r"\[1, 2\] are zero"):
        assert len(read_vectors(tmp_path / "mean_diffs.pt")) == 3


def test_a_lone_direction_needs_its_place(llama, tmp_path):
    file = chosen(tmp_path, table(), -1, 2)
    (tmp_path / "direction_metadata.json").unlink()
    with pytest.raises(OutputError, match="does not say its layer"):
        read_vectors(file)
    assert read_vectors(file, at="resid_post@1")[0].site == sk.Site(2, "resid_pre")
    with pytest.raises(OutputError, match="mlp_out@1 is not the input of a block"):
        read_vectors(file, at="mlp_out@1")
    for text, why in (("{", "does not hold"), ('{"layer": "2", "pos": -1}', "whole numbers")):
        (tmp_path / "direction_metadata.json").write_text(text)
        with pytest.raises(OutputError, match=why):
            read_vectors(file)


def test_other_models_and_bad_values_are_refused(llama, tmp_path):
    with pytest.raises(DirectionError, match="input of block 5, but tiny-llama has 3"):
        read_vectors(chosen(tmp_path, table(n_layers=6), -1, 5), model=llama)
    with pytest.raises(DirectionError, match="width 8, but tiny-llama has 32"):
        read_vectors(chosen(tmp_path, table(d=8), -1, 2), model=llama)
    torch.save(table(n_layers=6), tmp_path / "mean_diffs.pt")
    with pytest.raises(DirectionError, match="has 6 layers, but tiny-llama has 3"):
        read_vectors(tmp_path / "mean_diffs.pt", model=llama)
    rows = table()
    rows[0, 2, 5] = float("nan")
    torch.save(rows, tmp_path / "mean_diffs.pt")
    with pytest.raises(DirectionError, match=r"mean_diffs.pt\[0, 2\] holds 1 values"):
        read_vectors(tmp_path / "mean_diffs.pt")
    torch.save(table() * 0, tmp_path / "mean_diffs.pt")
    with pytest.raises(DirectionError, match="no vector that is not zero"):
        read_vectors(tmp_path / "mean_diffs.pt")
    torch.save(torch.ones(3, 4), tmp_path / "direction.pt")
    with pytest.raises(OutputError, match=r"holds \(3, 4\), expected"):
        read_vectors(tmp_path / "direction.pt")


def test_a_pooling_that_is_no_position_is_named(llama, direction, tmp_path):
    from dataclasses import replace

    given = replace(direction(llama.info), pooling="mean_prompt")
    written = write_vectors(given, tmp_path / "d", "refusal_direction")
    assert str(written.losses[0]).startswith("pooling 'mean_prompt': is no position")
    with pytest.raises(OutputError, match="nothing of this can be written as refusal_direction"):
        write_vectors(direction(llama.info, 2), tmp_path / "e", "refusal_direction")
