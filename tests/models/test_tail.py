"""What stands after the last block, of every family: found, and equal to the network's own."""

import pytest
import torch

from steerkit.errors import ModelError
from steerkit.models.tail import find_tail, frozen
from steerkit.site import Site


def test_finished_states_are_the_network_s_own_logits(model, batch, relative):
    tail = find_tail(model.engine)
    assert tail.direct
    last = Site(model.info.n_layers - 1)
    run = model.run(batch, sites=[last])
    real = batch.mask
    assert relative(tail.logits(run.streams[last][real]), run.logits[real]) < 1e-5
    raw = tail.raw(run.streams[last][real])
    assert relative(tail.capped(raw), run.logits[real]) < 1e-5


def test_a_norm_with_its_scale_held_gives_what_it_gave(model):
    norm = model.engine.final_norm()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)) * 3 + 1
    with torch.no_grad():
        made = norm(x)
        held = frozen(norm, x, made)
        again = held.linear(x) * held.inverse + held.constant
        parts = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
        split, whole = held.linear(parts) + held.linear(x - parts), held.linear(x)
    torch.testing.assert_close(again.float(), made, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-4)


def test_what_is_no_norm_is_refused():
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ModelError, match=r"a Tanh is not a weight times the state over its size"):
        frozen(torch.nn.Tanh(), x, torch.tanh(x))
