"""`probe`: false alarms, power, errors, and what it holds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from steerkit.activations import Activations
from steerkit.errors import ActivationError, DirectionError, MethodError
from steerkit.probing import probe
from steerkit.probing.arms import Arms
from steerkit.probing.candidates import recipes
from steerkit.probing.nested import crossed
from steerkit.probing.verbs import _folds, one_row_each
from steerkit.statistics import row_draws

QUICK = {"n_permutations": 19, "n_random": 19, "progress": False}


def p_value(acts: Activations, methods="ridge", n: int = 19, seed: int = 0) -> float:
    """The permutation test alone: 3 folds, three penalties."""
    data = one_row_each(acts)
    fold_of = _folds(data, 3, seed)
    penalties = [1.0, 100.0, 10000.0] if methods == "ridge" else [1e-3, 1e-1]
    chosen = recipes(methods, penalties)
    draws = row_draws(data.groups, n_resamples=1)
    arms = Arms(data, crossed(fold_of), fold_of, draws, chosen, seed)
    return arms.permuted(n, 0.0, progress=False).p


def unpaired(make, seed: int, n: int = 24) -> Activations:
    """Templates of two prompts with one label each, and prompts of a template alike."""
    draw = torch.Generator().manual_seed(seed)
    template = torch.randn(n // 2, 2, 4, generator=draw).repeat_interleave(2, 0)
    values = template + 0.5 * torch.randn(n, 2, 4, generator=draw)
    labels = [1, 1, 0, 0] * (n // 4)
    return make(values, labels, [f"template{i // 2}" for i in range(n)], seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "templates of one label"])
def test_false_alarms_over_1000_null_draws(plant, make, kind):
    """At 5%, inside the 99.9% binomial interval, two sites and three penalties to choose from."""
    alarms = 0
    for seed in range(1000):
        acts = plant(12, 4, seed=seed) if kind == "pairs" else unpaired(make, seed)
        alarms += p_value(acts, seed=seed) <= 0.05
    low, high = binom.interval(0.999, 1000, 0.05)
    assert low <= alarms <= high


def test_false_alarms_of_looser_logistic_fits(plant):
    """200 null draws; the observed labels are fitted as loosely as the permuted ones."""
    alarms = sum(p_value(plant(12, 4, seed=s), "logistic", seed=s) <= 0.05 for s in range(200))
    low, high = binom.interval(0.999, 200, 0.05)
    assert low <= alarms <= high


def test_power_on_a_planted_effect(plant):
    """24 pairs, a shift by 1.2 standard deviations of one side, at one of two sites."""
    size = 1.2 * 2**0.5  # a row is its own noise and its pair's
    found = sum(p_value(plant(24, 4, size=size, at=1, seed=s), seed=s) <= 0.05 for s in range(100))
    assert found >= 80


def test_what_was_planted_is_found_and_nothing_else_is(plant):
    there = probe(plant(40, size=2.0, at=1), **QUICK)
    assert there.found and there.auc.low > 0.7 and there.permutation.p == 0.05
    assert {str(c.candidate.site) for c in there.choices} == {"resid_post@1"}
    assert there.text is not None and there.text.state(0.05) == "beaten"
    nothing = probe(plant(40), **QUICK)
    assert nothing.verdict == "nothing" and "not told from chance" in nothing.sentence()


def test_permuted_labels_go_through_the_selection(plant):
    """Two permuted draws of one run equal two runs on data whose labels were so permuted."""
    acts = plant(16, size=0.5)
    data = one_row_each(acts)
    fold_of = _folds(data, 4, 0)
    chosen = recipes("ridge", None)
    arms = Arms(data, crossed(fold_of), fold_of, row_draws(data.groups), chosen, 0)
    from steerkit.statistics import permutations

    exchanged = permutations(data.labels, data.groups, 2, np.random.default_rng(0), within=fold_of)
    expected = []
    for column in exchanged.T:
        other = replace(acts, labels=tuple(int(v) for v in column))
        assert (_folds(one_row_each(other), 4, 0) == fold_of).all()
        expected.append(
            probe(other, "ridge", n_folds=4, n_permutations=0, n_random=0, progress=False).auc.value
        )
    assert arms.permuted(2, 0.0, progress=False).mean == pytest.approx(np.mean(expected))


def test_probabilities_of_a_known_logistic_model_are_calibrated(make):
    """Labels drawn from sigmoid(1.5 x): nothing is better calibrated than the truth."""
    draw = torch.Generator().manual_seed(5)
    values = torch.randn(800, 1, 3, generator=draw)
    p = torch.sigmoid(1.5 * values[:, 0, 0])
    labels = (torch.rand(800, generator=draw) < p).int().tolist()
    acts = make(values, labels, [f"prompt{i}" for i in range(800)])
    report = probe(acts, **{**QUICK, "n_permutations": 0})
    assert np.abs(np.array(report.probabilities) - p.numpy()).mean() < 0.03
    found = report.calibration
    assert found.error_null.p > 0.05
    irreducible = float((p * (1 - p)).mean())
    assert found.brier.low < irreducible < found.brier.high
    assert found.brier.high < found.brier_constant.low


def test_an_untrained_model_that_matches_exposes_the_probe(plant):
    acts = plant(40, size=2.5, at=1)
    noise = 0.01 * torch.randn(acts.values.shape, generator=torch.Generator().manual_seed(1))
    twin = replace(acts, values=acts.values + noise, info=replace(acts.info, fingerprint="0" * 64))
    found = probe(acts, "ridge", untrained=twin, **QUICK)
    assert found.verdict == "reads_topic" and found.exposed_by == ("untrained model",)
    assert "not above an untrained model" in found.sentence()
    blank = replace(twin, values=plant(40, seed=9).values)
    found = probe(acts, "ridge", untrained=blank, **QUICK)
    assert found.verdict == "stands" and not found.exposed_by


def test_words_that_give_the_label_away_expose_the_probe(plant):
    says = [("river", "shines"), ("train", "drives")]
    texts = [f"{thing} {i + 10} {does}" for thing, does in says for i in range(40)]
    found = probe(plant(40, size=2.5, texts=texts), "ridge", **QUICK)
    assert found.text is not None and found.text.auc.value == 1.0
    assert found.reads_topic and found.exposed_by == ("words alone",)


def test_templates_that_folds_split_are_noted(plant):
    """A statement's twin of the other label is in another fold: the words mislead."""
    texts = [f"thing{i} is thing{i}" for i in range(40)] * 2
    acts = replace(plant(40, size=2.5, texts=texts), groups=tuple(f"p{i}" for i in range(80)))
    found = probe(acts, "ridge", **QUICK)
    assert found.text is not None and found.text.auc.high < 0.5
    assert any("give each template a group" in note for note in found.notes)
    grouped = replace(acts, groups=tuple(f"thing{i}" for i in range(40)) * 2)
    assert not any("template" in note for note in probe(grouped, "ridge", **QUICK).notes)


