"""An audit that was interrupted goes on: between questions, and inside generation."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import steerkit as sk
from steerkit.errors import MethodError
from steerkit.models import LanguageModel
from steerkit.prompts import Prompt
from steerkit.statistics import wilson
from steerkit.suites import Examination, Finding, Material, kept
from steerkit.suites.examinations.side_effects import SHOTS
from steerkit.suites.subject import STEERED

QUIET: dict[str, Any] = {"max_new_tokens": 3, "progress": False}


@pytest.fixture(scope="module")
def material() -> Material:
    return Material.of_organisms(5, seed=3)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each call of `generate` was asked for."""
    calls: list[int] = []
    generate = LanguageModel.generate

    def counted(self: Any, prompts: Any, **options: Any) -> Any:
        calls.append(len(prompts))
        return generate(self, prompts, **options)

    monkeypatch.setattr(LanguageModel, "generate", counted)
    return calls


def question(name: str, side: str, log: list[str], stop: Callable[[], bool]) -> Examination:
    """Asks one side of the refusal prompts, and notes that it was asked."""

    def run(subject: Any) -> Finding:
        log.append(name)
        said = subject.answers(getattr(subject.contrast("refusal"), side))
        if stop():
            raise KeyboardInterrupt
        return Finding("yes", said[0].text, {"rate": wilson(3, 4)})

    return Examination(name, f"{name}?", "here", run)


def test_what_was_found_before_an_interruption_is_not_asked_again(
    material: Material, tmp_path: Path, generated: list[int]
) -> None:
    model = sk.load("organism:base")
    log: list[str] = []
    stops = iter([True, False])
    asked = [
        question("one", "positive", log, lambda: False),
        question("two", "positive", log, lambda: False),
        question("three", "negative", log, lambda: next(stops)),
    ]
    options: dict[str, Any] = {**QUIET, "material": material, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt) as raised:
        sk.audit(model, suite=asked, **options)
    assert "goes on from there" in raised.value.__notes__[0]
    assert log == ["one", "two", "three"] and generated == [5, 5]
    assert not (tmp_path / "report.json").exists(), "no report of a part"
    report = sk.audit(model, suite=asked, **options)
    assert log[3:] == ["three"] and generated == [5, 5], "nothing was asked or answered twice"
    whole = sk.audit(model, suite=[question(n, s, [], lambda: False) for n, s in
                     (("one", "positive"), ("two", "positive"), ("three", "negative"))],
                     material=material, **QUIET)  # fmt: skip
    assert {n: f.sentence for n, f in report.findings.items()} == {
        n: f.sentence for n, f in whole.findings.items()
    }
    assert [i.to_json() for i in report.items] == [i.to_json() for i in whole.items]


