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

D = 12


def rows(n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=g, dtype=torch.float64) / D**0.5


SETTINGS: dict[str, dict[str, Any]] = {
    "ablate": {"reference": "negative_mean"},
    "add": {},
    "add_keeping_norm": {},
    "affine": {"gain": 0.5, "bias": 1.0},
    "clamp": {"low": 0.4, "high": 0.5},
    "low_rank": {"trained_on": "f" * 64},
    "rotate": {"by": None, "to": 30.0},
    "set_features": {
        "target": [2.0, 0.7],
        "threshold": [0.0, 0.1],
        "features": [7, 3],
        "trained_on": "f" * 64,
    },
}
TENSORS: dict[str, dict[str, torch.Tensor]] = {
    "low_rank": {"rotation": rows(3, 0), "weight": rows(3, 1), "bias": torch.ones(3).double()},
    "set_features": {"encoder": rows(2, 2), "bias": torch.ones(2).double(), "decoder": rows(2, 3)},
}
ALONG_ONE = ("ablate", "add", "affine", "clamp")
"""They take one direction, and move along it only."""
ON_A_LINE = set(SETTINGS) - {"add_keeping_norm"}
"""Their strength interpolates between the stream and the result."""
every_operator = pytest.mark.parametrize("name", sorted(SETTINGS))
every_rule = pytest.mark.parametrize(
    "rule", ["all", "prompt", "last_prompt", "generated", (0, -1), "mask"]
)


@pytest.fixture
def make(direction: Any) -> Any:
    """An operator of each name with its settings; the directions it takes may be replaced."""

    def made(name: str, directions: Any = None, **changes: Any) -> Any:
        n = 0 if name in TENSORS else 2 if name == "rotate" else 1
        given = [direction(i) for i in range(n)] if directions is None else directions
        settings = {**SETTINGS[name], **TENSORS.get(name, {})}
        sites = {"sites": [2]} if not given else {}
        return from_settings(name, given, settings, **{**sites, **changes})

    return made


def positions(rule: Any) -> Any:
    return torch.eye(3, 8).bool() if rule == "mask" else rule


def test_every_registered_operator_is_under_contract() -> None:
    assert OPERATORS.names() == tuple(sorted(SETTINGS)), "give a new operator its settings here"


@every_operator
def test_is_a_frozen_intervention(direction: Any, make: Any, name: str) -> None:
    made = make(name, positions="prompt", sites=[1, 0])
    assert isinstance(made, Intervention) and isinstance(made, OPERATORS[name])
    assert made.name == name and made.settings == SETTINGS[name]
    assert made.tensors.keys() == TENSORS.get(name, {}).keys()
    assert made.sites == (Site(0), Site(1)) and made.strength == 1
    assert made.positions == Positions("prompt") and made.fingerprint == direction().fingerprint
    with pytest.raises(FrozenInstanceError):
        made.strength = 2.0
    stronger = replace(made, strength=2.0)
    assert stronger.strength == 2 and stronger.settings == made.settings
    assert stronger.sites == made.sites and made.strength == 1
    assert str(made).startswith(name) and "resid_post@0" in str(made) and "prompt" in str(made)


@every_operator
def test_strength_0_selects_the_untouched_stream(make: Any, steer: Any, h: Any, name: str) -> None:
    made = make(name, strength=0)
    assert not made.lower(Site(2))
    assert steer(made, h) is h


@every_operator
@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_of_place_in_its_dtype_and_off_the_padding(
    make: Any, steer: Any, batch: Any, h: Any, name: str, rule: Any, dtype: Any
) -> None:
    x = h.to(dtype)
    x[~batch.mask] = float("nan")
    before = x.clone()
    made = make(name, positions=positions(rule))
    out = steer(made, x)
    assert torch.equal(x.nan_to_num(7), before.nan_to_num(7))
    assert out.dtype == dtype
    touched = made.positions.select(batch.absolute, batch.prompt_len, batch.rows)
    assert torch.equal(out[~touched].nan_to_num(7), before[~touched].nan_to_num(7))
    assert (out[touched] != before[touched]).any(-1).all() and touched.any()


@pytest.mark.parametrize("name", sorted(ON_A_LINE))
def test_strength_interpolates(make: Any, steer: Any, h: Any, name: str) -> None:
    full, half = (steer(make(name, strength=s), h) for s in (1.0, 0.5))
    torch.testing.assert_close(half, (h + full) / 2, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ALONG_ONE)
def test_only_moves_along_the_direction(
    direction: Any, make: Any, steer: Any, batch: Any, h: Any, name: str
) -> None:
    d = direction()
    moved = (steer(make(name, [d]), h) - h)[batch.mask]
    along = (moved @ d.unit.double())[:, None] * d.unit.double()
    torch.testing.assert_close(moved, along, rtol=0, atol=1e-5)
    assert along.abs().sum() > 0


@every_operator
def test_rows_at_slot_0_are_untouched(make: Any, steer: Any, h: Any, name: str) -> None:
    out = steer(make(name), h, slots=[1, 0, 1])
    assert torch.equal(out[1], h[1])
    assert not torch.equal(out[0], h[0])


@every_operator
def test_gradients_pass(make: Any, steer: Any, batch: Any, h: Any, name: str) -> None:
    x = h.clone()
    x[~batch.mask] = float("nan")
    x.requires_grad_()
    steer(make(name), x)[batch.mask].sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


@every_operator
def test_shared_checks(make: Any, name: str) -> None:
    for strength in (float("nan"), float("inf"), "2", True):
        with pytest.raises(InterventionError, match="strength is a finite number"):
            make(name, strength=strength)
    with pytest.raises(InterventionError, match="did you mean 'last_prompt'"):
        make(name, positions="last_promt")
    with pytest.raises(InterventionError, match=f"{name} was given no sites"):
        make(name, sites=[])
    with pytest.raises(InterventionError, match=r"not act at resid_post@0, but at resid_post@2"):
        make(name).lower(Site(0))
    if name not in TENSORS:
        with pytest.raises(InterventionError, match=f"{name} takes a Direction, got a Tensor"):
            make(name, [torch.ones(12)])


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_operators_of_matrices_name_their_sites(make: Any, name: str) -> None:
    with pytest.raises(InterventionError, match=f"{name} was given no sites; say where to act"):
        make(name, sites=None)


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