def test_a_length_that_gives_the_label_away_exposes_the_probe(plant):
    rng = np.random.default_rng(0)
    words = "red blue green cat dog bird".split()
    texts = [" ".join(rng.choice(words, 9 if i < 40 else 6)) for i in range(80)]
    found = probe(plant(40, size=2.5, texts=texts), "ridge", **QUICK)
    assert found.length.auc.value > 0.95 and "length alone" in found.exposed_by
    assert found.reads_topic
    even = probe(plant(40, size=2.5), "ridge", **QUICK)
    assert even.length.auc.low < 0.5 and "length alone" not in even.exposed_by


def test_too_few_prompts_are_inconclusive(plant):
    """Words are at chance on average, and six pairs cannot tell a good probe from them."""
    found = probe(plant(7, size=3.0, seed=3), "mean_difference", n_folds=3, **QUICK)
    words = found.text
    assert words is not None
    if words.state(0.05) == "undecided":
        assert found.verdict == "inconclusive"
        assert "not shown to be above the words alone" in found.sentence()


def test_the_order_of_rows_does_not_matter(plant):
    acts = plant(20, size=1.0)
    shuffled = acts.select(torch.randperm(40, generator=torch.Generator().manual_seed(0)))
    one, other = (probe(a, "ridge", **QUICK).to_json() for a in (acts, shuffled))
    assert one == other


def test_the_result_is_json_a_table_and_html(plant):
    found = probe(plant(20, size=2.0, categories=["<a>", "b"] * 20), "ridge", **QUICK)
    data = json.loads(json.dumps(found.to_json()))
    assert data["verdict"] == found.verdict and len(data["choices"]) == 5
    table = found.table()
    for row in ("probe", "words alone", "random directions", "labels permuted", "left out: b"):
        assert f"| {row} |" in table
    html = found._repr_html_()
    assert "&lt;a&gt;" in html and "<a>" not in html
    assert found.sentence() in repr(found)


@pytest.mark.parametrize(
    ("change", "options", "error", "said"),
    [
        ({"labels": ()}, {}, ActivationError, "no labels"),
        ({"labels": (1,) * 16}, {}, ActivationError, "all 16 prompts are positive"),
        ({}, {"n_folds": 9}, ActivationError, "8 groups.*9 folds need 9.*smaller n_folds"),
        ({"groups": ("a", "b", "c", "d") * 4}, {}, ActivationError, "belong to 4 groups"),
        ({"values": torch.ones(16, 2, 4)}, {}, ActivationError, "are the same"),
        ({}, {"n_folds": 2}, MethodError, "n_folds is 3 or more"),
        ({}, {"n_permutations": -1}, MethodError, "not negative"),
        ({}, {"margin": 0.7}, MethodError, "margin"),
        ({}, {"methods": "logit"}, MethodError, "no extraction method named 'logit'"),
    ],
)
def test_bad_input_says_what_to_do(plant, change, options, error, said):
    acts = replace(plant(8, 4, size=1.0), **change)
    with pytest.raises(error, match=said):
        probe(acts, **{"methods": "ridge", **QUICK, **options})


def test_values_that_are_not_finite_and_means_that_are_equal_are_refused(plant):
    acts = plant(8, 4, size=1.0)
    values = acts.values.clone()
    values[3, 1, 0] = float("nan")
    with pytest.raises(ActivationError, match="resid_post@1 is NaN or infinite"):
        probe(replace(acts, values=values, checked=True), "ridge", **QUICK)
    values = acts.values.clone()
    values[8:] = values[:8].flip(0)
    with pytest.raises(DirectionError, match="class means at resid_post@0 are the same"):
        probe(replace(acts, values=values), "ridge", **QUICK)


def test_several_rows_a_prompt_are_refused(plant):
    acts = replace(plant(8, 4), prompt_index=torch.arange(16) // 2)
    with pytest.raises(ActivationError, match="one row a prompt; got 16 rows of 8 prompts"):
        probe(acts, **QUICK)
