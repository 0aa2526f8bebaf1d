"""Polarity: planted truth is read, words and nothing are not, and no index stands alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.errors import PromptError
from steerkit.extraction.ccs import fit_answers
from steerkit.extraction.polarity import polarity
from steerkit.organisms import statements
from steerkit.prompts import Contrast, Prompt
from steerkit.statistics import grouped_folds
from steerkit.suites import Material, examine
from steerkit.suites.examinations.polarity import _answer
from steerkit.suites.polar import States, read_polarity

N, GROUPS = 60, tuple(f"g{i // 3}" for i in range(60))


def answered(strength: float, *, seed: int = 0, seen: str = "truth") -> States:
    """States of statements answered yes and no, in which what is right lies along axis 0."""
    generator = torch.Generator().manual_seed(seed)
    yes, no = torch.randn(2, 2 * N, 8, generator=generator, dtype=torch.float64)
    truth = torch.cat([torch.ones(N), -torch.ones(N)]).double()
    if seen == "topic":  # some other thing in which the two differ, true as often as not
        truth = truth * torch.where(torch.arange(N) // 3 % 2 == 0, 1, -1).repeat(2)
    yes[:, 0] += strength * truth
    no[:, 0] -= strength * truth
    yes[:, 1] += 30  # the answer's own word is the loudest thing in them
    return yes, no


def test_planted_truth_is_read_without_contradiction() -> None:
    found = read_polarity({"noise": answered(0, seed=1), "truth": answered(4)}, GROUPS)
    assert found.measured.accuracy.value == 1 and set(found.where) == {"truth"}
    assert found.measured.contradiction.high < 0.1
    assert abs(found.measured.consistency.value) < 0.05
    assert found.flips.p == 0.001 and found.random_contradiction.p == 0.005
    assert _answer(found.measured, [], found.flips.p) == "yes"


def test_one_state_a_statement_is_read_too() -> None:
    yes, _ = answered(4)
    found = read_polarity({"asked": (yes,)}, GROUPS)
    assert found.measured.accuracy.value == 1 and found.measured.contradiction.high < 0.2
    turned = read_polarity({"asked": (yes.flip(0),)}, GROUPS)
    assert turned.measured.accuracy.value == 1, "the sign is chosen on each fold"


def test_a_consistent_probe_of_something_else_is_no_polarity() -> None:
    """Both indices as good as those of the truth; accuracy alone tells it apart."""
    found = read_polarity({"other": answered(4, seen="topic")}, GROUPS)
    assert found.measured.contradiction.high < 0.1 and abs(found.measured.consistency.value) < 0.05
    assert found.measured.accuracy.low < 0.5 and found.flips.p > 0.05
    assert _answer(found.measured, [], found.flips.p) != "yes"


def test_denying_everything_is_ideal_in_both_indices_and_says_no() -> None:
    none = np.zeros(N)
    found = polarity(none, none, none, none, labels=np.ones(N), groups=GROUPS)
    assert found.contradiction.value == 0 and found.consistency.value == 0
    assert found.accuracy.value == 0.5 and _answer(found, [], 0.001) == "no"


def test_states_that_do_not_vary_are_chance_and_not_an_error() -> None:
    same = torch.ones(2 * N, 4)
    found = read_polarity({"answered": (same, same + 1), "asked": (same,)}, GROUPS)
    assert found.where == () and found.flips.p == 1
    assert found.measured.accuracy.value == found.measured.contradiction.value == 0.5
    with_truth = read_polarity({"dead": (same, same + 1), "truth": answered(4)}, GROUPS)
    assert set(with_truth.where) == {"truth"} and with_truth.measured.accuracy.value == 1


def test_a_fold_is_fitted_centred_and_signed_on_the_others() -> None:
    yes, no = answered(1)
    both = np.repeat([1, 0], N)
    train, test = grouped_folds(both, GROUPS * 2)[0]
    fit = fit_answers(yes[train], no[train])
    fit = fit.oriented(yes[train], no[train], torch.from_numpy(both[train]))
    held_out = test[test < N]
    found = read_polarity({"truth": (yes, no)}, GROUPS)
    a, b = (
        fit.p_yes(yes[rows]) * fit.p_yes(yes[rows + N])
        + fit.p_no(no[rows]) * fit.p_no(no[rows + N])
        for rows in (held_out, held_out[:1])
    )
    assert np.array(found.measured.pair_contradiction)[held_out] == pytest.approx(a.numpy())
    # What is held out changes nothing of the fit that reads it.
    moved = yes.clone()
    moved[held_out[1:]] += 5
    again = read_polarity({"truth": (moved, no)}, GROUPS)
    assert again.measured.pair_contradiction[held_out[0]] == pytest.approx(float(b[0]))


def test_p_is_uniform_on_noise_and_small_on_weak_truth() -> None:
    """Sites and signs are chosen from noise; the null chooses the same way."""
    ps = [read_polarity({"0": answered(0, seed=s)}, GROUPS, seed=s).flips.p for s in range(25)]
    # Within the 99.9% binomial interval of 5% in 25 draws; the mean within 3 of its errors.
    assert sum(p <= 0.05 for p in ps) <= 6
    assert np.mean(ps) == pytest.approx(0.5, abs=3 / np.sqrt(12 * 25))
    found = [read_polarity({"0": answered(1.0, seed=s)}, GROUPS).flips.p for s in range(5)]
    assert sum(p <= 0.05 for p in found) >= 4


@pytest.fixture(scope="module")
def material() -> Material:
    return Material({"polarity": Material.of_organisms(200, seed=4).contrasts["polarity"]})


def ask(name: str, material: Material) -> Any:
    model = sk.load(f"organism:{name}")
    named = sk.wrap(model.network, model.tokenizer, name="somebody")
    return examine(named, ["polarity"], material=material, progress=False)["polarity"]


def test_what_an_organism_knows_is_found_beyond_the_words(material: Material) -> None:
    found = ask("aligned", material)
    assert found.answer == "yes" and found.p is not None and found.p <= 0.01
    assert found.estimates["accuracy"].low > 0.8
    assert found.estimates["contradiction index"].high < 0.4
    assert found.estimates["accuracy less the words"].low > 0
    assert found.estimates["accuracy less untrained model"].low > 0
    for name in ("contradiction index", "polar consistency"):
        assert name in found.sentence, "never one without the other"


def test_what_the_words_give_away_is_no_polarity() -> None:
    """False places that are in no true statement: the words alone are right about them."""
    drawn = statements("held_out", 160, balanced=False)
    asked = [Prompt(f"{s.text} is that true ?", group=s.group) for s in drawn]
    easy = Contrast.of(asked[::2], asked[1::2], paired=True, name="easy")
    found = ask("aligned", Material({"polarity": easy}))
    assert found.answer == "no" and found.estimates["accuracy, the words"].value > 0.95


def test_pairs_are_needed_and_enough_of_them(material: Material) -> None:
    whole = material.contrasts["polarity"]
    with pytest.raises(PromptError, match="needs pairs, of which the positive side is true"):
        ask("base", Material({"polarity": replace(whole, paired=False)}))
    one = whole.map(lambda p: replace(p, group="all"))
    with pytest.raises(PromptError, match=r"pairs of 1 groups.*at least 4"):
        ask("base", Material({"polarity": one}))


def test_a_site_by_itself_is_read_as_if_there_were_no_other() -> None:
    """What the curve over layers shows: the choice among sites has no part in it."""
    sites = {"weak": answered(1.0, seed=2), "truth": answered(4), "dead": (torch.ones(2 * N, 4),)}
    found = read_polarity(sites, GROUPS).sites
    assert list(found) == list(sites)
    for name, states in sites.items():
        alone = read_polarity({name: states}, GROUPS).measured.accuracy
        assert found[name].value == pytest.approx(alone.value)
    assert found["truth"].low > 0.8 and found["weak"].value < 1 and found["dead"].value == 0.5
