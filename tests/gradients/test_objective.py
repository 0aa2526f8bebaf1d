"""The preference loss and its gradient, against differences and against a plain computation."""

import pytest
import torch

from steerkit.batch import Positions
from steerkit.gradients.objective import (
    AddedVector,
    exact_loss,
    loss_and_gradient,
    margins,
    plain_log_probs,
)
from steerkit.gradients.preferences import Pairs
from steerkit.scoring import answer_log_probs
from steerkit.site import Site

BUDGET = 4096


def setting(model, preferences, seed=0, size=3.0):
    pairs = Pairs.of(model, preferences[::3])
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(model.info.d_model, generator=generator, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * (len(pairs) // 2), dtype=torch.float64)
    return pairs, vector * size / vector.norm(), signs, plain_log_probs(
        model, pairs, token_budget=BUDGET
    )  # fmt: skip


@pytest.mark.parametrize("site", ["resid_post@1", "resid_pre@1", "attn_out@1", "mlp_out@0"])
@pytest.mark.parametrize("positions", ["all", "last_prompt", -2])
def test_the_gradient_equals_finite_differences(double_model, preferences, site, positions):
    where, rule = Site.parse(site), Positions.of(positions)
    pairs, vector, signs, plain = setting(double_model, preferences)

    def loss(v):
        return loss_and_gradient(double_model, pairs, plain, v, signs, where, rule, beta=0.3)

    _, slope = loss(vector)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        way = torch.randn(len(vector), generator=generator, dtype=torch.float64)
        way /= way.norm()
        h = 1e-4
        found = (loss(vector + h * way)[0] - loss(vector - h * way)[0]) / (2 * h)
        assert found == pytest.approx(float(slope @ way), abs=1e-6, rel=1e-6)
    assert float(slope.norm()) > 1e-3


def test_the_loss_is_the_formula(double_model, preferences):
    """Each pair by itself, scored by the library's own teacher forcing."""
    where, rule = Site(1), Positions("all")
    pairs, vector, signs, plain = setting(double_model, preferences)
    z = []
    for i, sign in enumerate(signs.tolist()):
        steered = double_model.with_(AddedVector(sign * vector, where, rule))
        both = [
            [float(x.sum()) for x in answer_log_probs(m, pairs.items[2 * i : 2 * i + 2])]
            for m in (steered, double_model)
        ]
        z.append(sign * 0.3 * ((both[0][0] - both[1][0]) - (both[0][1] - both[1][1])))
    expected = float(-torch.nn.functional.logsigmoid(torch.tensor(z, dtype=torch.float64)).mean())
    found, _ = loss_and_gradient(double_model, pairs, plain, vector, signs, where, rule, beta=0.3)
    assert found == pytest.approx(expected, abs=1e-10)


def test_batches_do_not_matter(double_model, preferences):
    pairs, vector, signs, plain = setting(double_model, preferences)
    one, other = (
        loss_and_gradient(
            double_model, pairs, plain, vector, signs, Site(1), Positions("all"), token_budget=b
        )
        for b in (BUDGET, 1)
    )
    assert one[0] == pytest.approx(other[0], abs=1e-12)
    assert torch.allclose(one[1], other[1], atol=1e-12)


def test_the_exact_loss_is_the_mean_over_both_signs(double_model, preferences):
    pairs, vector, signs, plain = setting(double_model, preferences)
    each = [
        loss_and_gradient(
            double_model, pairs, plain, vector, sign * torch.ones_like(signs), Site(1),
            Positions("all"), beta=0.5,
        )[0]
        for sign in (1, -1)
    ]  # fmt: skip
    found = exact_loss(
        double_model, pairs, plain, vector, Site(1), Positions("all"),
        signs=(1, -1), beta=0.5, token_budget=BUDGET,
    )  # fmt: skip
    assert found == pytest.approx(sum(each) / 2, abs=1e-6)  # many slots at once answer in float32


def test_margins_of_many_vectors_are_those_of_each(double_model, preferences):
    pairs, vector, _, plain = setting(double_model, preferences)
    rows = torch.stack([torch.zeros_like(vector), vector, *([-vector] * 40)])
    where, rule = Site(1), Positions("last_prompt")
    found = margins(double_model, pairs, rows, where, rule, token_budget=BUDGET)
    assert torch.allclose(found[0], plain[:, 0] - plain[:, 1], atol=1e-5)
    alone = margins(double_model, pairs, vector[None], where, rule, token_budget=BUDGET)
    assert torch.allclose(found[1], alone[0], atol=1e-5)
    assert torch.allclose(found[2], found[-1], atol=1e-5) and not torch.allclose(found[1], found[2])


def test_frozen_parameters_give_the_same_gradient(double_model, preferences):
    pairs, vector, signs, plain = setting(double_model, preferences)
    ask = (double_model, pairs, plain, vector, signs, Site(1), Positions("all"))
    before = loss_and_gradient(*ask)
    double_model.network.requires_grad_(False)
    try:
        frozen = loss_and_gradient(*ask)
        assert not any(p.requires_grad for p in double_model.network.parameters())
    finally:
        double_model.network.requires_grad_(True)
    assert frozen[0] == before[0] and torch.allclose(frozen[1], before[1], atol=1e-14)
