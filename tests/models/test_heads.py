"""Heads of every family: found by what they do, whole, and each on its own path to the stream."""

import pytest
import torch

from steerkit.errors import SiteError
from steerkit.models.heads import Heads, find_heads
from steerkit.models.patching import visited
from steerkit.models.tail import frozen
from steerkit.site import Site


def test_heads_add_up_to_what_attention_adds(model, batch, relative):
    """Through the projection, the post-norm at its scale, and the residual multiplier."""
    if "attn_out" not in model.info.streams:
        with pytest.raises(SiteError, match="unavailable: its blocks do not expose"):
            find_heads(model.engine)
        return
    points = find_heads(model.engine)
    assert len(points) == 3
    for layer, point in enumerate(points):
        at, site = Heads(layer), Site(layer, "attn_out")
        seen = visited(model, batch, keep=[at, site], heads=points).streams
        z, out = seen[at][batch.mask], seen[site][batch.mask]
        assert z.shape[1] == point.n_heads == 4
        with torch.no_grad():
            made = point.into(z).sum(1) + point.constant
            if point.norm is not None:
                given = out / point.scale
                held = frozen(point.norm, made, given)
                made = held.linear(made) * held.inverse + held.constant
        assert relative(made * point.scale, out) < 1e-5


def test_writing_a_head_moves_what_comes_after_it_and_nothing_before(model, batch):
    if "attn_out" not in model.info.streams:
        return
    points = find_heads(model.engine)
    keep = [Site(1, "resid_pre"), Site(1, "attn_out"), Site(2)]

    def write(z):
        out = z.clone()
        out[:, -1, 2] += 1.0
        return out

    plain = visited(model, batch, keep=keep).streams
    moved = visited(model, batch, keep=keep, write={Heads(1): write}, heads=points).streams
    assert torch.equal(plain[keep[0]], moved[keep[0]])
    for place in keep[1:]:
        gap = (plain[place] - moved[place]).abs().amax(-1)
        assert gap[:, -1].min() > 1e-4
        assert not gap[:, :-1][batch.mask[:, :-1]].any()
