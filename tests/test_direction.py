"""Directions: artefacts that refuse what they should, and come back byte for byte."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steerkit.direction import Direction, Directions, ProbeScores
from steerkit.errors import DirectionError, OutputError
from steerkit.files import write_tensors
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.statistics import Estimate, Null

INFO = ModelInfo("toy", "llama", 4, 3, 50, 64, ("resid_post",), "float32", "cpu", "a" * 64)
SCORES = ProbeScores(
    auc=Estimate(0.9, 0.8, 0.95, 40, "AUC"),
    permutation=Null("permuted", 0.5, 0.6, 0.65, 0.005, 199),
    random=Null("random", 0.55, 0.7, 0.75, 0.005, 199),
    text=Estimate(0.6, 0.5, 0.7, 40, "AUC"),
    shaped=Null("shaped", 0.55, 0.7, 0.75, 0.005, 199),
    family=Null("family", 0.6, 0.7, 0.75, 0.01, 199),
)


class Loaded:
    """Whatever has an `info`."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info


def direction(**more: Any) -> Direction:
    given: dict[str, Any] = {
        "unit": torch.tensor([0.6, 0.8, 0.0]),
        "scale": 2.0,
        "site": Site(1),
        "method": "lda",
        "concept": "joy",
        "positive_mean": 1.5,
        "negative_mean": -0.5,
        "model": INFO,
        "pooling": "last",
        "polarity": 1,
        "scores": SCORES,
        "examples": ((("up", 3.0),), (("down", -2.5),)),
        "tokens": ((" happy",), (" sad", "ü")),
        "provenance": {"seed": 0, "versions": {"torch": "2"}},
    }
    return Direction(**{**given, **more})


def same(a: Direction, b: Direction) -> bool:
    fields = {**vars(a), "unit": a.unit.tolist()}, {**vars(b), "unit": b.unit.tolist()}
    return fields[0] == fields[1]


# The vector


def test_the_steering_vector_is_scale_times_unit() -> None:
    d = direction()
    assert torch.allclose(d.vector, torch.tensor([1.2, 1.6, 0.0]))
    x = torch.tensor([[1.0, 2.0, 9.0]])
    assert d.project(x).tolist() == pytest.approx([2.2])
    assert d.project(x.to(torch.bfloat16)).dtype == torch.float32
    assert d.fingerprint == "a" * 64


def test_a_unit_is_kept_as_float32_and_detached() -> None:
    given = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64, requires_grad=True)
    d = direction(unit=given)
    assert d.unit.dtype == torch.float32 and not d.unit.requires_grad


def test_the_wrong_norm_is_refused() -> None:
    with pytest.raises(DirectionError, match=r"norm 5, expected 1; divide by the norm and put"):
        direction(unit=torch.tensor([3.0, 4.0, 0.0]))
    with pytest.raises(DirectionError, match="has norm nan"):
        direction(unit=torch.tensor([float("nan"), 0, 0]))


