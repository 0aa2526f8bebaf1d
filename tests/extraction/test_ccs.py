"""Contrast-consistent search finds the least loss, without labels, of pairs alone."""

import math

import pytest
import torch

from steerkit.errors import ActivationError
from steerkit.extraction import METHODS
from steerkit.extraction.ccs import PENALTY, AnswerProbe, fit_answers, search


def sides(n: int = 60, d: int = 6, *, size: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sides of pairs that share a part, which of them is true drawn by chance."""
    generator = torch.Generator().manual_seed(0)
    a, b, shared = torch.randn(3, n, d, generator=generator, dtype=torch.float64)
    truth = (torch.rand(n, generator=generator) < 0.5).double() * 2 - 1
    a[:, 2] += size * truth
    b[:, 2] -= size * truth
    return a + shared, b + shared


def loss(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The objective as the paper has it, and the penalty."""
    p, q = torch.sigmoid(a @ w + bias), torch.sigmoid(b @ w + bias)
    consistency = ((p - (1 - q)) ** 2).mean()
    confidence = (torch.minimum(p, q) ** 2).mean()
    return consistency + confidence + PENALTY * (w @ w) / 2


def test_the_loss_is_the_papers_and_no_random_restart_beats_it() -> None:
    a, b = sides()
    w, bias, value = search(a, b)
    assert value == pytest.approx(float(loss(a, b, w, torch.tensor(bias))), rel=1e-12)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        start = torch.randn(7, generator=generator, dtype=torch.float64)
        assert descended(a, b, start) >= value - 1e-9


def descended(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor) -> float:
    """The loss that torch's own minimiser reaches from a start."""
    at = start.clone().requires_grad_()
    descent = torch.optim.LBFGS([at], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> float:
        descent.zero_grad()
        here = loss(a, b, at[:-1], at[-1])
        here.backward()
        return float(here.detach())

    descent.step(closure)
    return float(loss(a, b, at[:-1], at[-1]).detach())


def test_it_is_a_stationary_point() -> None:
    a, b = sides()
    w, bias, _ = search(a, b)
    w.requires_grad_()
    intercept = torch.tensor(bias, requires_grad=True, dtype=torch.float64)
    loss(a, b, w, intercept).backward()
    assert w.grad is not None and intercept.grad is not None
    assert float(w.grad.abs().max()) < 1e-8 and abs(float(intercept.grad)) < 1e-8


def test_it_reads_no_labels_but_for_the_sign() -> None:
    """Labels exchanged in every second pair leave the axis as it is, exactly."""
    a, b = sides()
    x = torch.cat([a, b])
    groups = [f"p{i % 60}" for i in range(120)]
    labels = torch.tensor([1] * 60 + [0] * 60)
    wrong = labels.clone()
    wrong[:60:2], wrong[60::2] = 0, 1
    w, other = (METHODS["ccs"](x, y, groups, seed=0) for y in (labels, wrong))
    assert abs(float(torch.cosine_similarity(w, other, dim=0))) == pytest.approx(1.0, abs=1e-9)
    axis = torch.eye(6, dtype=torch.float64)[2]
    assert abs(float(torch.cosine_similarity(w, axis, dim=0))) > 0.97


def test_lone_rows_beside_pairs_are_left_out() -> None:
    a, b = sides()
    x, groups = torch.cat([a, b]), [f"p{i % 60}" for i in range(120)]
    labels = torch.tensor([1] * 60 + [0] * 60)
    w = METHODS["ccs"](x, labels, groups, seed=0)
    more = torch.cat([x, 50 * torch.ones(1, 6, dtype=torch.float64)])
    with_it = METHODS["ccs"](more, torch.cat([labels, labels[:1]]), [*groups, "alone"], seed=0)
    assert float(torch.cosine_similarity(w, with_it, dim=0)) == pytest.approx(1.0)


def test_what_is_not_pairs_is_refused() -> None:
    x = torch.randn(8, 3, dtype=torch.float64)
    labels = torch.tensor([1, 0] * 4)
    with pytest.raises(ActivationError, match=r"ccs reads pairs.*of 8 rows 0 are.*paired contrast"):
        METHODS["ccs"](x, labels, [f"p{i}" for i in range(8)], seed=0)
    with pytest.raises(ActivationError, match="of 8 rows 0 are"):
        METHODS["ccs"](x, labels, ["a"] * 4 + ["b"] * 4, seed=0)


def answers(n: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Statements answered yes and no: the answer's own word is the loudest thing in them."""
    generator = torch.Generator().manual_seed(2)
    yes, no = 0.5 * torch.randn(2, n, 8, generator=generator, dtype=torch.float64)
    truth = torch.rand(n, generator=generator) < 0.5
    right = truth.double() * 2 - 1
    yes[:, 0] += 2 * right
    no[:, 0] -= 2 * right
    yes[:, 1] += 30
    return yes, no, truth


def test_the_answers_own_word_is_not_what_is_read() -> None:
    yes, no, truth = answers()
    probe = fit_answers(yes[:100], no[:100]).oriented(yes[:100], no[:100], truth[:100])
    unit = probe.weight / probe.weight.norm()
    assert abs(float(unit[0])) > 0.97 and abs(float(unit[1])) < 0.1
    held_out = (probe.truth(yes[100:], no[100:]) > 0.5) == truth[100:]
    assert float(held_out.double().mean()) > 0.97
    # One mean for both sides would read the answer's word, which is consistent and certain.
    labels = torch.tensor([1] * 100 + [0] * 100)
    groups = [f"p{i % 100}" for i in range(200)]
    word = METHODS["ccs"](torch.cat([yes[:100], no[:100]]), labels, groups, seed=0)
    assert abs(float(word[1]) / float(word.norm())) > 0.9


def test_the_mirror_image_has_the_opposite_answers() -> None:
    yes, no, truth = answers()
    probe = fit_answers(yes, no)
    mirror = AnswerProbe(-probe.weight, -probe.bias, probe.yes_mean, probe.no_mean, probe.loss)
    assert torch.allclose(probe.truth(yes, no), 1 - mirror.truth(yes, no))
    right = probe.oriented(yes, no, truth)
    assert torch.equal(right.weight, mirror.oriented(yes, no, truth).weight)
    assert math.isclose(right.bias, -right.oriented(yes, no, ~truth).bias)


@pytest.mark.parametrize(
    "yes, no, message",
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), r"same order.*\(3, 2\) and \(2, 2\)"),
        (torch.zeros(1, 2), torch.zeros(1, 2), "at least 2 rows"),
        (torch.full((3, 2), torch.nan), torch.zeros(3, 2), "NaN or infinite"),
        (torch.ones(3, 2), torch.zeros(3, 2), "same activations, so there is nothing to search"),
        (torch.eye(3), torch.eye(3) + 1, "leave the same activations but for a constant"),
    ],
)
def test_refused(yes: torch.Tensor, no: torch.Tensor, message: str) -> None:
    with pytest.raises(ActivationError, match=message):
        fit_answers(yes, no)
