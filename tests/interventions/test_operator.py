"""What every operator inherits: the contract over the registry, checks, names."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

from steerkit.batch import Positions
from steerkit.errors import InterventionError
from steerkit.interventions import OPERATORS, Add
from steerkit.interventions.operator import from_settings
from steerkit.program import Program
from steerkit.protocols import Intervention
from steerkit.site import Site

SETTINGS: dict[str, dict[str, Any]] = {
    "ablate": {"reference": "negative_mean"},
    "add": {},
    "affine": {"gain": 0.5, "bias": 1.0},
    "clamp": {"low": 0.4, "high": 0.5},
}
every_operator = pytest.mark.parametrize("name", sorted(SETTINGS))
every_rule = pytest.mark.parametrize(
    "rule", ["all", "prompt", "last_prompt", "generated", (0, -1), "mask"]
)


def positions(rule: Any) -> Any:
    return torch.eye(3, 8).bool() if rule == "mask" else rule


def test_every_registered_operator_is_under_contract() -> None:
    assert OPERATORS.names() == tuple(sorted(SETTINGS)), "give a new operator its settings here"


@every_operator
def test_is_a_frozen_intervention(direction: Any, name: str) -> None:
    d = direction()
    made = from_settings(name, [d], SETTINGS[name], positions="prompt", sites=[1, 0])
    assert isinstance(made, Intervention) and isinstance(made, OPERATORS[name])
    assert made.name == name and made.directions == (d,) and made.settings == SETTINGS[name]
    assert made.sites == (Site(0), Site(1)) and made.strength == 1
    assert made.positions == Positions("prompt") and made.fingerprint == d.fingerprint
    with pytest.raises(FrozenInstanceError):
        made.strength = 2.0
    stronger = replace(made, strength=2.0)  # type: ignore[type-var]
    assert stronger.strength == 2 and stronger.settings == made.settings
    assert stronger.sites == made.sites and made.strength == 1


@every_operator
def test_strength_0_selects_the_untouched_stream(
    direction: Any, steer: Any, h: Any, name: str
) -> None:
    made = from_settings(name, [direction()], SETTINGS[name], strength=0)
    assert not made.lower(Site(2))
    assert steer(made, h) is h


@every_operator
@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_of_place_in_its_dtype_and_off_the_padding(
    direction: Any, steer: Any, batch: Any, h: Any, name: str, rule: Any, dtype: Any
) -> None:
    x = h.to(dtype)
    x[~batch.mask] = float("nan")
    before = x.clone()
    made = from_settings(name, [direction()], SETTINGS[name], positions=positions(rule))
    out = steer(made, x)
    assert torch.equal(x.nan_to_num(7), before.nan_to_num(7))
    assert out.dtype == dtype
    touched = made.positions.select(batch.absolute, batch.prompt_len, batch.rows)
    assert torch.equal(out[~touched].nan_to_num(7), before[~touched].nan_to_num(7))
    assert (out[touched] != before[touched]).any(-1).all() and touched.any()


@every_operator
def test_strength_interpolates(direction: Any, steer: Any, h: Any, name: str) -> None:
    full, half = (
        steer(from_settings(name, [direction()], SETTINGS[name], strength=s), h) for s in (1.0, 0.5)
    )
    torch.testing.assert_close(half, (h + full) / 2, rtol=0, atol=1e-13)


@every_operator
def test_only_moves_along_the_direction(
    direction: Any, steer: Any, batch: Any, h: Any, name: str
) -> None:
    d = direction()
    moved = (steer(from_settings(name, [d], SETTINGS[name]), h) - h)[batch.mask]
    along = (moved @ d.unit.double())[:, None] * d.unit.double()
    torch.testing.assert_close(moved, along, rtol=0, atol=1e-5)
    assert along.abs().sum() > 0


@every_operator
def test_rows_at_slot_0_are_untouched(direction: Any, steer: Any, h: Any, name: str) -> None:
    out = steer(from_settings(name, [direction()], SETTINGS[name]), h, slots=[1, 0, 1])
    assert torch.equal(out[1], h[1])
    assert not torch.equal(out[0], h[0])


@every_operator
def test_shared_checks(direction: Any, name: str) -> None:
    def make(d: Any = None, **changes: Any) -> Any:
        return from_settings(name, [direction() if d is None else d], SETTINGS[name], **changes)

    for strength in (float("nan"), float("inf"), "2", True):
        with pytest.raises(InterventionError, match="strength is a finite number"):
            make(strength=strength)
    with pytest.raises(InterventionError, match="did you mean 'last_prompt'"):
        make(positions="last_promt")
    with pytest.raises(InterventionError, match=f"{name} was given no sites"):
        make(sites=[])
    with pytest.raises(InterventionError, match=f"{name} takes a Direction, got a Tensor"):
        make(torch.ones(12))
    with pytest.raises(InterventionError, match=r"not act at resid_post@0, but at resid_post@2"):
        make().lower(Site(0))


def test_a_list_of_directions_where_one_is_needed(direction: Any) -> None:
    with pytest.raises(InterventionError, match=r"got a list: it holds several.*directions\.best"):
        Add([direction()])  # type: ignore[arg-type]


def test_unknown_operators_and_settings(direction: Any) -> None:
    with pytest.raises(InterventionError, match="no operator named 'ablation'; did you mean 'abl"):
        from_settings("ablation", [direction()], {})
    with pytest.raises(InterventionError, match=r"'add' does not take these settings.*reference"):
        from_settings("add", [direction()], {"reference": "zero"})


def test_interventions_of_one_call_read_the_same_stream(direction: Any, steer: Any, h: Any) -> None:
    class Together:
        sites = (Site(2),)

        def __init__(self, *parts: Any, ordered: bool) -> None:
            programs = [part.lower(Site(2)) for part in parts]
            self.program = programs[0].then(programs[1]) if ordered else Program.parallel(programs)

        def lower(self, site: Site) -> Program:
            return self.program

    d = direction()
    add, ablate = Add(d, 1.0), from_settings("ablate", [d], {})
    unit = d.unit.double() / d.unit.double().norm()
    p = h @ unit
    for parts, ordered, wanted in [
        ((add, ablate), True, 0 * p),
        ((ablate, add), True, 0 * p + 4),
        ((add, ablate), False, 0 * p + 4),
    ]:
        out = steer(Together(*parts, ordered=ordered), h)
        torch.testing.assert_close((out @ unit)[0], wanted[0], rtol=0, atol=1e-12)
