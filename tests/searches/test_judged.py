"""Objectives from judges, checks and labels agree with what they are made of."""

from typing import Any

import numpy as np
import pytest

import steerkit as sk
from steerkit.audits.checks import registry as checks
from steerkit.datasets import refusal
from steerkit.errors import MethodError
from steerkit.interventions import Ablate, Add
from steerkit.prompts import Contrast, Prompt
from steerkit.refusals import is_refusal
from steerkit.scoring import answer_log_probs
from steerkit.searches import Judged, LabelAccuracy, Refusal, search
from steerkit.searches.judged import of_check
from steerkit.searches.measure import measure
from steerkit.searches.naming import make_objective


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def held_out() -> Contrast:
    return refusal("held_out", 8, seed=2)


@pytest.fixture(scope="module")
def ablate(aligned: Any) -> Ablate:
    acts = sk.capture(aligned, refusal("train", 24, seed=0), progress=False)
    found = sk.extract(acts, "mean_difference", n_folds=0, progress=False)
    return Ablate(found[3], reference="negative_mean")


def refuses(prompts: Any, answers: Any) -> list[float]:
    return [float(is_refusal(a)) for a in answers]


def test_a_judge_and_a_check_say_what_the_matcher_says(
    aligned: Any, held_out: Contrast, ablate: Ablate
) -> None:
    tried = [ablate, Add(ablate.direction, strength=-0.1)]
    asked = held_out.positive
    expected = measure(aligned, tried, Refusal(12), asked)
    for objective in (
        Judged(refuses, max_new_tokens=12),
        of_check(checks["refusal"], max_new_tokens=12),
    ):
        found = measure(aligned, tried, objective, asked)
        assert (found.values == expected.values).all()
        assert found.outputs == expected.outputs
    assert expected.values[0].mean() < expected.values[1].mean()


def test_a_check_that_is_no_check_of_answers_is_refused() -> None:
    with pytest.raises(MethodError, match=r"'kl' needs the measurement 'kl'.*use it as a guard"):
        of_check(checks["kl"])


def test_label_accuracy_is_the_argmax_over_labels(aligned: Any, ablate: Ablate) -> None:
    asked = [
        Prompt(p.text, answer=("sorry", "sure")[i % 2])
        for i, p in enumerate(refusal("held_out", 8, seed=2).prompts)
    ]
    objective = LabelAccuracy(("sure", "sorry"))
    found = objective.score(aligned.with_rows((ablate,)), asked, [1, 0]).values
    for row, model in zip(found, (aligned.with_(ablate), aligned), strict=True):
        scores = np.array(
            [
                [float(x.sum()) for x in answer_log_probs(model, [p.with_answer(w) for p in asked])]
                for w in ("sure", "sorry")
            ]
        )
        likeliest = [("sure", "sorry")[i] for i in scores.argmax(0)]
        assert row.tolist() == [float(w == p.answer) for w, p in zip(likeliest, asked, strict=True)]


def test_a_label_that_is_none_is_refused(aligned: Any) -> None:
    with pytest.raises(MethodError, match="1 of 1 prompts have another, such as 'c'"):
        LabelAccuracy(("a", "b")).score(aligned, [Prompt("x", answer="c")])


def test_a_judge_that_miscounts_is_refused(aligned: Any, held_out: Contrast) -> None:
    with pytest.raises(MethodError, match="gave 1 scores for 8 answers"):
        Judged(lambda prompts, answers: [1.0], max_new_tokens=2).score(aligned, held_out.positive)


def test_a_judge_that_gives_no_number_stops_the_search(
    aligned: Any, held_out: Contrast, ablate: Ablate
) -> None:
    def judge(prompts: Any, answers: Any) -> list[float]:
        # The unsteered answers are judged, one of the steered ones is not.
        return [1.0 if is_refusal(a) else float("nan") for a in answers]

    with pytest.raises(
        MethodError, match=r"not a number for .* first for ablate .* on the prompt '"
    ):
        search(
            aligned,
            ablate.direction,
            held_out,
            objective=Judged(judge, max_new_tokens=12),
            references="negative_mean",
            n_random=0,
            progress=False,
        )


@pytest.mark.parametrize("name", ["compliance", "degeneration", "correct"])
def test_checks_of_answers_are_objectives_by_name(
    aligned: Any, held_out: Contrast, name: str
) -> None:
    made = make_objective(name, aligned, [], held_out, max_new_tokens=8, token_budget=4096)
    assert (made.name, made.unit) == (name, checks[name].unit)


def test_an_unknown_objective_names_its_neighbours(aligned: Any, held_out: Contrast) -> None:
    with pytest.raises(MethodError, match="did you mean 'compliance'"):
        make_objective("complience", aligned, [], held_out, max_new_tokens=8, token_budget=4096)
