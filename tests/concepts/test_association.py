"""WEAT, SEAT and contextual WEAT against hand-computed cases and what chance gives.

Published effect sizes need the published word vectors. No package that steerkit depends on ships
any, so generated sets with an effect computed by hand stand in their place.
"""

import json
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, kstest

import steerkit as sk
from steerkit.concepts import contextual_weat, embed_words, seat, weat
from steerkit.concepts.association import partition_test
from steerkit.concepts.contextual import pooled
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Prompt

AXES = {
    "x1": [1, 0], "x2": [3, 4], "y1": [0, 2], "y2": [-1, 0], "a1": [1, 0], "a2": [2, 0],
    "b1": [0, 1], "b2": [0, 5],
}  # fmt: skip
SETS = (["x1", "x2"], ["y1", "y2"], ["a1", "a2"], ["b1", "b2"])


def random_words(rng, n, d=20, contexts=None, shift=0.0):
    """Vectors of x, y, a, b words, x moved towards a and y towards b by `shift`."""
    axis = rng.standard_normal(d) / np.sqrt(d)
    sign = {"x": 1, "y": -1, "a": 1, "b": -1}
    found = {}
    for side, to in sign.items():
        for i in range(n):
            word = rng.standard_normal(d) + to * shift * axis * np.sqrt(d)
            many = word + 0.8 * rng.standard_normal((contexts or 1, d))
            found[f"{side}{i}"] = many if contexts else word
    return found, tuple([f"{s}{i}" for i in range(n)] for s in sign)


def test_the_effect_is_what_a_hand_computes():
    found = weat(AXES, *SETS)
    # cos with a = first coordinate, with b = second: s = 1, -0.2, -1, -1.
    assert found.scores == pytest.approx({"x1": 1.0, "x2": -0.2, "y1": -1.0, "y2": -1.0})
    s = np.array([1, -0.2, -1, -1])
    assert found.effect.value == pytest.approx(1.4 / s.std(ddof=1))
    # Of the six partitions two reach 1.4 in size: the observed one and its mirror.
    assert (found.p, found.p_greater, found.exact, found.n_partitions) == (2 / 6, 1 / 6, True, 6)
    assert found.without["x2"] == pytest.approx(2 / np.std([1, -1, -1], ddof=1))


def test_swapping_sets_turns_the_sign_and_scaling_words_does_nothing():
    rng = np.random.default_rng(1)
    words, (x, y, a, b) = random_words(rng, 8, shift=0.5)
    once = weat(words, x, y, a, b, n_resamples=50)
    assert weat(words, y, x, a, b, n_resamples=50).effect.value == pytest.approx(-once.effect.value)
    assert weat(words, x, y, b, a, n_resamples=50).effect.value == pytest.approx(-once.effect.value)
    longer = {w: v * rng.uniform(0.1, 9) for w, v in words.items()}
    again = weat(longer, x, y, a, b, n_resamples=50)
    assert again.effect.value == pytest.approx(once.effect.value) and again.p == once.p
    assert again.exact and again.n_partitions == 12_870


def test_the_exact_p_counts_partitions_and_samples_agree():
    scores = np.random.default_rng(2).standard_normal(12)
    p, greater, exact, total = partition_test(scores, 5)
    gaps = [
        scores[list(c)].mean() - np.delete(scores, list(c)).mean()
        for c in combinations(range(12), 5)
    ]
    observed = scores[:5].mean() - scores[5:].mean()
    assert exact and total == 792
    assert p == np.mean(np.abs(gaps) >= abs(observed) - 1e-12)
    assert greater == np.mean(np.array(gaps) >= observed - 1e-12)
    many = np.concatenate([scores, scores[::-1] / 3])
    sampled = partition_test(many, 12, n=4_000, seed=1)
    assert not sampled[2] and abs(sampled[0] - partition_test(many, 12, n=4_000, seed=2)[0]) < 0.05


def test_p_is_uniform_without_an_association_and_small_with_one():
    ps = []
    for seed in range(300):
        words, sets = random_words(np.random.default_rng(seed), 6)
        ps.append(weat(words, *sets, n_resamples=0).p)
    assert kstest(ps, "uniform").pvalue > 1e-3
    assert sum(p <= 0.05 for p in ps) <= binom.ppf(0.9995, 300, 0.05)
    strong = [
        weat(w, *s, n_resamples=0).p
        for w, s in (random_words(np.random.default_rng(k), 8, shift=0.6) for k in range(25))
    ]
    assert np.mean(np.array(strong) < 0.05) >= 0.8


def test_a_common_direction_shows_when_it_is_taken_out():
    rng = np.random.default_rng(3)
    words, sets = random_words(rng, 8, shift=0.4)
    plain = weat(words, *sets, n_resamples=0)
    moved = {w: v + 30 * np.ones(20) for w, v in words.items()}
    assert weat(moved, *sets, n_resamples=0).centred == pytest.approx(plain.centred)


def test_sentences_of_a_word_are_no_independent_evidence():
    """Ten copies of each word change neither p nor, but for n - 1, the effect."""
    words, sets = random_words(np.random.default_rng(4), 6, shift=0.3)
    once = weat(words, *sets, n_resamples=200)
    copies = weat({w: np.tile(v, (10, 1)) for w, v in words.items()}, *sets, n_resamples=200)
    assert copies.p == once.p and copies.items_a_word == (10, 10)
    assert copies.effect.value == pytest.approx(once.effect.value * np.sqrt(119 / 110))
    assert copies.effect.low == pytest.approx(once.effect.low * np.sqrt(119 / 110), rel=0.05)


