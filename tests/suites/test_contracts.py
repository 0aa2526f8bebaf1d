"""What every examination is held to, by existing: silence where nothing changed, and a plant found.

An examination that is new is run here against itself, and on other prompts with another seed; it
has to name the test in which it finds what was planted for it.
"""

import ast
import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit import datasets
from steerkit.evaluations.geometry import _difference, _estimated
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion
from steerkit.statistics import Estimate, row_draws, wilson
from steerkit.suites import Finding, Material, SuiteReport, examine, polar, routing
from steerkit.suites.examinations import polarity as polarity_module
from steerkit.suites.finding import decided
from steerkit.suites.outcomes import difference
from steerkit.suites.registry import EXAMINATIONS, Examination
from steerkit.suites.subject import Subject

TESTS = Path(__file__).parents[1]
N = 18
LEAST, MOST = 29, 74
"""The 99.9% binomial interval of 5% in 1,000 draws."""

PLANTED: Mapping[str, str] = {
    "ablation": "suites/test_ablation.py::test_an_ablation_is_one",
    "branching": "suites/test_branching.py::"
    "test_a_sharpened_choice_is_found_and_its_reverse_is_not",
    "association": "suites/test_suites.py::test_planted_associations_are_found_with_sign_and_size",
    "censorship": "suites/test_suites.py::test_censorship_is_found_where_the_refusal_rate_is_blind",
    "change": "suites/test_false_alarms.py::test_change_finds_lost_refusals",
    "cleaned_direction": "suites/test_cleaned_direction.py::"
    "test_planted_routes_outlive_cleaning_and_leave_each_other_alone",
    "completeness": "suites/test_suites.py::test_what_steering_leaves_in_place_is_brought_back",
    "cross_concept_spill": "suites/test_steering.py::"
    "test_steering_along_two_concepts_spills_into_the_second",
    "decoding": "suites/test_contracts.py::test_refusals_that_sampling_takes_away_are_found",
    "detection": "suites/test_contracts.py::test_what_no_word_gives_away_is_detected",
    "geometry": "suites/test_contracts.py::test_sides_that_a_construction_drove_apart_are_found",
    "membership": "suites/test_two_models.py::"
    "test_what_a_model_was_narrowly_trained_on_reads_so_and_nothing_else_does",
    "over_refusal": "suites/test_contracts.py::test_refused_look_alikes_are_found",
    "parity": "suites/test_suites.py::test_groups_that_are_answered_alike_and_one_that_is_not",
    "polarity": "suites/test_polarity.py::test_what_an_organism_knows_is_found_beyond_the_words",
    "refusal": "suites/test_suites.py::test_behaviour_is_reported_as_planted",
    "refusal_routing": "suites/test_renamed.py::"
    "test_what_an_unseen_checkpoint_does_is_routed_by_one_direction",
    "representation_shift": "suites/test_two_models.py::"
    "test_what_fine_tuning_moved_is_found_and_steers_the_model_before",
    "side_effects": "suites/test_suites.py::test_harm_to_harmless_requests_is_a_side_effect",
    "similarity": "suites/test_suites.py::test_another_model_s_states_and_tokens_are_compared",
    "stereotypes": "suites/test_preference.py::test_planted_preferences_are_found",
    "token_shift": "suites/test_suites.py::test_another_model_s_states_and_tokens_are_compared",
    "topic_detection": "suites/test_contracts.py::test_what_no_word_gives_away_is_detected",
    "topic_routing": "suites/test_suites.py::"
    "test_what_routes_a_behaviour_is_ablated_and_beats_random_directions",
    "transfer": "suites/test_two_models.py::"
    "test_a_direction_that_one_model_obeys_and_the_other_does_not_is_lost",
    "truthfulness": "suites/test_preference.py::test_planted_preferences_are_found",
    "wrong_way": "suites/test_steering.py::"
    "test_the_share_that_moves_the_wrong_way_is_what_was_written_down",
}
"""Examination -> the test that shows it finding what was planted for it."""

SAYS_CHANGED: Mapping[str, str] = {}
"""What an examination of two arms answers where something changed, if not yes."""


def test_every_examination_names_the_test_that_plants_something_for_it() -> None:
    missing = set(EXAMINATIONS.names()) - set(PLANTED)
    assert not missing, f"say in PLANTED which test shows that {sorted(missing)} find their plant"
    for named in PLANTED.values():
        file, test = named.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert test in {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}, named


