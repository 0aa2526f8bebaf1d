"""Ablation towards zero at every writer of the stream is weight orthogonalisation, exactly.

The twin exists for a zero reference, all positions, all writers, pre-norm blocks and an
untied head. Source: Arditi et al. 2024 (arXiv:2406.11717), appendix on orthogonalisation.
"""

import torch

import steerkit as sk
from steerkit.site import sites_of


def orthogonalised(network, directions):
    """The network with no weight that writes along the directions."""
    basis, _ = torch.linalg.qr(torch.stack([d.unit for d in directions]).double().mT)
    keep = torch.eye(len(basis), dtype=torch.float64) - basis @ basis.mT
    writers = [network.model.embed_tokens.weight.mT]
    for layer in network.model.layers:
        writers += [layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight]
    with torch.no_grad():
        for weight in writers:
            weight.copy_((keep @ weight.double()).to(weight.dtype))
    return network


def test_ablating_every_writer_equals_orthogonalised_weights(
    llama, make_network, batch, direction, relative
):
    info = llama.info
    a, b = direction(info, seed=0), direction(info, seed=1)
    real = batch.mask
    plain = llama.run(batch).logits[real]
    writers = (*sites_of(None, ("attn_out", "mlp_out"), info.n_layers), sk.Site(0, "resid_pre"))
    for chosen in ([a], [a, b]):
        twin = sk.wrap(orthogonalised(make_network("llama"), chosen))
        wanted = twin.run(batch).logits[real]
        assert relative(wanted, plain) > 0.1, "the direction matters"
        # Where every part of the stream lacks the direction, so does the stream, and vice versa.
        for sites in (writers, sites_of(None, ("resid_pre", "resid_mid", "resid_post"), 3)):
            ablated = llama.with_(sk.Ablate(chosen, sites=sites))
            assert relative(ablated.run(batch).logits[real], wanted) < 1e-4


def test_other_references_and_positions_have_no_such_twin(
    llama, make_network, batch, direction, relative
):
    d = direction(llama.info, seed=0)
    real = batch.mask
    wanted = sk.wrap(orthogonalised(make_network("llama"), [d])).run(batch).logits[real]
    sites = sites_of(None, ("resid_pre", "resid_mid", "resid_post"), 3)
    for other in (
        sk.Ablate(d, "negative_mean", sites=sites),
        sk.Ablate(d, positions="last_prompt", sites=sites),
        sk.Ablate(d, sites=sites[:3]),
        sk.Ablate(d, strength=0.5, sites=sites),
    ):
        assert relative(llama.with_(other).run(batch).logits[real], wanted) > 1e-2


def test_the_streams_no_longer_hold_the_direction(llama, batch, direction):
    a, b = direction(llama.info, seed=0), direction(llama.info, seed=1)
    sites = sites_of(None, "resid_post", 3)
    for reference, value in (("zero", 0.0), ("negative_mean", -0.5)):
        view = llama.with_(sk.Ablate([a, b], reference, sites=sites))
        for stream in view.run(batch, sites=sites).streams.values():
            for d in (a, b):
                found = d.project(stream)[batch.mask]
                torch.testing.assert_close(found, torch.full_like(found, value), rtol=0, atol=1e-5)