def test_the_published_pooling_by_hand():
    estimate, p = pooled(np.array([1.0, 1.0]), np.array([0.5, 0.5]))
    assert estimate.value == 1.0 and p == pytest.approx(0.0227501, rel=1e-4)
    # Far apart: Q = 8, c = 2 - 2/2 = 1, tau^2 = 7, weights 1/8, standard error 2.
    apart, p = pooled(np.array([2.0, -2.0]), np.array([1.0, 1.0]))
    assert apart.value == 0.0 and p == 0.5
    assert apart.high == pytest.approx(1.96 * 2)


def test_the_published_form_differs_its_p_falls_with_the_number_of_draws():
    ps = {"sound": [], "few": [], "many": []}
    for seed in range(40):
        words, sets = random_words(np.random.default_rng(seed), 6, contexts=5)
        ps["sound"].append(contextual_weat(words, *sets, n_draws=50, n_resamples=0).p)
        for name, n in (("few", 5), ("many", 200)):
            found = contextual_weat(words, *sets, form="ceat_repo", n_draws=n)
            ps[name].append(found.p)
    wrong = {name: np.mean([p < 0.05 for p in each]) for name, each in ps.items()}
    assert wrong["sound"] <= binom.ppf(0.9995, 40, 0.05) / 40
    # One-sided at 5%, it rejects about half of all cases in which there is nothing.
    assert wrong["many"] > 0.3 and wrong["many"] >= wrong["few"]


def test_contexts_that_are_all_the_same_give_the_plain_test():
    words, sets = random_words(np.random.default_rng(5), 6, shift=0.3)
    same = {w: np.tile(v, (4, 1)) for w, v in words.items()}
    plain = weat(words, *sets, n_resamples=0)
    found = contextual_weat(same, *sets, n_draws=20, n_resamples=200)
    assert found.effect.value == pytest.approx(plain.effect.value) and found.p == plain.p
    assert found.draws == pytest.approx((plain.effect.value,) * 3)
    assert found.effect.low < plain.effect.value < found.effect.high
    assert json.loads(json.dumps(found.to_json()))["form"] == "sound"


def test_words_of_a_model_are_read_where_they_stand(tiny_model):
    found = embed_words(tiny_model, ["cat", "dog"], "resid_post@1", templates=["the {w} was sad"])
    acts = sk.capture(
        tiny_model, [Prompt("the cat was sad", template="raw")], sites="resid_post@1",
        positions=2, progress=False,
    )  # fmt: skip
    assert found["cat"].shape == (1, 32)
    assert np.allclose(found["cat"][0], acts.values[0, 0].numpy(), atol=1e-6)


def test_seat_finds_sex_in_an_organism_and_nothing_between_halves_of_a_set():
    model = sk.load("organism:base")
    women, men = ["woman", "girl", "queen", "aunt"], ["man", "boy", "king", "brother"]
    templates = ["the {w} said that", "when the {w} came home", "the {w} smiled because"]
    names = ["mary", "anna", "lucy", "emma", "clara", "nora"]
    others = ["tom", "john", "peter", "max", "paul", "henry"]
    found = seat(model, names, others, women, men, site=2, templates=templates)
    assert found.p < 0.05 and found.effect.value > 1
    nothing = seat(model, names[:3], names[3:], women, men, site=2, templates=templates)
    assert nothing.p > 0.05
    assert "p =" in found.summary() and "queen" not in found.table()
    assert json.loads(json.dumps(found.to_json()))["sizes"] == [6, 6, 4, 4]


def test_real_word_lists_run_on_a_real_model(shared):
    file, folder = shared / "data" / "weat" / "WEAT.json", shared / "models" / "stories260K"
    if not file.is_file() or not folder.is_dir():
        pytest.skip("no WEAT lists or no small model in the shared folder")
    lists = json.loads(file.read_text())
    sets = (lists["flowers"], lists["insects"], lists["pleasant_5"], lists["unpleasant_5a"])
    model = sk.load(folder)
    found = seat(model, *sets, site=2, read="last", n_permutations=999, n_resamples=100)
    assert found.sizes == tuple(len(dict.fromkeys(s)) for s in sets) and not found.missing
    assert -2.1 < found.effect.value < 2.1 and 0 < found.p <= 1
    assert found.effect.low <= found.effect.value <= found.effect.high


def test_bad_sets_are_refused(tiny_model):
    with pytest.raises(MethodError, match="share x1"):
        weat(AXES, ["x1", "x2"], ["x1", "y1"], *SETS[2:])
    with pytest.raises(MethodError, match="set x has vectors for 1 of 2"):
        weat(AXES, ["x1", "nothing"], *SETS[1:])
    with pytest.raises(MethodError, match="zero"):
        weat({**AXES, "x1": [0, 0]}, *SETS)
    with pytest.raises(MethodError, match="different widths"):
        weat({**AXES, "x1": [0, 0, 1]}, *SETS)
    with pytest.raises(MethodError, match="not finite"):
        weat({**AXES, "x1": [0, np.nan]}, *SETS)
    with pytest.raises(MethodError, match="'sound' or 'ceat_repo'"):
        contextual_weat(AXES, *SETS, form="repo")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match=r"hold '\{w\}'"):
        embed_words(tiny_model, ["cat"], 1, templates=["the cat"])
    with pytest.raises(PromptError, match="cannot be read"):
        embed_words(tiny_model, ["zebra"], 1)
