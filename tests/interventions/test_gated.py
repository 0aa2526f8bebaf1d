"""Every operator under a condition: open as itself, closed as nothing, decided in time."""

from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.errors import InterventionError
from steerkit.interventions import OPERATORS, Ablate, Add, Gated, InOrder, When
from steerkit.interventions.operator import Operator
from steerkit.protocols import Intervention
from steerkit.site import Site

G = torch.Generator().manual_seed(0)


def operators(d: Any, e: Any) -> dict[str, Operator]:
    rows, more = (torch.randn(2, 12, generator=G, dtype=torch.float64) for _ in range(2))
    made: dict[str, Any] = {
        "ablate": {"direction": [d, e]},
        "add": {"direction": d},
        "add_keeping_norm": {"direction": d},
        "affine": {"direction": d, "gain": 0.5, "bias": 1.0},
        "clamp": {"direction": d, "low": 0.4, "high": 0.5},
        "low_rank": {"rotation": rows, "weight": more},
        "rotate": {"direction": [d, e], "to": 30.0},
        "set_features": {"encoder": rows, "bias": torch.ones(2), "decoder": more, "target": 2.0},
    }
    return {name: OPERATORS[name](**{"sites": [2], **settings}) for name, settings in made.items()}


def test_every_operator_is_tried_here(direction: Any) -> None:
    assert tuple(sorted(operators(direction(0), direction(1)))) == OPERATORS.names()


def level(condition: When, x: Tensor) -> Tensor:
    unit = condition.direction.unit.double() / condition.direction.unit.double().norm()
    p = x @ unit
    return p / x.norm(dim=-1) if condition.measure == "cosine" else p


@pytest.mark.parametrize("name", OPERATORS.names())
@pytest.mark.parametrize("measure", ["cosine", "projection"])
@pytest.mark.parametrize("side", ["above", "below"])
def test_a_tokens_condition(
    direction: Any, steer: Any, batch: Any, h: Any, name: str, measure: Any, side: str
) -> None:
    operator = operators(direction(0), direction(1))[name]
    condition = When(direction(5), on="token", measure=measure, **{side: 0.1})
    high = level(condition, h) >= 0.1
    opened = (high if side == "above" else ~high) & batch.mask
    assert 0 < int(opened.sum()) < int(batch.mask.sum())
    out, full = steer(operator.when(condition), h), steer(operator, h)
    torch.testing.assert_close(out[opened], full[opened], rtol=0, atol=1e-13)
    assert torch.equal(out[~opened], h[~opened])


@pytest.mark.parametrize("name", OPERATORS.names())
@pytest.mark.parametrize("on", ["last_prompt", "mean_prompt"])
def test_a_prompts_condition(
    direction: Any, steer: Any, batch: Any, h: Any, name: str, on: Any
) -> None:
    operator = operators(direction(0), direction(1))[name]
    prompts = [x[m][:n] for x, m, n in zip(h, batch.mask, batch.prompt_len, strict=True)]
    condition = When(direction(5), above=0.0, on=on)
    read = torch.stack([p[-1] if on == "last_prompt" else p.mean(0) for p in prompts])
    levels = level(condition, read).sort().values
    condition = When(direction(5), above=float(levels[1]) - 1e-9, on=on)
    rows = level(condition, read) >= condition.threshold
    assert rows.sum() == 2
    late = batch.absolute >= batch.prompt_len[:, None] - 1
    out, full = steer(operator.when(condition), h), steer(operator, h)
    opened = rows[:, None] & late
    torch.testing.assert_close(out[opened], full[opened], rtol=0, atol=1e-13)
    assert torch.equal(out[~opened], h[~opened])


def test_is_an_intervention_in_words(direction: Any) -> None:
    d, c = direction(), direction(1)
    gated = Add(d, 2.0, sites=[3], positions="generated").when(When(c, above=0.1))
    assert isinstance(gated, Intervention) and gated.directions == (d, c)
    assert gated.sites == (Site(2), Site(3)) and gated.strength == 2
    assert gated.positions.rule == "generated" and gated.fingerprint == d.fingerprint
    assert str(gated) == (
        "add refusal at resid_post@3, generated, strength 2, "
        "when cosine with refusal >= 0.1 on last_prompt at resid_post@2"
    )
    assert Add(d).when(When(c, above=0.1, on="token")).sites == (Site(2),)
    with pytest.raises(InterventionError, match="not act at resid_post@0, but at resid_post@2, "):
        gated.lower(Site(0))


def test_the_latch_stands_at_its_site_and_the_gate_at_the_interventions(direction: Any) -> None:
    gated = Add(direction(), sites=[3]).when(When(direction(1), above=0.1, site=1))
    decides, acts = gated.lower(Site(1)), gated.lower(Site(3))
    assert len(decides.latches) == 1 and not decides.groups and decides
    assert not acts.latches and acts.groups[0].gates[0].latch == decides.latches[0].name
    off = Add(direction(), 0.0, sites=[3]).when(When(direction(1), above=0.1, site=1))
    assert not off.lower(Site(1)) and not off.lower(Site(3))


def test_refused(direction: Any) -> None:
    d, c = direction(), When(direction(1), above=0.1)
    with pytest.raises(InterventionError, match=r"at resid_post@1 cannot wait .* resid_post@2"):
        Add(d, sites=[1, 3]).when(c)
    with pytest.raises(InterventionError, match="cannot wait"):
        Add(d, sites=["mlp_out@2"]).when(c)
    Add(d, sites=["mlp_out@2"]).when(When(direction(1), above=0.1, on="token"))
    with pytest.raises(InterventionError, match="has a condition already"):
        Gated(Add(d).when(c), c)
    with pytest.raises(InterventionError, match="takes a condition such as When"):
        Add(d).when(0.2)  # type: ignore[arg-type]
    both = InOrder(Ablate(d), Add(d))
    with pytest.raises(InterventionError, match="give each part its own condition"):
        both.when(When(direction(1), above=0.1, on="token"))
    both.when(c)
