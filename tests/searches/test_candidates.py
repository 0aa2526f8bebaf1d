"""What a search tries, and what it refuses to try."""

import pytest
import torch

from steerkit.batch import Positions
from steerkit.direction import Direction, Directions
from steerkit.errors import DirectionError, InterventionError
from steerkit.interventions import Ablate, Add, Clamp
from steerkit.searches.candidates import ADDITIONS, every_candidate


def test_every_variation_is_tried_once(toy_directions: Directions) -> None:
    found = every_candidate(
        toy_directions, Ablate, aim="reduce", positions=("all", "last_prompt"), strengths=(0.5, 1)
    )
    seen = {
        (c.direction.site, c.operator, c.reference, str(c.positions), c.strength) for c in found
    }
    assert len(found) == len(seen) == 3 * 2 * 2 * 2


def test_a_candidate_makes_what_it_says(toy_directions: Directions) -> None:
    found = every_candidate(
        [toy_directions[1]], [Ablate, "add"], aim="reduce", positions=["last_prompt"]
    )
    made = [c.intervention for c in found]
    assert [type(m).__name__ for m in made] == ["Ablate"] * 2 + ["Add"] * len(ADDITIONS)
    assert [c.reference for c in found[:2]] == ["zero", "negative_mean"]
    assert all(m.positions == Positions("last_prompt") for m in made)
    assert [m.strength for m in made[2:]] == [-s for s in ADDITIONS]


def test_defaults_follow_the_aim(toy_directions: Directions) -> None:
    (up,) = every_candidate([toy_directions[1]], Clamp, aim="induce", positions="all")
    (down,) = every_candidate([toy_directions[1]], Clamp, aim="reduce", positions="all")
    h = torch.stack([toy_directions[1].unit * c for c in (-9.0, 0.0, 9.0)]).double()
    site = toy_directions[1].site
    from steerkit.searches.states import _moved

    for one, held in ((up, 9.0), (down, -9.0)):
        program = one.intervention.lower(site)
        still = h[[2]] if held > 0 else h[[0]]
        # A one-sided clamp leaves alone what is already beyond the class mean.
        assert float(_moved([program], still)) == pytest.approx(0, abs=1e-6)
        assert float(_moved([program], -still)) > 1
    adds = every_candidate([toy_directions[1]], Add, aim="induce", positions="all")
    assert [c.strength for c in adds] == list(ADDITIONS)


def test_a_factory_of_ones_own_is_an_operator(toy_directions: Directions) -> None:
    def halfway(direction: Direction, positions: Positions, strength: float) -> Ablate:
        return Ablate(direction, strength=strength / 2, positions=positions)

    (found,) = every_candidate([toy_directions[0]], halfway, aim="reduce", positions=["all"])
    assert (found.operator, found.reference) == ("halfway", "")
    assert found.intervention.strength == 0.5


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"directions": ()}, DirectionError, "no directions to search over; extract some first"),
        ({"intervene": "ablat"}, InterventionError, "no operator named 'ablat'; did you mean 'ab"),
        ({"intervene": [3]}, InterventionError, "an operator is a class .* got a int"),
        ({"intervene": []}, InterventionError, "no operators to try"),
        ({"strengths": [1, float("nan")]}, InterventionError, "finite numbers; got nan among"),
        ({"strengths": [0.0, 1]}, InterventionError, "strength 0 is the unsteered model"),
        ({"strengths": []}, InterventionError, "no strengths to try"),
        ({"positions": ["last"]}, InterventionError, "no position rule named 'last'; did you mean"),
        (
            {"positions": [Positions.of(torch.ones(2, 3, dtype=torch.bool))]},
            InterventionError,
            "tries position rules, not a token mask",
        ),
        ({"references": ["negativ_mean"]}, InterventionError, "did you mean 'negative_mean'"),
    ],
)
def test_bad_input_says_so(
    change: dict[str, object], error: type[Exception], text: str, toy_directions: Directions
) -> None:
    given = {"directions": toy_directions, "intervene": "ablate", "aim": "reduce", **change}
    with pytest.raises(error, match=text):
        every_candidate(**given)  # type: ignore[arg-type]
