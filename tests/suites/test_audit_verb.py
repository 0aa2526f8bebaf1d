"""`sk.audit`: one verb for a suite of questions and for steering, told apart by what is given."""

import inspect
from pathlib import Path
from typing import Any, get_overloads

import pytest

import steerkit as sk
from steerkit import audits
from steerkit.audits import Report
from steerkit.errors import ActivationError, MethodError, PromptError
from steerkit.interventions import save_steering
from steerkit.models import LanguageModel
from steerkit.statistics import wilson
from steerkit.suites import Examination, Finding, Material, SuiteReport, examine

QUIET: dict[str, Any] = {"max_new_tokens": 4, "progress": False}


@pytest.fixture(scope="module")
def material() -> Material:
    return Material.of_organisms(12, seed=1)


@pytest.fixture(scope="module")
def direction() -> sk.Direction:
    model = sk.load("organism:aligned")
    contrast = Material.of_organisms(12, split="train").contrasts["refusal"]
    acts = sk.capture(model, contrast, progress=False)
    return sk.extract(acts, n_folds=0, progress=False).at(2)


def question(name: str, raises: BaseException | None = None) -> Examination:
    def run(subject: Any) -> Finding:
        if raises is not None:
            raise raises
        return Finding("yes", f"{name}.", {"rate": wilson(3, 4)})

    return Examination(name, f"{name}?", "here", run)


def test_the_overloads_are_the_signatures_of_what_runs() -> None:
    suite, steering = map(inspect.signature, get_overloads(sk.audit))
    ours = dict(suite.parameters)
    asked = ours.pop("suite")
    behind = dict(inspect.signature(examine).parameters)
    assert asked.annotation == behind.pop("suite").annotation and asked.default is asked.empty
    assert {n: (p.default, p.kind) for n, p in ours.items()} == {
        n: (p.default, p.kind) for n, p in behind.items()
    }
    theirs = inspect.signature(audits.audit).parameters
    assert {n: (p.default, p.kind) for n, p in steering.parameters.items()} == {
        n: (p.default, p.kind) for n, p in theirs.items()
    }


def test_a_suite_gives_what_examine_gives_and_steering_what_audits_give(
    material: Material, direction: sk.Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sk.load("organism:aligned")
    calls: list[int] = []
    generate = LanguageModel.generate

    def counted(self: Any, prompts: Any, **options: Any) -> Any:
        calls.append(len(prompts))
        return generate(self, prompts, **options)

    monkeypatch.setattr(LanguageModel, "generate", counted)
    found = sk.audit(model, suite=["refusal"], material=material, **QUIET)
    assert isinstance(found, SuiteReport)
    assert found["refusal"].estimates == (
        examine(model, ["refusal"], material=material, **QUIET)["refusal"].estimates
    )
    steered, held_out = model.with_(sk.Ablate(direction)), material.contrasts["refusal"]
    options: dict[str, Any] = {**QUIET, "baselines": (), "n_resamples": 50}
    report = sk.audit(model, steered, held_out, **options)
    assert isinstance(report, Report)
    named = sk.audit(plain=model, steered=steered, held_out=held_out, **options)
    behind = audits.audit(model, steered, held_out, **options)
    assert report.scores == named.scores == behind.scores
    assert calls == [12, 12] + 3 * [2 * len(held_out)], "plain and steered answer in one batch"
    said = {
        name: view.generate(held_out.prompts, max_new_tokens=4)
        for name, view in (("plain", model), ("steered", steered))
    }
    calls.clear()
    given = sk.audit(model, steered, held_out, said=said, **options)
    assert given.scores == report.scores and not calls, "what was said is not asked again"


def test_steering_may_be_the_file_that_search_wrote(
    material: Material, direction: sk.Direction, tmp_path: Path
) -> None:
    model = sk.load("organism:aligned")
    operator = sk.Ablate(direction, reference="negative_mean", positions="last_prompt")
    path = save_steering(tmp_path / "steering.safetensors", operator)
    options = {**QUIET, "max_new_tokens": 12}
    from_file, given = (
        sk.audit(model, suite=["change"], material=material, steering=steering, **options)
        for steering in (path, operator)
    )
    assert from_file["change"].estimates == given["change"].estimates
    lost = from_file["change"].estimates["refused, harmful requests, steered less model"]
    assert lost.high < 0
    other = sk.load("organism:base")
    with pytest.raises(sk.SteerkitError, match="taken on"):
        sk.audit(other, suite=["change"], material=material, steering=path, **QUIET)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ((), {}, "there is no model to audit"),
        (("model",), {}, "nothing says what to ask.*suite='standard'"),
        (("model", "model"), {}, r"lacks held-out prompts \(a Contrast\)"),
        (("model",), {"held_out": 1}, "lacks the steered model"),
        (("model", "model"), {"suite": "standard"}, "takes no `steered`.*steering="),
        (("model",), {"suite": "standard", "held_out": 1}, "takes no `held_out`.*material="),
        (("model", "standard"), {}, r"audit\(model, suite='standard'\)"),
        (("model",), {"suite": "standard", "target": "kl"}, "target belongs to an audit of st"),
        (("model", "model", 1), {"material": 1}, "material belongs to a suite; here there are"),
        (("model",), {"plain": 1, "suite": "standard"}, "are the same argument"),
    ],
)
def test_mixed_or_missing_arguments_say_what_to_give(
    given: tuple[str, ...], options: dict[str, Any], said: str
) -> None:
    model = sk.load("organism:base")
    with pytest.raises(MethodError, match=said):
        sk.audit(*(model if g == "model" else g for g in given), **options)
    with pytest.raises(TypeError, match="nonsense"):
        sk.audit(model, suite="behaviour", nonsense=1)  # type: ignore[call-overload]


def test_a_question_that_fails_does_not_lose_the_others(material: Material, tmp_path: Path) -> None:
    model = sk.load("organism:base")
    asked = [
        question("before"),
        question("fails", ActivationError("state 3 is not finite; look at the model")),
        question("after"),
    ]
    found = sk.audit(model, suite=asked, material=material, out=tmp_path, **QUIET)
    assert list(found.findings) == ["before", "after"]
    why = "it failed: state 3 is not finite; look at the model"
    assert found.not_measured == {"fails": why}
    assert not (tmp_path / "findings" / "fails.json").exists(), "it is asked again next time"
    for name in ("report.html", "report.md", "report.json"):
        assert why in (tmp_path / name).read_text(encoding="utf-8")
    assert why in found.summary()


def test_where_no_question_can_be_answered_the_first_reason_is_raised(material: Material) -> None:
    asked = [question("one", PromptError("first")), question("two", PromptError("second"))]
    with pytest.raises(PromptError, match="first"):
        sk.audit(sk.load("organism:base"), suite=asked, material=material, **QUIET)


def test_a_fault_of_the_program_is_raised_after_what_was_found_is_kept(
    material: Material, tmp_path: Path
) -> None:
    model = sk.load("organism:base")
    asked = [question("before"), question("faulty", ZeroDivisionError("a fault"))]
    with pytest.raises(ZeroDivisionError) as raised:
        sk.audit(model, suite=asked, material=material, out=tmp_path, **QUIET)
    assert "The same call goes on from there" in raised.value.__notes__[0]
    assert [p.name for p in (tmp_path / "findings").glob("[!_]*.json")] == ["before.json"]