def test_the_wrong_width_is_refused() -> None:
    with pytest.raises(DirectionError, match=r"direction of toy has shape \(3,\); got \(2,\)"):
        direction(unit=torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(DirectionError, match=f"at resid_post@1 has scale {scale}: the class"):
        direction(scale=scale)


def test_minus_swaps_what_there_is_to_swap() -> None:
    d = direction()
    n = -d
    assert torch.equal(n.unit, -d.unit) and n.scale == d.scale
    assert (n.positive_mean, n.negative_mean) == (0.5, -1.5)
    assert n.positive_mean - n.negative_mean == n.scale
    assert n.concept == "not joy"
    assert n.tokens == ((" sad", "ü"), (" happy",))
    # Projections change sign with the unit, so each list is still of its own projections.
    assert n.examples == ((("down", 2.5),), (("up", -3.0),))
    assert same(-n, d)


def test_the_same_vector_elsewhere() -> None:
    assert str(direction().at("resid_pre@2").site) == "resid_pre@2"
    assert direction().at(3).site == Site(3)


# Another model


def test_another_model_is_refused_unless_forced() -> None:
    other = replace(INFO, name="other", fingerprint="b" * 64)
    with pytest.raises(
        DirectionError,
        match=r"taken on toy \(aaaaaaaaaaaa\), not on other \(bbbbbbbbbbbb\); extract it again "
        r"there, or pass force=True to study transfer",
    ):
        direction().check(other)
    direction().check(other, force=True)
    direction().check(INFO)


def test_other_processing_of_the_same_weights_is_named() -> None:
    folded = replace(INFO, fingerprint="c" * 64, processing="folded, centred")
    with pytest.raises(DirectionError, match=r"other processing \(raw against folded, centred\)"):
        direction().check(folded)


def test_another_width_is_refused_even_if_forced() -> None:
    with pytest.raises(DirectionError, match=r"has width 3 \(toy\); wide has 8"):
        direction().check(replace(INFO, name="wide", d_model=8), force=True)


# Files


def test_a_saved_direction_comes_back_whole_and_byte_for_byte(tmp_path: Path) -> None:
    bare = direction(scores=None, polarity=0, examples=((), ()), tokens=((), ()), provenance={})
    both = Directions((direction(), bare))
    first = both.save(tmp_path / "a.safetensors")
    again = Directions.load(first, model=Loaded(INFO))
    assert len(again) == 2
    assert all(same(a, b) for a, b in zip(again, both, strict=True))
    assert again.save(tmp_path / "b.safetensors").read_bytes() == first.read_bytes()


def test_the_file_holds_tensors_and_json_and_no_pickle(tmp_path: Path) -> None:
    raw = direction().save(tmp_path / "d.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert raw[8:9] == b"{" and len(raw) == 8 + length + 3 * 4
    assert b"pickle" not in raw and not raw.startswith(b"\x80")


def test_scores_of_older_files_lack_the_newer_nulls() -> None:
    old = {k: v for k, v in SCORES.to_json().items() if k not in ("shaped", "family")}
    assert ProbeScores.from_json(old) == replace(SCORES, shaped=None, family=None)


def test_loading_onto_another_model_is_refused_unless_forced(tmp_path: Path) -> None:
    path = direction().save(tmp_path / "d.safetensors")
    other = Loaded(replace(INFO, name="other", fingerprint="b" * 64))
    with pytest.raises(DirectionError, match=r"taken on toy .* not on other"):
        Direction.load(path, model=other)
    assert same(Direction.load(path, model=other, force=True), direction())


def test_several_are_not_one(tmp_path: Path) -> None:
    path = Directions((direction(), direction())).save(tmp_path / "d.safetensors")
    with pytest.raises(DirectionError, match=r"holds 2 directions; use Directions\.load"):
        Direction.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no directions file at"):
        Directions.load(tmp_path / "none.safetensors")
    other = write_tensors(tmp_path / "x.safetensors", "activations", {"a": torch.ones(1)}, {})
    with pytest.raises(OutputError, match="holds activations, not directions"):
        Directions.load(other)
    (tmp_path / "half.safetensors").write_bytes(
        direction().save(tmp_path / "d.safetensors").read_bytes()[:-4]
    )
    with pytest.raises(OutputError, match="not a complete safetensors file"):
        Directions.load(tmp_path / "half.safetensors")


def test_nothing_cannot_be_saved_or_chosen_from(tmp_path: Path) -> None:
    with pytest.raises(DirectionError, match="no directions to save"):
        Directions(()).save(tmp_path / "d.safetensors")
    with pytest.raises(DirectionError, match="no directions to choose from"):
        _ = Directions(()).best


# Several


def test_one_is_found_by_site_and_method() -> None:
    lda, mean, later = direction(), direction(method="mean_difference"), direction(site=Site(2))
    found = Directions((lda, mean)) + Directions((later,))
    assert found.at(2) is later and found.at("resid_post@1", "lda") is lda
    assert len(found[1:]) == 2 and found[0] is lda
    with pytest.raises(DirectionError, match="2 directions at resid_post@1; there are: lda resid"):
        found.at(1)
    with pytest.raises(DirectionError, match="0 directions at resid_post@3 by pca; there are"):
        found.at(3, "pca")


def test_the_best_has_the_highest_auc_and_of_equals_comes_first() -> None:
    better = replace(SCORES, auc=Estimate(0.95, 0.9, 1.0, 40, "AUC"))
    first, second = direction(scores=better), direction(scores=better, site=Site(2))
    unscored = direction(scores=None)
    assert Directions((unscored, direction(), first, second)).best is first


def test_text_forms_say_what_it_is() -> None:
    assert str(direction()) == "lda resid_post@1"
    assert repr(direction()) == (
        "Direction('joy', lda, resid_post@1, scale 2, AUC 0.9 [0.8, 0.95])"
    )
    assert repr(Directions((direction(),))) == "Directions(1: lda resid_post@1)"
