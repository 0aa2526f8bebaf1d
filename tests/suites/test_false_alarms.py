"""How often decisions of a suite are wrong by chance, and what they find: scripted, no model."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion
from steerkit.suites import Material
from steerkit.suites.examinations import association as module
from steerkit.suites.examinations.association import association
from steerkit.suites.examinations.change import change
from steerkit.suites.kept import Answers
from steerkit.suites.subject import Subject

# The 99.9% binomial interval of 5% in 1,000 draws.
LEAST, MOST = 29, 74


def scripted(contrast: Contrast, outcomes: dict[str, Sequence[str]]) -> Subject:
    """A subject that has answered already: of each arm, an outcome a prompt."""
    answers = Answers()
    for arm, said in outcomes.items():
        made = dict(zip(contrast.prompts, said, strict=True))
        for side in (contrast.positive, contrast.negative):
            answers.of(arm, side, lambda new, m=made: [Completion(p, m[p], (), ()) for p in new])
    nobody: Any = SimpleNamespace()
    return Subject(
        nobody, Material({"refusal": contrast}), against=nobody,
        matcher=lambda said: said == "refused", right=lambda said, wanted: float(said == wanted),
        answered=answers,
    )  # fmt: skip


def drawn(
    rng: np.random.Generator, lost: float, *, reference: str, refusing: float = 0.6, n: int = 80
) -> Subject:
    """`n` requests a side, four of a template; templates are refused more or less often.

    Both models draw their answers apart; the other refuses the positive side less by `lost`.
    """
    prompts = [
        [Prompt(f"{side} {i}", answer=reference, group=f"{side}{i // 4}") for i in range(n)]
        for side in "pn"
    ]
    rates = np.clip(refusing + 0.15 * rng.standard_normal(n // 2), lost, 1).repeat(4)
    less = rates - lost * (np.arange(2 * n) < n)
    words = np.array(["refused", "right", "wrong"])

    def said(refused: Any) -> list[str]:
        kind = np.where(rng.random(2 * n) < refused, 0, 1 + (rng.random(2 * n) < 0.5))
        return [str(word) for word in words[kind]]

    return scripted(Contrast.of(*prompts), {"model": said(rates), "against": said(less)})


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
    """How often the association is found where groups differ by so much: sd of log-odds."""
    monkeypatch.setattr(module, "N_DRAWS", 199)
    monkeypatch.setattr(module, "ranked", lambda *_, **__: None)
    sides = [
        [
            Prompt(f"in {t} the {who} said", answer=word, category=f"w{who}", group=f"t{t}")
            for t in range(TEMPLATES)
            for who in range(WHOM)
        ]
        for word in ("she", "he")
    ]
    material = Material({"associations": Contrast.of(*sides, paired=True)})

    def rate(spread: float, n: int, seed: int) -> int:
        rng = np.random.default_rng(seed)
        found = 0
        for i in range(n):
            gaps = rng.standard_normal((TEMPLATES, WHOM)) + 2 * rng.standard_normal((TEMPLATES, 1))
            gaps += spread * rng.standard_normal(WHOM)
            scores = {"she": torch.tensor(gaps.ravel()), "he": torch.zeros(TEMPLATES * WHOM)}
            monkeypatch.setattr(
                module,
                "answer_log_probs",
                lambda _, prompts, s=scores, **__: list(s[prompts[0].answer][:, None]),
            )
            nobody: Any = SimpleNamespace()
            result = association(Subject(nobody, material, seed=i))
            assert result.p is not None and (result.p <= 0.05) == (result.answer == "yes")
            found += result.answer == "yes"
        return found

    return rate


def test_association_raises_no_more_false_alarms_than_it_says(leaning: Any) -> None:
    """Templates lean by themselves, groups do not."""
    assert LEAST <= leaning(0.0, 1000, seed=3) <= MOST


def test_association_finds_groups_that_lean_as_much_as_single_answers_vary(leaning: Any) -> None:
    """Standard deviation 1 between groups, beside 1 within and 2 between templates."""
    assert leaning(1.0, 100, seed=4) >= 80
