"""How often decisions of a suite are wrong by chance, and what they find: scripted, no model."""

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from steerkit.evaluations import parity_of
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion
from steerkit.suites import Material
from steerkit.suites import outcomes as outcomes_module
from steerkit.suites.examinations import association as association_module
from steerkit.suites.examinations import change as change_module
from steerkit.suites.examinations.association import association
from steerkit.suites.examinations.change import change
from steerkit.suites.examinations.parity import parity
from steerkit.suites.subject import Subject


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of reports of which nobody looks at a figure."""
    monkeypatch.setattr(association_module, "ranked", lambda *_, **__: None)
    monkeypatch.setattr(change_module, "side_by_side", lambda *_, **__: None)
    # How finely p is drawn is a matter of long reports; alarms are counted here.
    monkeypatch.setattr(outcomes_module, "FLIPS", 399)
    # What is written down need not be kept.
    monkeypatch.setattr(
        Subject, "answers", lambda s, asked, arm="model": s.arms[arm].generate(asked)
    )


# The 99.9% binomial interval of 5% in 1,000 draws.
LEAST, MOST = 29, 74


class Says:
    """A model that says what is written down for a prompt."""

    info, table = SimpleNamespace(name="it"), None

    def __init__(self, prompts: Sequence[Prompt], said: Sequence[str]) -> None:
        self.said = {p.text: text for p, text in zip(prompts, said, strict=True)}

    def generate(self, prompts: Sequence[Prompt], **_: Any) -> list[Completion]:
        return [Completion(p, self.said[p.text], (), ()) for p in prompts]


def scripted(contrast: Contrast, outcomes: dict[str, Sequence[str]]) -> Subject:
    """A subject of which each model's outcome on every prompt is written down."""
    arms: dict[str, Any] = {arm: Says(contrast.prompts, said) for arm, said in outcomes.items()}
    return Subject(
        material=Material({"refusal": contrast}), **arms,
        matcher=lambda said: said == "refused", right=lambda said, wanted: float(said == wanted),
    )  # fmt: skip


@cache
def requests(reference: str, n: int) -> Contrast:
    """`n` requests a side, four of a template."""
    return Contrast.of(
        *(
            [Prompt(f"{side} {i}", answer=reference, group=f"{side}{i // 4}") for i in range(n)]
            for side in "pn"
        )
    )


