"""The measurements that an edit has to pass, on models that should and should not."""

from dataclasses import replace

import pytest
import torch

import steerkit as sk
from steerkit.edits.receipt import TwinError
from steerkit.edits.twin import check_streams, check_twin, twin_error
from steerkit.edits.writers import contributions, probe_batch
from steerkit.errors import ModelError


def span_of(d):
    return torch.linalg.qr(d.unit.double()[:, None])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_unedited_model_has_the_direction_in_its_streams(tiny, directions, dtype):
    model = tiny("llama", dtype)
    with pytest.raises(ModelError, match=r"after the edit \S+ still has .* of its norm along"):
        check_streams(model, span_of(directions(model)[0]), [probe_batch(model, 0)])


def test_the_error_is_the_one_computed_by_hand(tiny, directions, batch):
    model = tiny("llama")
    other = tiny("qwen2")
    (d,) = directions(model)
    found = twin_error(model, other, [d], [batch], prompts="given")
    view = model.with_(sk.Ablate(d, sites=contributions(model)))
    wanted, got = (m.run(batch).logits[batch.mask].double() for m in (view, other))
    by_hand = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert found.largest == pytest.approx(float(by_hand.max()), rel=1e-6)
    assert found.median == pytest.approx(float(by_hand.median()), rel=1e-6)
    assert found.tokens == int(batch.mask.sum())


def test_the_bound_on_the_twin_follows_the_dtype_and_refuses_nan(tiny):
    model, error = tiny("llama"), TwinError(0.5, 2e-4, 0.6, 10, "probe")
    with pytest.raises(ModelError, match="not the twin of run-time ablation"):
        check_twin(model, error)
    half = tiny("llama", torch.bfloat16)
    check_twin(half, error)
    check_twin(half, TwinError(0.5, 0.08, 0.6, 10, "probe"))
    # Rounding would explain 0.08, but no better than doing nothing is no edit.
    for refused in (TwinError(0.5, 0.08, 0.1, 10, "probe"), TwinError(0.5, 0.2, 0.6, 10, "probe")):
        with pytest.raises(ModelError, match="not the twin of run-time ablation"):
            check_twin(half, refused)
    with pytest.raises(ModelError):
        check_twin(model, replace(error, median=float("nan")))
