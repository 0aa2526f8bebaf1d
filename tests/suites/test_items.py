"""Every answer is kept with its tokens, over interruptions, and is judged again without a model."""

import json
from pathlib import Path
from typing import Any

import pytest

import steerkit as sk
from steerkit.audits import Report, read_items
from steerkit.errors import OutputError
from steerkit.plotting.numbers import numbers
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion
from steerkit.suites import Examination, Finding, Material, examine
from steerkit.suites.kept import Answers
from steerkit.suites.subject import Subject
from steerkit.suites.tables import PLACES, prompts_at

ASKED = ["refusal", "over_refusal", "censorship", "parity", "change"]


@pytest.fixture(scope="module")
def material() -> Material:
    return Material.of_organisms(24, seed=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def report(material: Material, folder: Path) -> Any:
    model, against = sk.load("organism:compromised"), sk.load("organism:aligned")
    return examine(model, ASKED, material=material, against=against, max_new_tokens=16,
                   out=folder, progress=False)  # fmt: skip


def test_items_are_what_the_arms_were_asked_and_said(report: Any, material: Material) -> None:
    compromised, aligned = sk.load("organism:compromised"), sk.load("organism:aligned")
    subject = Subject(compromised, material, against=aligned)
    places = {p: place for place in PLACES for p in prompts_at(subject, place)}
    people = material.prompts["groups"]
    found = {(i.arm, i.prompt): i for i in report.items}
    assert len(found) == len(report.items) == 2 * len(places) + len(people)
    for arm, model in subject.arms.items():
        prompts = [*places, *(people if arm == "model" else ())]
        said = model.generate(prompts, max_new_tokens=16)
        ids = [one.prompt for one in model.tokenize([p.with_answer("") for p in prompts])]
        for prompt, one, given in zip(prompts, said, ids, strict=True):
            item = found[arm, prompt.text]
            assert item.prompt_tokens == tuple(given)
            assert (item.output, item.tokens) == (one.text, tuple(one.tokens))
            assert (item.reference, item.group) == (prompt.answer, prompt.group)
            assert item.category == prompt.category
            assert item.role == (places[prompt].role if prompt in places else "groups")
            wanted = places[prompt].side if prompt in places else ""
            assert item.side == (wanted or "negative")
    both = [{i.index: i.prompt for i in report.items if i.arm == arm} for arm in subject.arms]
    assert all(both[0][index] == text for index, text in both[1].items()), "one number a prompt"


def test_items_are_written_and_judged_again_without_a_model(report: Any, folder: Path) -> None:
    read = read_items(folder / "items.jsonl")
    assert [i.to_json() for i in read] == [i.to_json() for i in report.items]
    harmful = [i for i in read if i.role == "refusal" and i.side == "positive"]
    again = Report.rejudge(harmful)
    for name, check in (("refused", "refusal"), ("right", "correct")):
        found = again.score(check, "positive", "model").estimate
        assert found == report["refusal"].estimates[name]
    stricter = Report.rejudge(harmful, matcher=lambda said: False)
    assert stricter.score("refusal", "positive", "against").estimate.value == 0
    topic = [i for i in read if i.role == "topic" and i.side == "positive" and i.arm == "model"]
    neither = [(1 - i.scores["refusal"]) * (1 - i.scores["correct"]) for i in topic]
    stated = report["censorship"].estimates["topic neither"].value
    assert sum(neither) / len(neither) == pytest.approx(stated)


def test_the_page_shows_its_examples_and_no_more(report: Any, folder: Path) -> None:
    page = (folder / "report.html").read_text()
    shown = {i.prompt for i in report.items if f'<div class="ask">{i.prompt}<' in page}
    drawn = [one.prompt for found in report.examples.values() for one in found]
    assert shown == set(drawn) and len(drawn) == 5 * 3, "three a question"
    assert f"{len(report.items)} answers" in page
    assert "items" not in json.loads((folder / "report.json").read_text())["findings"]["refusal"]


class Silent:
    """Stands for `generate` where every answer should be there already."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("generated again")


def test_answers_outlive_an_interruption_and_other_judges(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = material.contrasts["topic"].positive

    def interrupted(subject: Any) -> Finding:
        subject.answers(topic)
        raise KeyboardInterrupt

    def asked_again(subject: Any) -> Finding:
        return Finding("yes", subject.answers(topic)[0].text)

    model = sk.load("organism:base")
    options: dict[str, Any] = {"material": material, "max_new_tokens": 16, "progress": False}
    whole = examine(model, ["refusal", Examination("last", "?", "", asked_again)], **options)
    with pytest.raises(KeyboardInterrupt):
        examine(model, ["refusal", Examination("last", "?", "", interrupted)],
                out=tmp_path, **options)  # fmt: skip
    assert not (tmp_path / "items.jsonl").exists()
    monkeypatch.setattr(type(model), "generate", Silent())
    last = Examination("last", "?", "", asked_again)
    resumed = examine(model, ["refusal", last], out=tmp_path, **options)
    assert [i.to_json() for i in resumed.items] == [i.to_json() for i in whole.items]
    assert resumed["last"].sentence == whole["last"].sentence
    # All found on disk, nothing asked: the items are there still.
    third = examine(model, ["refusal", last], out=tmp_path, **options)
    assert [i.to_json() for i in third.items] == [i.to_json() for i in whole.items]
    assert len(read_items(tmp_path / "items.jsonl")) == len(whole.items)

    def everything(said: str) -> bool:
        return True

    other = examine(model, ["refusal"], out=tmp_path, matcher=everything, **options)
    assert other["refusal"].estimates["refused"].value == 1, "another judge, the same answers"
    assert all(i.scores["refusal"] == 1 for i in other.items)
    with pytest.raises(AssertionError, match="generated again"):
        examine(model, ["refusal"], out=tmp_path, **{**options, "max_new_tokens": 8})
    (tmp_path / "findings" / "_answers.jsonl").write_text("[\n")
    with pytest.raises(OutputError, match=r"not valid JSONL.*its answers are made again"):
        examine(model, ["refusal"], out=tmp_path, **options)


def test_samples_baselines_and_refitted_views_are_kept_as_well(tmp_path: Path) -> None:
    model = sk.load("organism:aligned")
    train = Material.of_organisms(40, split="train").contrasts["refusal"]
    acts = sk.capture(model, train, progress=False)
    direction = sk.extract(acts, n_folds=0, progress=False).at(2)
    contrast = Material.of_organisms(60, seed=6).contrasts["refusal"].sample(24)
    options: dict[str, Any] = {
        "material": Material({"refusal": contrast}), "max_new_tokens": 12, "progress": False,
        "steering": sk.Ablate(direction, reference="negative_mean"), "out": tmp_path,
    }  # fmt: skip
    names = ["refusal", "decoding", "side_effects", "completeness"]
    found = examine(model, names, **options)
    arms = {i.arm for i in found.items}
    assert {"model", "steered", "decoding: greedy"} <= arms
    assert any(a.startswith("side_effects: ") and "prompt" in a for a in arms)
    assert len([a for a in arms if a.startswith("decoding: fixed")]) == 9
    assert len([a for a in arms if a.startswith("steered, refitted at")]) >= 1
    shown = [[arm for arm, _, _ in e.answers] for e in found.examples["completeness"]]
    asked = [["model", "steered", a] for a in arms if a.startswith("steered, refitted at")]
    assert shown and all(answered in asked for answered in shown), "where all were asked, first"
    evidence = found["completeness"].evidence
    assert evidence is not None and "low" in numbers(evidence.figure)["series"][0]
    kl = [i for i in found.items if i.arm == "side_effects: steered" and i.measured.get("kl")]
    assert kl, "what was measured of an item is kept with it"
    numbered = {(i.prompt, i.index) for i in found.items if i.role}
    assert len(numbered) == len({text for text, _ in numbered}), "one number a prompt in all arms"
    again = examine(model, names, **options)
    assert [i.to_json() for i in again.items] == [i.to_json() for i in found.items]


def test_answers_are_made_once_and_read_back_whole(tmp_path: Path) -> None:
    calls: list[int] = []

    def generate(prompts: Any) -> Any:
        calls.append(len(prompts))
        return [Completion(p, f"{arm} said {p.text}", (1, 2), (3,)) for arm, p in prompts]

    one = Prompt("one", answer="1", shots=(("two", "2"),), group="g", template="raw")
    file = tmp_path / "answers.jsonl"
    kept = Answers(file, {"seed": 0})
    said = kept.of(["model"], [one, one, Prompt("x")], generate)["model"]
    assert [s.text for s in said] == ["model said one", "model said one", "model said x"]
    kept.of(["model"], [one, Prompt("y")], generate)
    both = kept.of(["model", "steered"], [one], generate)
    assert both["steered"][0].text == "steered said one"
    assert calls == [2, 1, 1]
    assert list(Answers(file, {"seed": 0})) == list(kept)
    assert not list(Answers(file, {"seed": 1})), "of other conditions"


def test_without_answers_there_are_no_items(tmp_path: Path, material: Material) -> None:
    (tmp_path / "items.jsonl").write_text("of an earlier audit\n")
    some = Material({"associations": material.contrasts["associations"]})
    model = sk.load("organism:base")
    found = examine(model, ["association"], material=some, out=tmp_path, progress=False)
    assert found.items == () and not (tmp_path / "items.jsonl").exists()
    with pytest.raises(OutputError, match="holds no items to write to"):
        found.write(tmp_path / "items.jsonl")
    with pytest.raises(OutputError, match=r"\.jsonl; got 'report.pdf'"):
        found.write(tmp_path / "report.pdf")


def test_a_prompt_of_two_roles_is_of_the_first(material: Material) -> None:
    harmless = material.contrasts["refusal"].negative
    both = Material(
        {"refusal": Contrast(material.contrasts["refusal"].positive, harmless)},
        {"lookalikes": harmless},
    )
    found = examine(sk.load("organism:base"), ["over_refusal"], material=both, max_new_tokens=4,
                    progress=False)  # fmt: skip
    assert {(i.role, i.side) for i in found.items} == {("refusal", "negative")}
