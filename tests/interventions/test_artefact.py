"""Interventions survive a file, and refuse another model's stream."""

from pathlib import Path
from typing import Any

import pytest
import torch

from steerkit.errors import DirectionError, OutputError
from steerkit.files import read_tensors, write_tensors
from steerkit.interventions import (
    Ablate,
    Add,
    AddKeepingNorm,
    Affine,
    Clamp,
    Gated,
    InOrder,
    LowRank,
    Rotate,
    SetFeatures,
    When,
    load_steering,
    rebuilt,
    save_steering,
)


def test_a_file_gives_back_the_same_programs(
    direction: Any, steer: Any, h: Any, tmp_path: Path
) -> None:
    a, b = direction(0), direction(1)
    saved = [
        Add(a, -1.5, positions=torch.eye(3, 8).bool(), sites=["resid_pre@1", 3]),
        Ablate([a, b], "negative_mean", 0.5, positions="last_prompt"),
        Clamp(b, high="positive_mean", positions=(0, -2)),
        Affine(a, 0.5, 0.25, positions="generated"),
    ]
    path = save_steering(tmp_path / "best.safetensors", saved)
    loaded = load_steering(path)
    assert [str(i) for i in loaded] == [str(i) for i in saved]
    for before, after in zip(saved, loaded, strict=True):
        assert type(after) is type(before)
        assert (after.sites, after.strength, after.settings) == (
            before.sites,
            before.strength,
            before.settings,
        )
        assert torch.equal(steer(after, h), steer(before, h))
        assert [d.to_json() for d in after.directions] == [d.to_json() for d in before.directions]


def matrices(seed: int) -> torch.Tensor:
    return torch.randn(2, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def nested(direction: Any) -> list[Any]:
    """Interventions within interventions, with matrices and masks of their own."""
    a, b, c = (direction(i) for i in range(3))
    masked = Add(b, positions=torch.eye(3, 8).bool())
    features = SetFeatures(
        matrices(2), torch.ones(2), matrices(3), [1.0, 2.0], [0.0, 0.5], [8, 4], sites=[2]
    )
    return [
        Rotate([a, b], to=20),
        LowRank(matrices(0), matrices(1), sites=[2], trained_on="f" * 64),
        InOrder(Ablate(a), masked.when(When(c, below=0.5, on="mean_prompt")), features),
        AddKeepingNorm(a, 0.5, sites=[3]).when(
            When(b, above="negative_mean", measure="projection", site=1)
        ),
        InOrder(Ablate(a), Add(b)).when(When(c, above=-0.3)),
    ]


def test_conditions_sequences_and_matrices_survive_too(
    nested: Any, steer: Any, h: Any, tmp_path: Path
) -> None:
    loaded = load_steering(save_steering(tmp_path / "nested.safetensors", nested))
    assert [str(i) for i in loaded] == [str(i) for i in nested]
    for before, after in zip(nested, loaded, strict=True):
        assert type(after) is type(before) and after.sites == before.sites
        assert after.fingerprint == before.fingerprint
        assert torch.equal(steer(after, h), steer(before, h))
        latches = [
            [latch.name for site in i.sites for latch in i.lower(site).latches]
            for i in (before, after)
        ]
        assert latches[0] == latches[1]
    assert isinstance(loaded[3], Gated) and isinstance(loaded[4].intervention, InOrder)


def test_matrices_alone_need_no_directions(steer: Any, h: Any, tmp_path: Path) -> None:
    made = LowRank(matrices(0), matrices(1), sites=[2])
    (loaded,) = load_steering(save_steering(tmp_path / "low.safetensors", made))
    assert torch.equal(steer(loaded, h), steer(made, h)) and loaded.directions == ()


def test_rebuilt_at_another_strength_or_on_other_directions(
    nested: Any, direction: Any, steer: Any, h: Any
) -> None:
    for intervention in nested:
        same = rebuilt(intervention)
        assert str(same) == str(intervention)
        assert torch.equal(steer(same, h), steer(intervention, h))
        off = rebuilt(intervention, strength=0.0)
        assert off.strength == 0 and not any(off.lower(site) for site in off.sites)
        moved = rebuilt(intervention, on=lambda d: -d)
        assert all(
            torch.equal(m.unit, -d.unit)
            for m, d in zip(moved.directions, intervention.directions, strict=True)
        )
    gated = rebuilt(nested[3], strength=2.0)
    assert isinstance(gated, Gated) and gated.strength == 2
    assert gated.condition.to_json() == nested[3].condition.to_json()


def test_one_operator_needs_no_list(direction: Any, tmp_path: Path) -> None:
    path = save_steering(tmp_path / "one.safetensors", Add(direction()))
    (add,) = load_steering(path)
    assert isinstance(add, Add)


def test_another_models_steering_is_refused(direction: Any, tmp_path: Path) -> None:
    path = save_steering(tmp_path / "s.safetensors", Add(direction()))

    class Other:
        info = direction(fingerprint="0" * 64).model

    with pytest.raises(DirectionError, match="taken on planted"):
        load_steering(path, model=Other())  # type: ignore[arg-type]
    assert load_steering(path, model=Other(), force=True)  # type: ignore[arg-type]


def test_files_of_another_kind(direction: Any, tmp_path: Path) -> None:
    path = direction().save(tmp_path / "direction.safetensors")
    with pytest.raises(OutputError, match="holds directions, not steering"):
        load_steering(path)
    with pytest.raises(OutputError, match="no interventions to save"):
        save_steering(tmp_path / "none.safetensors", [])
    assert not (tmp_path / "none.safetensors").exists()


def test_foreign_interventions_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="only steerkit's own operators can be saved, got a dict"):
        save_steering(tmp_path / "x.safetensors", [{}])  # type: ignore[list-item]


def test_a_garbled_header_is_named(direction: Any, tmp_path: Path) -> None:
    good = save_steering(tmp_path / "good.safetensors", Add(direction()))
    tensors, header = read_tensors(good, "steering")
    for lost in ("operator", "strength", "directions", "sites"):
        entry = {k: v for k, v in header["interventions"][0].items() if k != lost}
        write_tensors(tmp_path / "bad", "steering", tensors, {**header, "interventions": [entry]})
        with pytest.raises(OutputError, match=f"not a complete steering file.*'{lost}'"):
            load_steering(tmp_path / "bad")
    entry = {**header["interventions"][0], "directions": [5]}
    write_tensors(tmp_path / "bad", "steering", tensors, {**header, "interventions": [entry]})
    with pytest.raises(OutputError, match=r"not a complete steering file.*out of range"):
        load_steering(tmp_path / "bad")
    good.write_bytes(good.read_bytes()[:-9])
    with pytest.raises(OutputError):
        load_steering(good)
