"""Edits are found where they are, and only there."""

import pytest
import torch

import steerkit as sk
from steerkit import organisms
from steerkit.edits import find_orthogonalized, orthogonalize
from steerkit.errors import ModelError

FAMILIES = ("llama", "qwen2", "gpt2", "mixtral", "gpt_neox", "phi", "gemma2")


def overlap(finding, directions):
    """How much of the directions' span lies in what was found; 1 is all of it."""
    span = torch.linalg.qr(torch.stack([d.unit for d in directions]).double().mT)[0]
    return float((finding.directions @ span).square().sum()) / span.shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_is_found_and_an_unedited_model_is_silent(tiny, directions, family, dtype):
    model = tiny(family, dtype)
    plain = find_orthogonalized(model)
    assert not plain.found and plain.singular > 0.3
    assert "no direction is missing" in str(plain)
    for k in (1, 2):
        chosen = directions(model, k)
        edited = orthogonalize(model, chosen, approximate=True).model
        finding = find_orthogonalized(edited)
        assert finding.found and finding.scope == "all" and len(finding.directions) == k
        assert overlap(finding, chosen) > 1 - 1e-5
        assert finding.singular < finding.limit < finding.following / 5
        assert max(finding.leaks.values()) < finding.limit
        known = find_orthogonalized(edited, model)
        assert known.explained > 0.999 and set(known.changed) == set(known.leaks)


def test_half_precision_weights_that_were_loaded_in_float32_are_found(tiny, directions):
    model = tiny("llama", torch.bfloat16)
    edited = orthogonalize(model, directions(model)).model
    finding = find_orthogonalized(sk.wrap(edited.network.float()))
    assert overlap(finding, directions(model)) > 1 - 1e-5


def without(network, d, names):
    """The network with the direction taken out of the parameters that end in these names."""
    unit = d.unit.double()
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith(names):
                rows = p.double() if "embed" in name else p.double().mT
                rows = rows - (rows @ unit)[:, None] * unit
                p.copy_((rows if "embed" in name else rows.mT).float())
    return sk.wrap(network)


def test_an_edit_that_spares_the_embeddings_is_found_among_the_blocks(tiny, directions):
    """What the tools in the field do: attention and MLP projections only."""
    model = tiny("llama")
    d = directions(model)[0]
    suspect = without(tiny("llama").network, d, ("o_proj.weight", "down_proj.weight"))
    finding = find_orthogonalized(suspect)
    assert finding.scope == "blocks" and overlap(finding, [d]) > 1 - 1e-5


def test_an_edit_of_some_layers_is_found_beside_the_original(tiny, directions):
    model = tiny("llama")
    d = directions(model)[0]
    some = ("layers.1.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight")
    suspect = without(tiny("llama").network, d, some)
    assert not find_orthogonalized(suspect).found, "alone it cannot be known"
    finding = find_orthogonalized(suspect, model)
    assert finding.scope == "changed" and overlap(finding, [d]) > 1 - 1e-5
    assert set(finding.changed) == {f"model.{name}" for name in some}
    assert "were orthogonalised" in str(finding) and finding.explained > 0.999


def test_an_edit_before_post_norms_is_found_in_the_weights_as_stored(tiny, directions):
    """The usual edit of Gemma ignores the norm, and leaves its mark before it."""
    model = tiny("gemma2")
    d = directions(model)[0]
    suspect = without(tiny("gemma2").network, d, ("o_proj.weight", "down_proj.weight"))
    finding = find_orthogonalized(suspect)
    assert finding.scope == "blocks before norms" and overlap(finding, [d]) > 1 - 1e-5


def test_training_changes_are_no_edit(tiny):
    model, tuned = tiny("llama"), tiny("llama").network
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(torch.randn(p.shape, generator=draw) * 0.01)
    finding = find_orthogonalized(sk.wrap(tuned), model)
    assert not finding.found and len(finding.changed) == 7 and finding.explained is None


def test_centred_weights_and_dead_coordinates_are_no_edit(tiny, directions):
    """What processing for LayerNorm does, and padding of the width, are told apart."""
    model = tiny("gpt_neox")
    ones = directions(model)[0]
    object.__setattr__(ones, "unit", torch.full((32,), 32**-0.5))
    centred = orthogonalize(model, ones).model
    finding = find_orthogonalized(centred)
    assert finding.centred and not finding.found
    # An edit on top of it, along a centred direction as such a model has, is still found.
    d = directions(centred)[0]
    unit = d.unit - d.unit.mean()
    object.__setattr__(d, "unit", unit / unit.norm())
    both = find_orthogonalized(orthogonalize(centred, d).model)
    assert both.centred and len(both.directions) == 1 and overlap(both, [d]) > 1 - 1e-5

    network = tiny("llama").network
    with torch.no_grad():
        network.model.embed_tokens.weight[:, 5] = 0
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight[5] = 0
            layer.mlp.down_proj.weight[5] = 0
    finding = find_orthogonalized(sk.wrap(network))
    assert finding.dead == (5,) and not finding.found


@pytest.mark.parametrize("name", organisms.names())
def test_trained_models_are_silent_and_an_edit_of_one_is_found(name, directions):
    model = sk.load(f"organism:{name}")
    assert not find_orthogonalized(model).found
    chosen = directions(model)
    edited, receipt = orthogonalize(model, chosen)
    assert receipt.error.largest < 1e-4
    assert overlap(find_orthogonalized(edited), chosen) > 1 - 1e-5


def test_another_model_is_no_origin(tiny):
    with pytest.raises(ModelError, match=r"has no .* of shape .* does not come from it"):
        find_orthogonalized(tiny("gpt2"), tiny("llama"))
