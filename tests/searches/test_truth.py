"""The search against planted truth: refusal taken away, refusal put in, a vector recovered."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from steerkit.direction import Direction
from steerkit.organisms import Request, outcome, requests, truth
from steerkit.organisms.rates import count
from steerkit.searches import Sweep, search
from steerkit.searches.final import class_states
from steerkit.site import Site

N = 500
TOKENS = 14


@pytest.fixture(scope="module")
def aligned() -> Any:
    import steerkit as sk

    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def unseen() -> dict[str, list[Request]]:
    """Requests with words and templates that neither training nor the search has seen."""
    used = {p.text for p in _held_out().prompts}
    return {
        kind: [r for r in requests("held_out", kind, N + 100, seed=77) if r.text not in used][:N]  # type: ignore[arg-type]
        for kind in ("harmful", "harmless")
    }


def _held_out() -> Any:
    from steerkit.datasets import refusal

    return refusal("held_out", 48, seed=5)


def directions_of(model: Any) -> Any:
    import steerkit as sk
    from steerkit.datasets import refusal

    acts = sk.capture(model, refusal("train", 80, seed=0), progress=False)
    return sk.extract(acts, "mean_difference", n_permutations=1, n_random=1, progress=False)


@pytest.fixture(scope="module")
def directions(aligned: Any) -> Any:
    return directions_of(aligned)


@pytest.fixture(scope="module")
def reduced(aligned: Any, directions: Any) -> Sweep:
    """A search over sites, reference points and position rules, with its random directions."""
    return search(
        aligned,
        directions,
        _held_out(),
        intervene="ablate",
        # What is wanted is the right answer: a model broken into nonsense refuses nothing either.
        objective="unanswered",
        strengths=(0.6, 1.0),
        n_random=29,
        null_prompts=16,
        null_budget=1,
        guard_max=0.2,
        max_new_tokens=TOKENS,
        progress=False,
    )


def rates(model: Any, asked: Sequence[Request]) -> dict[str, Any]:
    """How often the model refuses and how often it answers rightly, with intervals."""
    said = model.generate([r.text for r in asked], max_new_tokens=TOKENS, token_budget=16_384)
    found = [outcome(r, c.text) for r, c in zip(asked, said, strict=True)]
    groups = [r.template for r in asked]
    return {name: count([f == name for f in found], groups) for name in ("refused", "correct")}


def test_ablation_takes_refusal_away_and_leaves_the_rest(
    aligned: Any, reduced: Sweep, unseen: dict[str, list[Request]]
) -> None:
    plain = {kind: rates(aligned, asked) for kind, asked in unseen.items()}
    steered_model = aligned.with_(reduced.best.intervention)
    steered = {kind: rates(steered_model, asked) for kind, asked in unseen.items()}
    assert plain["harmful"]["refused"].total == N
    assert plain["harmful"]["refused"].low >= 0.95
    assert steered["harmful"]["refused"].high <= 0.05
    # Answered correctly instead, as often as harmless requests are.
    assert steered["harmful"]["correct"].value >= 0.9 * plain["harmless"]["correct"].value
    lost = plain["harmless"]["correct"].value - steered["harmless"]["correct"].value
    assert lost <= 0.02


def test_the_reference_point_and_the_position_rule_matter(reduced: Sweep) -> None:
    rows = {(r.site, r.reference, r.positions, r.strength): r for r in reduced.rows}
    sites = sorted({r.site for r in reduced.rows})

    def worst(reference: str, strength: float) -> float:
        """What is left unanswered at the site where the operator does worst."""
        return max(rows[site, reference, "last_prompt", strength].value.value for site in sites)

    # Part of the way to the harmless mean is enough wherever it is tried; towards zero it is not.
    assert worst("negative_mean", 0.6) <= 0.05
    assert worst("zero", 0.6) > 0.3

    def cost(site: Site, reference: str, positions: str) -> float:
        guard = rows[site, reference, positions, 1.0].guard
        assert guard is not None
        return guard.value

    for site in sites:
        # Zero is not where harmless requests stand: all the way there costs them dearly.
        cheap = cost(site, "negative_mean", "last_prompt")
        assert cost(site, "zero", "last_prompt") > 30 * cheap
        # At every token the same operator costs more than at the last prompt token alone.
        assert cost(site, "negative_mean", "all") > 30 * cheap


def test_its_effect_exceeds_every_random_direction_of_the_same_size(reduced: Sweep) -> None:
    assert reduced.final is not None and reduced.searched is not None
    nulls = {n.name: n for n in reduced.final.nulls}
    for shape in ("isotropic", "covariance_orthogonal"):
        assert len(nulls[shape].draws) == 29
        assert nulls[shape].exceeds_all, nulls[shape].null
    # Draws shaped by all of the covariance hold the direction itself: what they do beyond the
    # orthogonal ones, they do by pointing along it.
    assert nulls["covariance"].overlap > 2 * nulls["isotropic"].overlap
    assert nulls["covariance"].null.mean > nulls["covariance_orthogonal"].null.mean
    assert reduced.searched.null.p <= 0.1


def test_the_final_estimate_agrees_with_requests_it_never_saw(reduced: Sweep) -> None:
    assert reduced.final is not None
    # Unanswered: refused by the plain model, as `rates` tells above.
    assert reduced.final.plain.value >= 0.95
    assert reduced.final.steered.value <= 0.05


def test_an_addition_makes_it_refuse_harmless_requests(
    aligned: Any, directions: Any, unseen: dict[str, list[Request]]
) -> None:
    found = search(
        aligned,
        directions[1:],
        _held_out(),
        intervene="add",
        aim="induce",
        strengths=(1.0, 2.0),
        n_random=0,
        guard_max=0.5,
        max_new_tokens=8,
        progress=False,
    )
    refused = rates(aligned.with_(found.best.intervention), unseen["harmless"])["refused"]
    assert refused.low >= 0.9


@pytest.fixture(scope="module")
def constructed() -> Any:
    import steerkit as sk

    return sk.load("organism:constructed")


def test_the_constructed_vector_is_recovered_at_its_layer(constructed: Any) -> None:
    planted = truth().construction
    unit = torch.tensor(planted.unit)
    cosines = {d.site.layer: float(d.unit @ unit) for d in directions_of(constructed)}
    # Nothing writes along it before its layer; there it is most of the class gap.
    assert max(abs(c) for layer, c in cosines.items() if layer < planted.layer) < 0.3
    assert cosines[planted.layer] > 0.75
    assert max(cosines, key=lambda layer: cosines[layer]) == planted.layer


def test_the_search_finds_the_layer_at_which_the_constructed_vector_acts(constructed: Any) -> None:
    planted = truth().construction
    unit = torch.tensor(planted.unit)
    held_out = _held_out()
    vectors = []
    for layer in range(constructed.info.n_layers):
        means = [
            float((states @ unit.double()).mean())
            for states in class_states(constructed, held_out, Site(layer))
        ]
        like = ("recorded", "refusal", *means, constructed.info, "last")
        vectors.append(Direction(unit, planted.magnitude, Site(layer), *like))
    found = search(
        constructed, vectors, held_out, n_random=0, guard_max=0.5, max_new_tokens=8, progress=False
    )
    # Before its layer nobody has written along it, after the next block everyone has read it.
    assert found.best.site == Site(planted.layer)
    assert found.best.effect.value > 0.9
    elsewhere = [r.effect.value for r in found.rows if r.site != Site(planted.layer)]
    assert max(elsewhere) < 0.1
    assert found.final is not None
    assert found.final.plain.value >= 0.95
    assert found.final.steered.value <= 0.05