@pytest.fixture(scope="module", autouse=True)
def fewer_draws() -> Iterator[None]:
    """Where draws only say how small a p can be, and controls what a yes is worth: no A/A hangs
    on either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "DRAWS", 9)
        patch.setattr(polar, "N_FLIPS", 199)
        patch.setattr(polar, "N_RANDOM", 49)
        patch.setattr(polarity_module, "control", lambda _: None)
        yield


@cache
def material(part: int) -> Material:
    """Prompts of the organisms' language; the two parts share no text.

    Of matched prompts, which are always the same, every second template.
    """
    drawn = Material.of_organisms(3 * N, seed=41 + part)
    seen = texts(material(0)) if part else set()
    contrasts = {}
    for role, contrast in drawn.contrasts.items():
        sides = contrast.positive, contrast.negative
        if contrast.paired:
            pairs = zip(*sides, strict=True)
            new = [(a, b) for a, b in pairs if not {a.text, b.text} & seen]
            groups = list(dict.fromkeys(a.group for a, _ in new))
            half = [pair for pair in new if groups.index(pair[0].group) % 2 == part]
            both = zip(*(half if role == "associations" else new[:N]), strict=True)
        else:
            both = ([p for p in side if p.text not in seen][:N] for side in sides)
        contrasts[role] = Contrast.of(*both, paired=contrast.paired, name=role)
    one_sided = {}
    for role, prompts in drawn.prompts.items():
        forms = list(dict.fromkeys(p.group for p in prompts))
        half = [p for p in prompts if forms.index(p.group) % 2 == part]
        new_ones = [p for p in prompts if p.text not in seen][:N]
        one_sided[role] = tuple(half if role == "groups" else new_ones)
    return Material(contrasts, one_sided)


def texts(given: Material) -> set[str]:
    contrasts = (p for c in given.contrasts.values() for p in c.prompts)
    return {p.text for p in (*contrasts, *(p for ps in given.prompts.values() for p in ps))}


@cache
def named(name: str, *, rounded: bool = False) -> Any:
    """The organism by another name; `rounded` to half precision and back."""
    model = sk.load("organism:aligned")
    network = model.network
    if rounded:
        network = copy.deepcopy(network).to(torch.bfloat16).to(torch.float32)
    return sk.wrap(network, model.tokenizer, name=name)


@cache
def direction() -> Any:
    train = Material.of_organisms(20, split="train", seed=2).contrasts["refusal"]
    acts = sk.capture(named("it"), train, layers=2, progress=False)
    return sk.extract(acts, n_folds=0, n_random=0, progress=False).at(2)


@cache
def finding(name: str, part: int, seed: int, model: str = "it", rounded: bool = False) -> Finding:
    """An examination of a model, beside a view that does nothing and itself by another name."""
    return examine(
        named(model), [name], material=material(part), steering=sk.Add(direction(), 0.0),
        against=named("it again", rounded=rounded), max_new_tokens=10, seed=seed, progress=False,
    )[name]  # fmt: skip


ALL = EXAMINATIONS.names()


def test_the_two_parts_share_no_prompt() -> None:
    assert not texts(material(0)) & texts(material(1))


@pytest.mark.parametrize("name", ALL)
def test_a_model_against_itself_is_unchanged(name: str) -> None:
    """Steering that does nothing, and the same weights under another name."""
    found = finding(name, 0, 1)
    if EXAMINATIONS[name].arms:
        assert found.answer != SAYS_CHANGED.get(name, "yes"), found.sentence
        assert found.p is None or found.p > 0.05
    for key, estimate in found.estimates.items():
        if key == "gain" or key.endswith(("steered less model", "against less model")):
            assert estimate.value == 0 and estimate.low <= 0 <= estimate.high, key


@pytest.mark.parametrize("name", ALL)
def test_another_seed_and_other_prompts_of_the_same_model_say_nothing_else(name: str) -> None:
    """An A/A: no yes here and no there, and rates no further apart than chance allows.

    What it is compared with are the same weights once more, rounded to half precision. Hundreds
    of rates are compared: 1.7 of their 95% intervals are 99.9%. Few-shot prompting is another
    prompt by another seed, and free to differ.
    """
    one, other = finding(name, 0, 1), finding(name, 1, 7, "somebody", rounded=True)
    if EXAMINATIONS[name].arms:
        assert other.answer != SAYS_CHANGED.get(name, "yes"), other.sentence
    assert {one.answer, other.answer} != {"yes", "no"}, (one.sentence, other.sentence)
    for key, rate in one.estimates.items():
        if rate.unit == "fraction" and rate.n and key in other.estimates and "shot" not in key:
            apart = difference(rate, other.estimates[key])
            room = (apart.value - apart.low) if apart.value > 0 else (apart.high - apart.value)
            assert abs(apart.value) <= 1.7 * room, (key, rate, other.estimates[key])


def test_names_are_not_looked_at() -> None:
    """The same weights under another name: the same numbers, of every check of one model."""
    for name in ("refusal", "over_refusal", "censorship", "parity", "geometry"):
        one, other = finding(name, 0, 1), finding(name, 0, 1, "somebody")
        assert one.answer == other.answer and dict(one.estimates) == dict(other.estimates)


# What no other test plants.


class Wavering:
    """Refuses when decoded greedily, and answers one sample in four."""

    info, table = SimpleNamespace(name="wavering"), None

    def generate(self, prompts: Any, *, temperature: float = 0.0, seed: int = 0, **_: Any) -> Any:
        rng = np.random.default_rng(seed)
        gives_in = (temperature > 0) & (rng.random(len(prompts)) < 0.25)
        said = np.where(gives_in, "bake it .", "i will not help with that .")
        return [Completion(p, str(s), (1,), (2,)) for p, s in zip(prompts, said, strict=True)]


def test_refusals_that_sampling_takes_away_are_found() -> None:
    """And settings add nothing to as many tries, because here they do nothing."""
    asked = [Prompt(f"how {i} ?", answer="bake") for i in range(40)]
    model: Any = Wavering()
    subject = Subject(model, Material({"refusal": Contrast.of(asked, ["hello"], name="refusal")}))
    found = EXAMINATIONS["decoding"].run(subject)
    assert found.answer == "yes" and found.estimates["answered, greedy"].value == 0
    assert found.estimates["answered, any setting"].low > 0.75
    gain = found.estimates["any setting less any sample"]
    assert gain.low < 0 < gain.high


@pytest.mark.parametrize(("name", "role"), [("detection", "refusal"), ("topic_detection", "topic")])
def test_what_no_word_gives_away_is_detected(name: str, role: str) -> None:
    """What is true, in statements whose words are as often true as false."""
    planted = Material({role: datasets.contrast("truth_balanced")})
    found = examine(named("it"), [name], material=planted, progress=False)[name]
    assert found.answer == "yes" and found.p is not None and found.p <= 0.01


def test_sides_that_a_construction_drove_apart_are_found() -> None:
    """A vector written along one line where a request is harmful; training moved it less."""
    both = Material({"refusal": material(0).contrasts["refusal"]})
    for name, answer in (("constructed", "yes"), ("aligned", "no")):
        found = examine(
            sk.load(f"organism:{name}"), ["geometry"], material=both, progress=False,
            against=sk.load("organism:base"),
        )["geometry"]  # fmt: skip
        assert found.answer == answer, found.sentence
        assert found.estimates["gain"].low > 5 or name == "aligned"


def test_refused_look_alikes_are_found() -> None:
    pushed = named("it").with_(sk.Add(direction(), 1.5, positions="last_prompt"))
    given = Material(prompts={"lookalikes": material(0).prompts["lookalikes"]})
    found = examine(
        pushed, ["over_refusal"], material=given, max_new_tokens=10, progress=False
    )["over_refusal"]  # fmt: skip
    assert found.answer == "yes" and found.estimates["refused"].low > 0.5


# Decisions over a whole report, and of single intervals.


def report(ps: Sequence[float]) -> SuiteReport:
    """Findings that said yes wherever their own p allowed it."""
    found = {
        f"check {i}": Finding(
            "yes" if p <= 0.05 else "inconclusive", "Found.", p=p, rests_on_p=True
        )
        for i, p in enumerate(ps)
    }
    run: Any = None
    return SuiteReport("r", tuple(Examination(n, "?", "", run) for n in found), found)


def test_a_yes_that_rests_on_p_holds_over_the_whole_report() -> None:
    assert report([0.04])["check 0"].answer == "yes"
    two = report([0.04, 0.5])
    assert two["check 0"].answer == "inconclusive"
    assert "By itself p = 0.04, over this report 0.08" in two["check 0"].sentence
    assert report([0.001, 0.5, 0.9])["check 0"].answer == "yes"
    # What rests on more than p is left to what it rests on.
    kept = SuiteReport("r", (), {"a": Finding("yes", "", p=0.04), "b": Finding("no", "", p=0.9)})
    assert kept["a"].answer == "yes"


def test_reports_on_nothing_say_yes_no_more_often_than_one_check_does() -> None:
    """Six checks of nothing: some yes in 26% of reports, were each let alone."""
    ps = np.random.default_rng(0).random((1000, 6))
    alarms = sum(any(f.answer == "yes" for f in report(row).findings.values()) for row in ps)
    assert LEAST <= alarms <= MOST
    ps[:, 0] = 0.005  # one that is there
    found = sum(report(row)["check 0"].answer == "yes" for row in ps)
    assert found == 1000


@pytest.mark.parametrize(("truth", "side"), [(0.1, "yes"), (0.5, "yes"), (0.5, "no"), (0.1, "no")])
def test_rates_at_a_bound_are_called_above_or_below_it_as_often_as_intervals_say(
    truth: float, side: str
) -> None:
    """At most 2.5% either way (and no more than chance of that in 1,000 draws)."""
    counts = np.random.default_rng(1).binomial(60, truth, 1000)
    calls = [decided(wilson(int(k), 60), truth) for k in counts]
    assert calls.count(side) <= 1000 * 0.025 + 3.3 * (1000 * 0.025) ** 0.5
    far = truth + (0.2 if side == "yes" else -0.09 if truth == 0.1 else -0.2)
    n = 60 if truth == 0.5 or side == "yes" else 200
    there = np.random.default_rng(2).binomial(n, far, 200)
    assert sum(decided(wilson(int(k), n), truth) == side for k in there) >= 160


def test_censorship_beyond_the_control_is_called_no_more_often_than_its_interval_says() -> None:
    """The topic as often neither refused nor right as the control, and ten points more at most."""
    rng = np.random.default_rng(3)

    def yes(topic: float, control: float, n: int, draws: int) -> int:
        counts = rng.binomial(n, [topic, control], (draws, 2))
        gaps = [difference(wilson(int(a), n), wilson(int(b), n)) for a, b in counts]
        return sum(decided(gap, 0.1) == "yes" for gap in gaps)

    assert yes(0.3, 0.3, 60, 1000) <= MOST
    assert yes(0.3, 0.2, 60, 1000) <= MOST
    assert yes(0.6, 0.2, 60, 200) >= 160


def test_polarity_is_uniform_on_nothing_and_finds_what_is_weak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1,000 draws of probes at two sites that say anything at all of 24 pairs."""
    groups = [f"g{i // 2}" for i in range(24)]
    rng = np.random.default_rng(4)

    nothing: Any = SimpleNamespace(value=0.5)
    monkeypatch.setattr(polar, "N_FLIPS", 99)
    monkeypatch.setattr(polar, "polarity", lambda *_, **__: SimpleNamespace(
        accuracy=nothing, contradiction=nothing
    ))  # fmt: skip
    monkeypatch.setattr(polar, "_random", lambda *_: np.full((1, 4, 24), 0.5))
    sites: Any = {str(i): (torch.full((1, 1), float(i)),) for i in range(2)}

    def p_of(strength: float) -> float:
        right = rng.standard_normal((2, 24))
        right[1] += strength
        log_odds = np.stack([right, -right, -right, right], 1)
        said = 1 / (1 + np.exp(-log_odds - rng.standard_normal(log_odds.shape)))
        monkeypatch.setattr(polar, "_fitted", lambda states, _: said[int(states[0])])
        seed = int(rng.integers(2**31))
        return polar.read_polarity(sites, groups, n_folds=2, seed=seed).flips.p

    assert LEAST <= sum(p_of(0.0) <= 0.05 for _ in range(1000)) <= MOST
    assert sum(p_of(1.5) <= 0.05 for _ in range(100)) >= 80


def test_a_gain_over_another_model_is_called_no_more_often_than_its_interval_says() -> None:
    """Two models whose sides lie equally far apart, each in its own noise: 2.5% above 0."""
    rng = np.random.default_rng(5)
    labels = np.repeat([1, 0], 30)
    groups = [f"p{i}" for i in range(60)]
    draws = row_draws(groups, n_resamples=200)

    def gain(apart: float) -> Estimate:
        both = []
        for size in (1 + apart, 1.0):
            x = rng.standard_normal((60, 8))
            x[:, 0] += size * labels
            both.append(_estimated(x, labels, groups, draws))
        (a, drawn), (b, other) = both
        return _difference(a, b, drawn, other)

    calls = [gain(0.0) for _ in range(1000)]
    above, below = sum(e.low > 0 for e in calls), sum(e.high < 0 for e in calls)
    assert above + below <= MOST
    assert sum(gain(2.0).low > 0 for _ in range(50)) >= 40
