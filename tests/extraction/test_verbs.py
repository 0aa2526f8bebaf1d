"""`extract`: one honest direction for each site and method."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import steerkit as sk
from steerkit.activations import Activations
from steerkit.errors import ActivationError, DirectionError, MethodError
from steerkit.extraction import METHODS, extract
from steerkit.protocols import ModelInfo

Make = Callable[..., Activations]
QUICK = {"n_permutations": 19, "n_random": 19, "progress": False}


class Reader:
    """A model that only reads out: token k is axis k."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info

    def read_out(self, vectors: Tensor) -> Tensor:
        return vectors

    def decode(self, tokens: list[int]) -> str:
        return f"token {tokens[0]}"


def test_every_site_and_method_has_its_direction(plant: Make) -> None:
    found = extract(plant(150, sites=3), METHODS.names(), **QUICK)
    assert [(str(d.site), d.method) for d in found] == [
        (f"resid_post@{layer}", name) for layer in range(3) for name in METHODS.names()
    ]
    for d in found:
        assert float(d.unit[0]) > 0.8 and d.unit.dtype == torch.float32
        assert d.polarity == 1
        assert d.scores is not None and d.scores.auc.value > 0.85
        assert d.scores.permutation.p == 0.05 and d.scores.family is not None
        assert d.scores.random.n == 19 and d.scores.shaped is not None


def test_scale_is_the_gap_between_the_class_means_along_the_unit(plant: Make) -> None:
    acts = plant(50, size=5.0)
    for d in extract(acts, METHODS.names(), **QUICK):
        projected = acts.at(0).double() @ d.unit.double()
        assert d.positive_mean == pytest.approx(float(projected[:50].mean()))
        assert d.negative_mean == pytest.approx(float(projected[50:].mean()))
        assert d.scale == pytest.approx(d.positive_mean - d.negative_mean) and d.scale > 0


def test_a_direction_that_reverses_out_of_sample_says_so(make: Make) -> None:
    """Two groups a side whose class gaps point opposite ways: each fold learns the wrong one."""
    wide = torch.tensor([[1.0, 0.0], [1.1, 0.0], [-0.5, 0.0], [-0.6, 0.0]])
    groups = ["a", "a", "b", "b"] * 2
    found = extract(make(wide, -wide, groups=groups), n_folds=2, **QUICK)[0]
    assert found.scores is not None and found.scores.auc.value < 0.5
    assert found.polarity == -1


def test_examples_are_the_prompts_that_project_highest_and_lowest(plant: Make) -> None:
    acts = plant(20)
    found = extract(acts, **QUICK)[0]
    projected = acts.at(0).double() @ found.unit.double()
    high, low = found.examples
    assert [p for _, p in high] == pytest.approx(sorted(projected.tolist(), reverse=True)[:5])
    assert [p for _, p in low] == pytest.approx(sorted(projected.tolist())[:5])
    assert high[0][0] == acts.prompts[int(projected.argmax())].text


def test_tokens_come_from_the_unembedding(plant: Make) -> None:
    acts = plant(30, size=8.0)
    found = extract(acts, model=Reader(acts.info), **QUICK)[0]
    order = found.unit.argsort(descending=True)
    towards, away = found.tokens
    assert towards[0] == "token 0" and len(towards) == len(away) == 8
    assert away[0] == f"token {int(order[-1])}"
    assert extract(acts, **QUICK)[0].tokens == ((), ())


def test_where_it_came_from_is_kept(plant: Make) -> None:
    acts = replace(plant(20), steering=("Add(...)",), provenance={"concept": "refusal"})
    found = extract(acts, "lda", seed=3, **QUICK)[0]
    about = found.provenance
    assert (found.concept, found.pooling, found.model) == ("refusal", "last", acts.info)
    assert about["contrast_sha256"] == "c0ffee" and about["seed"] == 3
    assert (about["n_prompts"], about["n_groups"], about["n_folds"]) == (40, 20, 5)
    assert (about["n_permutations"], about["n_random"]) == (19, 19)
    assert about["steering"] == ["Add(...)"] and "cov^-1" in about["estimates"]
    assert about["versions"]["steerkit"] == sk.__version__
    assert extract(acts, concept="other", **QUICK)[0].concept == "other"


def test_a_result_is_reproduced_by_its_seed(plant: Make) -> None:
    acts = plant(20, sites=2)
    first, second = (extract(acts, METHODS.names(), seed=5, **QUICK) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.unit, b.unit) and a.scores == b.scores


def test_activations_are_left_as_they_were(plant: Make) -> None:
    acts = plant(15)
    before = acts.values.clone()
    extract(acts, METHODS.names(), **QUICK)
    assert torch.equal(acts.values, before)


def test_swapping_the_sides_flips_the_direction_and_keeps_its_score(plant: Make) -> None:
    acts = plant(30, size=1.0)
    swapped = replace(acts, labels=tuple(1 - y for y in acts.labels))
    for name in METHODS.names():
        a, b = extract(acts, name, **QUICK)[0], extract(swapped, name, **QUICK)[0]
        assert torch.allclose(a.unit, -b.unit, atol=1e-4)
        assert a.scores is not None and b.scores is not None
        assert a.scores.auc.value == pytest.approx(b.scores.auc.value, abs=0.03)


def test_without_folds_there_is_a_direction_and_no_score(make: Make) -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 0.2]])
    found = extract(make(x[:1], x[1:]), n_folds=0, progress=False)[0]
    assert found.scores is None and found.polarity == 0
    assert found.provenance["n_folds"] == 0


def test_without_draws_the_nulls_are_empty(plant: Make) -> None:
    scores = extract(plant(10), n_permutations=0, n_random=0, progress=False)[0].scores
    assert scores is not None and scores.permutation.n == scores.random.n == 0


def test_an_unknown_method_is_named_before_anything_runs(plant: Make) -> None:
    with pytest.raises(
        MethodError, match=r"named 'logstic'; did you mean 'logistic'\? Known: ccs, lda"
    ):
        extract(plant(5), ["mean_difference", "logstic"], progress=False)
    with pytest.raises(MethodError, match="no extraction method given; known: ccs, lda, leace"):
        extract(plant(5), [], progress=False)


def test_numbers_that_make_no_sense(plant: Make) -> None:
    with pytest.raises(MethodError, match=r"n_folds is 0 \(no scoring\) or at least 2; got 1"):
        extract(plant(5), n_folds=1, progress=False)
    with pytest.raises(MethodError, match="null draws are not negative; got -1 and 199"):
        extract(plant(5), n_permutations=-1, progress=False)


def test_another_model_than_the_one_captured_from(plant: Make, model_info: Callable) -> None:
    other = Reader(model_info(16, fingerprint="e" * 64))
    with pytest.raises(DirectionError, match=r"captured on toy \(ffff.*give the model that they"):
        extract(plant(5), model=other, progress=False)


def test_a_bad_site_is_named_before_any_site_is_fitted(make: Make) -> None:
    x = torch.randn(10, 2, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 1.0
    with pytest.raises(ActivationError, match="all 10 rows at resid_post@1 are the same"):
        extract(make(x[:5], x[5:]), progress=False)


def test_the_bar_goes_to_stderr_and_can_be_silenced(
    plant: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    acts = plant(6)
    extract(acts, **QUICK)
    assert capsys.readouterr() == ("", "")
    extract(acts, n_permutations=1, n_random=1)
    out, err = capsys.readouterr()
    assert out == "" and "extract" in err
