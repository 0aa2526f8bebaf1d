"""BiasLens on planted geometry, and its parts against hand-computed cases."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import steerkit as sk
from steerkit.concepts import answer_gaps, bias_lens, spearman
from steerkit.concepts.cavs import fit_cavs
from steerkit.datasets.occupations import TEMPLATES, occupation_concepts, sex_concepts
from steerkit.datasets.swapped import swapped
from steerkit.errors import MethodError, PromptError
from steerkit.extraction.training import Training
from steerkit.organisms import occupations, pronoun_prompts
from steerkit.prompts import Prompt

RATE = {o.name: o.rate for o in occupations()}
SOME = sorted(RATE, key=RATE.__getitem__)[::3]


@pytest.fixture(scope="module")
def found():
    model = sk.load("organism:aligned")
    targets = {name: c for name, c in occupation_concepts(n=2).items() if name in SOME}
    return bias_lens(
        model, targets, sex_concepts(n=4), sites=[1, 2, 3],
        n_resamples=40, n_permutations=199, n_random=999, progress=False,
    )  # fmt: skip


def test_biases_follow_the_planted_rates_and_what_the_model_does(found):
    model = sk.load("organism:aligned")
    asked = {o: [Prompt(p, template="raw") for p in pronoun_prompts(o)] for o in SOME}
    behaviour = answer_gaps(model, asked, ("she", "he"))
    planted = found.agreement({name: RATE[name] for name in SOME})
    assert planted.n == len(SOME) == 14 and planted.low > 0
    assert found.agreement(behaviour).low > 0
    assert spearman([behaviour[n] for n in SOME], [RATE[n] for n in SOME]).value > 0.9
    ends = found[SOME[0]].signed.value, found[SOME[-1]].signed.value
    assert ends[0] < 0 < ends[1]
    assert min(found.between_aucs) > 0.8 and len(found[SOME[0]].passed) == 3


def test_all_occupations_rank_as_planted():
    """What is claimed over five seeds, on the one that ships."""
    found = bias_lens(
        sk.load("organism:aligned"), occupation_concepts(), sex_concepts(), sites=[1, 2, 3],
        n_resamples=0, n_permutations=0, n_random=0, progress=False,
    )  # fmt: skip
    agreement = found.agreement(RATE)
    assert agreement.n == 40 and agreement.value > 0.8 and agreement.low > 0.6


def test_a_result_tells_itself(found):
    assert json.loads(json.dumps(found.to_json()))["references"] == ["women", "men"]
    assert found.ranked[0].signed.value == max(row.signed.value for row in found.targets)
    assert "towards women (+)" in found.table() and "cosines" in found.summary()
    assert "199 draws could find none of 14 targets" in found.summary(), "14 / 200 > 5%"
    row = found[SOME[0]]
    assert row.signed.low <= row.signed.high
    assert row.signed.value == pytest.approx(np.mean(row.by_site))
    assert row.unsigned.value == pytest.approx(np.mean(np.abs(row.by_site)))
    assert row.p == max(row.exchanged.p, row.random.p) and row.p_adjusted >= row.p
    with pytest.raises(MethodError, match="no target"):
        found["nobody"]
    with pytest.raises(MethodError, match="no behaviour of"):
        found.agreement({})


def test_the_bias_is_the_difference_of_cosines_of_mean_differences(found):
    model, name = sk.load("organism:aligned"), SOME[5]
    one, other = sex_concepts(n=4)
    units = []
    for contrast in (occupation_concepts(n=2)[name], one, other):
        acts = sk.capture(model, contrast, sites=[2], progress=False)
        y, x = torch.tensor(acts.labels), acts.values[:, 0].double()
        gap = x[y == 1].mean(0) - x[y == 0].mean(0)
        units.append(gap / gap.norm())
    expected = float(units[0] @ units[1] - units[0] @ units[2])
    assert found[name].by_site[1] == pytest.approx(expected, abs=1e-6)
    assert found.reference_cosines[1] == pytest.approx(float(units[1] @ units[2]), abs=1e-6)


def test_exchanging_references_turns_the_sign(found):
    model, name = sk.load("organism:aligned"), SOME[0]
    targets = {name: occupation_concepts(n=2)[name]}
    turned = bias_lens(
        model, targets, sex_concepts(n=4)[::-1], sites=[1, 2, 3],
        n_resamples=0, n_permutations=0, n_random=0, progress=False,
    )  # fmt: skip
    assert turned[name].signed.value == pytest.approx(-found[name].signed.value, abs=1e-9)


def test_references_that_cannot_be_told_apart_pass_no_gate():
    """Halves of one group of people: unseen words are at chance, so no site counts."""
    model = sk.load("organism:aligned")
    people = [f"the {name}" for name in RATE]
    one, other = (
        swapped(n, w, people[20:], TEMPLATES, n=4)
        for n, w in (("ones", people[:20:2]), ("others", people[1:20:2]))
    )
    target = {"x": swapped("x", [people[30]], people[20:], TEMPLATES)}
    found = bias_lens(
        model, target, (one, other), n_resamples=0, n_permutations=9, n_random=9, progress=False
    )
    assert max(found.between_aucs) < 0.8 and found["x"].passed == ()
    assert np.isnan(found["x"].signed.value) and not found["x"].found
    assert "pass the gate nowhere" in found.summary()


def test_another_representation_keeps_plain_cavs_beside_it(tiny_model):
    class Halved:
        name = "first half of the stream"

        def __call__(self, site, cavs):
            return cavs.weights[:16]

    templates = [f"{a} {{w}} {b}" for a in ("the", "a", "one") for b in ("was sad", "is happy")]
    words = ["cat", "dog", "bird", "house", "tree", "river", "film", "book"]
    target = {"cat": swapped("cat", ["cat"], words[4:], templates)}
    references = (
        swapped("dogs", ["dog"], words[4:], templates),
        swapped("birds", ["bird"], words[4:], templates),
    )
    few = {"n_resamples": 5, "n_permutations": 5, "n_random": 5, "gate": 0.0, "progress": False}
    both = bias_lens(tiny_model, target, references, represent=Halved(), **few)
    plain = bias_lens(tiny_model, target, references, **few)
    assert both.representation == Halved.name and both.ablation is not None
    assert both.ablation["cat"].by_site == plain["cat"].by_site
    assert both["cat"].by_site != plain["cat"].by_site


@pytest.mark.parametrize("method", ["logistic", "mean_difference"])
def test_weights_of_rows_are_copies_of_rows(method):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=rng).double()
    y = (x[:, 0] + 0.5 * torch.randn(30, generator=rng) > 0).double()
    counts = torch.randint(0, 4, (30, 1), generator=rng).double()
    index = torch.arange(30).repeat_interleave(counts[:, 0].long())
    fit = lambda x, y, w, c: fit_cavs(  # noqa: E731
        Training.of(x, [str(i) for i in range(len(x))]), y, w, method=method, c=c, tolerance=1e-10
    )
    weighted = fit(x, y[:, None], counts, 1.0)
    copied = fit(x[index], y[index, None], torch.ones(len(index), 1), 1.0)
    cosine = torch.cosine_similarity(weighted.weights[:, 0], copied.weights[:, 0], dim=0)
    assert cosine > (0.9999 if method == "mean_difference" else 0.99)
    if method == "mean_difference":
        middle = (x[index][y[index] == 1].mean(0) + x[index][y[index] == 0].mean(0)) / 2
        assert float(middle @ weighted.weights[:, 0] + weighted.biases[0]) == pytest.approx(0)


def test_spearman_and_its_interval():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(40)
    y = x + rng.standard_normal(40)
    assert spearman(x, y).value == pytest.approx(spearmanr(x, y).statistic)
    assert spearman(x, -x).value == -1
    # r = 0.85 of 40 concepts is known to about +- 0.1, of 10 it is next to nothing.
    inside = 0
    for _ in range(400):
        a = rng.standard_normal(40)
        b = 0.7 * a + np.sqrt(1 - 0.49) * rng.standard_normal(40)
        estimate = spearman(a, b)
        inside += estimate.low <= 6 / np.pi * np.arcsin(0.7 / 2) <= estimate.high
    assert 0.92 <= inside / 400 <= 0.98
    with pytest.raises(MethodError, match="at least 4 pairs"):
        spearman([1, 2, 3], [1, 2, 3])
    with pytest.raises(MethodError, match="nothing can be ranked"):
        spearman([1, 1, 1, 1], [1, 2, 3, 4])


def test_bad_input_is_refused(tiny_model):
    with pytest.raises(MethodError, match="no target concepts"):
        bias_lens(tiny_model, {}, sex_concepts(n=4))
    with pytest.raises(PromptError, match="templates that hold"):
        swapped("x", ["a"], ["b"], ["no place"])
    with pytest.raises(PromptError, match="0 and 1"):
        swapped("x", ["a"], ["a"], ["{w}"])
    narrow = swapped("x", ["cat"], ["dog"], ["the {w}"])
    with pytest.raises(MethodError, match="1 groups, too few"):
        bias_lens(tiny_model, {"x": narrow}, (narrow, narrow), progress=False)