def test_an_interruption_inside_generation_loses_the_part_under_way(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generated: list[int]
) -> None:
    monkeypatch.setattr(kept, "PART", 2)
    model = sk.load("organism:base")
    complete = type(model.engine).complete
    left = [2]

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return complete(self, *args, **options)

    monkeypatch.setattr(type(model.engine), "complete", interrupted)
    asked = [question("one", "positive", [], lambda: False)]
    options: dict[str, Any] = {**QUIET, "material": material, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        sk.audit(model, suite=asked, **options)
    lines = (tmp_path / "findings" / "_answers.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 4 and generated == [2, 2, 1]
    left[0] = 10
    generated.clear()
    report = sk.audit(model, suite=asked, **options)
    assert generated == [1], "only what was not answered yet"
    alone = sk.audit(model, suite=asked, material=material, **QUIET)
    assert [i.to_json() for i in report.items] == [i.to_json() for i in alone.items]


def test_a_line_that_a_killed_process_left_half_written_is_made_again(
    material: Material, tmp_path: Path, generated: list[int]
) -> None:
    model = sk.load("organism:base")
    asked = [question("one", "positive", [], lambda: False)]
    options: dict[str, Any] = {**QUIET, "material": material, "out": tmp_path}
    first = sk.audit(model, suite=asked, **options)
    file = tmp_path / "findings" / "_answers.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-20])
    (tmp_path / "findings" / "one.json").unlink()
    generated.clear()
    again = sk.audit(model, suite=asked, **options)
    assert generated == [1] and file.read_text() == whole
    assert [i.to_json() for i in again.items] == [i.to_json() for i in first.items]
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_model_and_steered_answer_together_and_once(
    material: Material, generated: list[int]
) -> None:
    model = sk.load("organism:aligned")
    acts = sk.capture(model, material.contrasts["refusal"], progress=False)
    ablate = sk.Ablate(sk.extract(acts, n_folds=0, progress=False).at(2))
    prompts = material.contrasts["refusal"].positive
    seen: dict[str, Any] = {}

    def run(subject: Any) -> Finding:
        seen["model"] = subject.answers(prompts)
        seen["steered"] = subject.answers(prompts, STEERED)
        seen["again"] = subject.answers(prompts)
        return Finding("yes", "asked.")

    asked = [Examination("both", "both?", "here", run)]
    options: dict[str, Any] = {**QUIET, "max_new_tokens": 12, "material": material}
    sk.audit(model, suite=asked, steering=ablate, **options)
    assert generated == [2 * len(prompts)] and seen["again"] == seen["model"]
    for name, view in (("model", model), ("steered", model.with_(ablate))):
        assert list(seen[name]) == view.generate(prompts, max_new_tokens=12)


def test_no_examination_asks_again_what_another_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither do prompts whose reference or group alone is another."""
    model = sk.load("organism:aligned")
    drawn = Material.of_organisms(10, seed=4)
    acts = sk.capture(model, drawn.contrasts["refusal"], progress=False)
    operator = sk.Ablate(sk.extract(acts, n_folds=0, progress=False).at(2))
    nameless = drawn.contrasts["refusal"].map(lambda p: replace(p, group=""))
    again = tuple(replace(p, answer="", category="again") for p in nameless.negative)
    asked: list[tuple[Any, Prompt]] = []
    generate = LanguageModel.generate

    def noted(self: Any, prompts: Any, **options: Any) -> Any:
        slots = options.get("slots") or [int(self.table is not None)] * len(prompts)
        programs = [self.table.slots[slot - 1] if slot else None for slot in slots]
        seen = [replace(p, answer="", group="", category="") for p in prompts]
        asked.extend(zip(programs, seen, strict=True))
        return generate(self, prompts, **options)

    monkeypatch.setattr(LanguageModel, "generate", noted)
    found = sk.audit(
        model, suite=["refusal", "over_refusal", "change", "side_effects"], steering=operator,
        material=Material({"refusal": nameless}, {"lookalikes": again}), **QUIET,
    )  # fmt: skip
    assert found.not_measured == {}
    plain = [p for program, p in asked if program is None and not (p.system or p.shots)]
    steered = [p for program, p in asked if program is asked[1][0]]
    assert len(steered) == len(set(steered)) == len(nameless), "each once"
    # Answers that random directions of equal KL are held against are these, too: all but the
    # worked examples, which are asked without what the prompts are compared with.
    every = {replace(p, answer="", group="", category="") for p in nameless.prompts}
    assert sorted(plain.count(p) for p in every) == [1] * (len(every) - SHOTS) + [2] * SHOTS
    # Held against another reference, an answer is another item.
    assert len({i.index for i in found.items if i.arm == "model"}) == len(nameless) + len(again)


def seen(name: str, log: list[str], **how: Any) -> Examination:
    """Asks every arm that it is shown one side of the refusal prompts, and a view of its own."""

    def run(subject: Any) -> Finding:
        log.append(f"{name}: {' '.join(subject.arms)}")
        prompts = subject.contrast("refusal").positive
        said = {arm: subject.answers(prompts, arm)[0].text for arm in subject.arms}
        if subject.steered is not None:
            subject.said_by(subject.steered, prompts, f"steered, for {name}")
        return Finding("yes", json.dumps(said), {"rate": wilson(3, 4)})

    return Examination(name, f"{name}?", "here", run, **how)


def test_another_arm_asks_again_only_what_looks_at_it(
    material: Material, tmp_path: Path, generated: list[int]
) -> None:
    """Answers of the model and of its steering stay when a model to compare with comes in."""
    model, other = (sk.load(f"organism:{name}") for name in ("aligned", "base"))
    acts = sk.capture(model, material.contrasts["refusal"], progress=False)
    steering = sk.Ablate(sk.extract(acts, n_folds=0, progress=False).at(2))
    log: list[str] = []
    asked = [
        seen("alone", log, reads=()),
        seen("steered", log, arms=(STEERED,)),
        seen("every", log),
    ]
    options: dict[str, Any] = {**QUIET, "material": material, "steering": steering}
    first = sk.audit(model, suite=asked, out=tmp_path, **options)
    assert log == ["alone: model", "steered: model steered", "every: model steered"]
    log.clear()
    generated.clear()
    both = sk.audit(model, suite=asked, out=tmp_path, against=other, **options)
    assert log == ["every: model steered against"] and generated == [5]
    for name in ("alone", "steered"):
        assert both[name].sentence == first[name].sentence
    whole = sk.audit(model, suite=asked, against=other, **options)
    kept = [i.to_json() for i in both.items]
    assert sorted(map(str, kept)) == sorted(str(i.to_json()) for i in whole.items)
    assert {i.arm for i in both.items} > {"against", "steered", "steered, for steered"}
    # And back: nothing is answered again, and nothing of what is gone is in the report.
    generated.clear()
    back = sk.audit(model, suite=asked, out=tmp_path, **options)
    assert generated == [] and {i.arm for i in back.items} == {i.arm for i in first.items}


def test_another_vector_is_another_steering_though_it_reads_the_same(
    material: Material, tmp_path: Path, generated: list[int]
) -> None:
    model = sk.load("organism:aligned")
    acts = sk.capture(model, material.contrasts["refusal"], progress=False)
    one = sk.extract(acts, n_folds=0, progress=False).at(2)
    other = replace(one, unit=one.unit.flip(0))
    views = [model.with_(sk.Ablate(d)) for d in (one, other)]
    assert views[0].steering == views[1].steering, "in words they are one"
    log: list[str] = []
    for view in views:
        sk.audit(model, suite=[seen("every", log)], steering=view, material=material,
                 out=tmp_path, **QUIET)  # fmt: skip
    assert len(log) == 2 and generated[-2:] == [5, 5], "steered, and the view of its own"


def test_what_an_examination_needs_it_is_shown() -> None:
    with pytest.raises(MethodError, match="needs steered and does not read it"):
        Examination("odd", "?", "", lambda s: Finding("no", ""), arms=(STEERED,), reads=())