def drawn(
    rng: np.random.Generator, lost: float, *, reference: str, refusing: float = 0.6, n: int = 80
) -> Subject:
    """Templates are refused more or less often.

    Both models draw their answers apart; the other refuses the positive side less by `lost`.
    """
    rates = np.clip(refusing + 0.15 * rng.standard_normal(n // 2), lost, 1).repeat(4)
    less = rates - lost * (np.arange(2 * n) < n)
    words = np.array(["refused", "right", "wrong"])

    def said(refused: Any) -> list[str]:
        kind = np.where(rng.random(2 * n) < refused, 0, 1 + (rng.random(2 * n) < 0.5))
        return [str(word) for word in words[kind]]

    return scripted(requests(reference, n), {"model": said(rates), "against": said(less)})


SIX = [f"w{i}" for i in range(6)]


def six_groups(rng: np.random.Generator, lost: float) -> tuple[list[float], list[str], list[str]]:
    """Answered or not, whom about, template: the third group is answered less by `lost`."""
    hard = np.repeat(rng.uniform(0.5, 0.9, 24), 6) - lost * np.tile(np.arange(6) == 2, 24)
    answered = (rng.random(144) < hard).astype(float).tolist()
    return answered, SIX * 24, [f"t{i // 6}" for i in range(144)]


def test_parity_of_six_groups_raises_no_more_false_alarms_than_it_says_and_finds_one() -> None:
    """p is that of the largest of 15 differences among the largest ones: one in twenty reports on
    nothing says yes, and no more because there are many pairs."""
    rng = np.random.default_rng(6)
    options: dict[str, Any] = {"n_permutations": 99, "n_resamples": 2}
    found = [parity_of(*six_groups(rng, 0.0), **options) for _ in range(300)]
    low, high = binom.ppf([0.0005, 0.9995], 300, 0.05)
    assert low <= sum(f.worst.p_any <= 0.05 for f in found) <= high
    alone = sum(min(p.null.p for p in f.pairs) <= 0.05 for f in found)
    assert alone > high, "each pair let alone"
    found = [parity_of(*six_groups(rng, 0.45), **options) for _ in range(40)]
    assert (
        sum(f.worst.p_any <= 0.05 and "w2" in (f.worst.first, f.worst.second) for f in found) >= 32
    )
    gaps = [f.pair("w0", "w2").difference.value for f in found]
    assert np.mean(gaps) == pytest.approx(0.45, abs=0.06)


def test_what_parity_answers_is_that_p() -> None:
    values, who, where = six_groups(np.random.default_rng(7), 0.45)
    people = tuple(Prompt(f"{w} {t}", category=w, group=t) for w, t in zip(who, where, strict=True))
    model: Any = Says(people, ["fine" if v else "refused" for v in values])
    material = Material({}, {"groups": people})
    asked = Subject(model, material, matcher=lambda text: float(text == "refused"))
    found = parity(asked)
    assert found.p == parity_of(values, who, where).worst.p_any and found.rests_on_p
    assert found.answer == ("yes" if found.p <= 0.05 else "inconclusive")


def test_change_raises_no_more_false_alarms_than_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [change(drawn(rng, 0.0, reference="")) for _ in range(1000)]
    alarms = sum(f.answer == "yes" for f in found)
    assert LEAST <= alarms <= MOST
    assert all((f.p is not None and f.p < 0.05) == (f.answer == "yes") for f in found)


@pytest.mark.slow
def test_change_over_outcomes_that_exclude_each_other_is_on_the_safe_side() -> None:
    """Refused, right and neither go together: Holm is not exact for them, only safe."""
    rng = np.random.default_rng(1)
    alarms = sum(change(drawn(rng, 0.0, reference="right")).answer == "yes" for _ in range(1000))
    assert alarms <= MOST


@pytest.mark.parametrize(("n", "lost"), [(80, 0.3), (200, 0.2)])
def test_change_finds_lost_refusals(n: int, lost: float) -> None:
    """30 points on 80 requests in 20 templates, 20 on 200 in 50: among six outcomes."""
    rng = np.random.default_rng(2)
    found = [change(drawn(rng, lost, reference="right", refusing=0.8, n=n)) for _ in range(100)]
    assert sum(f.answer == "yes" for f in found) >= 80
    gone = [f.estimates["refused, harmful requests, against less model"] for f in found]
    assert np.mean([e.value for e in gone]) == pytest.approx(-lost, abs=0.03)
    assert np.mean([e.low <= -lost <= e.high for e in gone]) > 0.9


WHOM, TEMPLATES = 6, 8


@pytest.fixture
def leaning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How often the association is found where groups differ by so much: sd of log-odds.

    And how often some group is said to lean by itself.
    """
    monkeypatch.setattr(association_module, "N_DRAWS", 199)
    sides = [
        [
            Prompt(f"in {t} the {who} said", answer=word, category=f"w{who}", group=f"t{t}")
            for t in range(TEMPLATES)
            for who in range(WHOM)
        ]
        for word in ("she", "he")
    ]
    material = Material({"associations": Contrast.of(*sides, paired=True)})

    def rate(spread: float, n: int, seed: int) -> tuple[int, int]:
        rng = np.random.default_rng(seed)
        found = single = 0
        for i in range(n):
            gaps = rng.standard_normal((TEMPLATES, WHOM)) + 2 * rng.standard_normal((TEMPLATES, 1))
            gaps += spread * rng.standard_normal(WHOM)
            scores = {"she": torch.tensor(gaps.ravel()), "he": torch.zeros(TEMPLATES * WHOM)}
            monkeypatch.setattr(
                association_module,
                "answer_log_probs",
                lambda _, prompts, s=scores, **__: list(s[prompts[0].answer][:, None]),
            )
            nobody: Any = SimpleNamespace()
            result = association(Subject(nobody, material, seed=i))
            assert result.p is not None and (result.p <= 0.05) == (result.answer == "yes")
            found += result.answer == "yes"
            single += " 0 lie further" not in result.sentence
        return found, single

    return rate


def test_association_raises_no_more_false_alarms_than_it_says(leaning: Any) -> None:
    """Templates lean by themselves, groups do not; over all six groups, and for any of them."""
    found, single = leaning(0.0, 1000, seed=3)
    assert LEAST <= found <= MOST and LEAST <= single <= MOST


def test_association_finds_groups_that_lean_as_much_as_single_answers_vary(leaning: Any) -> None:
    """Standard deviation 1 between groups, beside 1 within and 2 between templates."""
    found, single = leaning(1.0, 100, seed=4)
    assert found >= 80 and single >= 80
