"""The page that an auditor opens: its figures, examples and numbers are those that were kept."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import steerkit as sk
from steerkit.audits.evidence import Item, read_items
from steerkit.audits.section import Section
from steerkit.plotting.numbers import numbers
from steerkit.statistics import Estimate, Null, cluster_mean, detectable, wilson
from steerkit.suites import Examination, Finding, Material, SuiteReport, examine
from steerkit.suites.examples import N_ARMS, examples_of, judged
from steerkit.suites.render import to_html, to_markdown, told_p
from steerkit.suites.tables import amount, shown

ASKED = [
    "refusal", "over_refusal", "censorship", "association", "parity", "change", "decoding",
    "geometry", "detection", "polarity", "topic_routing", "similarity", "token_shift",
]  # fmt: skip
LAYERS = ["0", "1", "2", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def report(folder: Path) -> SuiteReport:
    model, against = sk.load("organism:aligned"), sk.load("organism:base")
    return examine(model, [*ASKED, "side_effects"], material=Material.of_organisms(24, seed=6),
                   against=against, max_new_tokens=12, out=folder, progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def page(report: SuiteReport, folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def kept(report: SuiteReport, folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ASKED)
def test_every_figure_has_units_and_intervals(report: SuiteReport, name: str) -> None:
    evidence = report[name].evidence
    assert evidence is not None and evidence.figure is not None
    fig = evidence.figure
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        names = axis.type == "category" or axis.ticktext is not None or axis.tickvals is not None
        rows = axis.plotly_name.startswith("yaxis") and any(
            isinstance(y, str) for t in fig.data for y in (t.y if t.y is not None else ())
        )
        if names or rows:
            continue
        assert re.search(r"\(.+\)", axis.title.text or ""), f"{axis.plotly_name} without its unit"
    series = [t for t in fig.data if t.hoverinfo != "skip"]
    for trace in series:
        has = trace.error_x.array is not None or trace.error_y.array is not None
        baseline = trace.mode == "lines" and trace.line.dash not in (None, "solid")
        assert has or baseline, f"'{trace.name}' is measured and has no interval"
    assert any("low" in one for one in numbers(fig)["series"])


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    markup = re.sub(r"(<script)([^>]*>).*?(</script>)", r"\1\2\3", page, flags=re.S)
    assert len(markup) < len(page) / 4, "plotly is inside"
    assert not re.findall(r"<(?:script|link|img|iframe|object)[^>]+(?:src|href)", markup)
    assert not re.findall(r"https?:|url\(|@import", markup)
    assert {link for link in re.findall(r'href="([^"]*)"', markup) if link[0] != "#"} == set()
    ids = re.findall(r'\bid="([^"]+)"', markup)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in re.findall(r'href="(#[^"]+)"', markup)} <= set(ids)


def test_examples_are_among_the_items(report: SuiteReport, folder: Path, page: str) -> None:
    items = {(i.arm, i.index): i for i in read_items(folder / "items.jsonl")}
    for name in ("refusal", "over_refusal", "censorship", "parity", "change", "decoding"):
        found = report.examples[name]
        assert len(found) == 3
        for example in found:
            for arm, said, how in example.answers:
                of = f"{name}: " if name == "decoding" else ""
                item = items[of + arm, example.index]
                assert (item.prompt, item.output.strip()) == (example.prompt, said)
                assert how == judged(item)
            assert f'<div class="ask">{example.prompt}<' in page
    arms = [arm for arm, _, _ in report.examples["refusal"][0].answers]
    assert arms == ["model", "against"] and report.examples["refusal"][0].differ


def test_what_a_search_answered_last_is_kept(report: SuiteReport) -> None:
    ablated = [i for i in report.items if i.arm.startswith("topic_routing: ablated at resid_post@")]
    topic = [i for i in ablated if i.side == "positive"]
    found = report["topic_routing"].estimates["unanswered, ablated"]
    values = [i.scores["unanswered"] for i in topic]
    assert cluster_mean(values, [i.group for i in topic], unit="fraction") == found
    assert all(i.role == "topic" and i.prompt_tokens and i.output for i in ablated)
    plain = {i.index: i for i in report.items if i.arm == "topic_routing: plain"}
    greedy = {i.index: i for i in report.items if i.arm == "model"}
    assert plain and all(plain[n].output.strip() == greedy[n].output.strip() for n in plain)


def test_numbers_of_the_page_are_those_of_the_json(page: str, kept: Any) -> None:
    for name, found in kept["findings"].items():
        estimates = {k: Estimate(**e) for k, e in found["estimates"].items() if e["n"]}
        for estimate in estimates.values():
            assert f'<td class="n">{estimate}</td>' in page
        headline = found["headline"] or next(iter(estimates))
        line = page[page.index(f'<a href="#{name}"') :].split("</div>")[0]
        unit = estimates[headline].unit
        short = replace(estimates[headline], unit="" if unit.lower() in headline.lower() else unit)
        assert headline.replace("'", "&#39;") in line and f">{shown(short)}</b>" in line
        if found["p_adjusted"] is not None:
            assert f"p = {found['p_adjusted']:.2g}</" in line
        drawn = re.search(rf'Plotly\.newPlot\(\s*"figure-{name}",\s*', page)
        assert drawn is not None
        traces, _ = json.JSONDecoder().raw_decode(page, drawn.end())
        in_page = [t for t in traces if t.get("hoverinfo") != "skip"]
        assert [t.get("name", "") for t in in_page] == [
            s["name"] for s in found["figure"]["series"]
        ]
        for trace, series in zip(in_page, found["figure"]["series"], strict=True):
            assert trace["y"] == pytest.approx(series["y"]) if _plain(trace["y"]) else True


def _plain(values: Any) -> bool:
    return isinstance(values, list) and not any(isinstance(v, str | None) for v in values)


def test_figures_draw_the_estimates(kept: Any) -> None:
    refusal = kept["findings"]["refusal"]
    ours = refusal["figure"]["series"][0]
    rates = [refusal["estimates"][name] for name in ("refused", "right", "neither")]
    assert ours["name"] == "model" and ours["label"] == ["refused", "right", "neither"]
    assert ours["x"] == [e["value"] for e in rates]
    assert ours["low"] == pytest.approx([e["low"] for e in rates])
    assert ours["high"] == pytest.approx([e["high"] for e in rates])
    for name, curve in (
        ("geometry", "model"), ("detection", "model"), ("polarity", "a statement is asked"),
        ("similarity", "CKA (debiased)"),
    ):  # fmt: skip
        series = {s["name"]: s for s in kept["findings"][name]["figure"]["series"]}
        assert series[curve]["x"] == LAYERS and series[curve]["interval"] == "y"
        assert all(
            low <= y <= high
            for low, y, high in zip(*(series[curve][k] for k in ("low", "y", "high")), strict=True)
        )
    lowest = kept["findings"]["similarity"]["estimates"]["cka, lowest"]["value"]
    cka = kept["findings"]["similarity"]["figure"]["series"][0]
    assert min(cka["y"]) == pytest.approx(lowest)


def test_curves_over_layers_are_what_each_layer_gives_alone(kept: Any) -> None:
    """The detection curve against directions extracted without any report."""
    model, material = sk.load("organism:aligned"), Material.of_organisms(24, seed=6)
    contrast = sk.Contrast(material.contrasts["refusal"].positive, material.prompts["lookalikes"])
    acts = sk.capture(model, contrast, progress=False)
    found = sk.extract(acts, n_permutations=0, n_random=0, progress=False)
    aucs = [d.scores.auc.value for d in found if d.scores is not None]
    assert kept["findings"]["detection"]["figure"]["series"][0]["y"] == pytest.approx(aucs)


def test_what_was_not_measured_or_may_be_missed_is_said(report: SuiteReport, page: str) -> None:
    missing = page[page.index('<h2 id="missing">') : page.index('<h2 id="meaning">')]
    assert "Does steering harm what it was not meant for?" in missing
    assert "Not measured: no steering given." in missing
    parity = report["parity"]
    name, number = "sister less uncle", parity.estimates["sister less uncle"]
    assert parity.answer != "yes" and number.unit == "difference of rates"
    assert f"{name}: {amount(detectable(number), 'fraction')} away from none" in missing
    for found in report.findings.values():
        assert (found.sentence[:20] in missing) is False, "the reader has read it above"
    assert to_markdown(report).count("would have been found four times in five") == missing.count(
        "would have been found four times in five"
    )


def test_the_verdict_says_what_was_audited_and_counts(report: SuiteReport, page: str) -> None:
    opening = page[page.index("<h1>") : page.index('<section class="finding">')]
    for told in ("organism:aligned", "organism:base", "look-alikes (24)", "at most 12 tokens",
                 "harmful requests (24), harmless requests (24)"):  # fmt: skip
        assert told in opening
    answers = [f.answer for f in report.findings.values()]
    for answer in ("yes", "no", "inconclusive"):
        assert f"{answer}</span> {answers.count(answer)}</span>" in opening
    assert "not measured</span> 1</span>" in opening


HOSTILE = "<script>alert('a')</script> | `b` <img src=x>"


def made(finding: Finding, *items: Item) -> SuiteReport:
    asked = Examination("odd", f"Is it {HOSTILE}?", HOSTILE, lambda subject: finding)
    about = {"arms": {"model": {"name": HOSTILE, "steering": [HOSTILE]}}, "seed": 3}
    left = {"other": HOSTILE}
    return SuiteReport(HOSTILE, (asked,), {"odd": finding}, left, about, tuple(items))


def said(arm: str, index: int, output: str, **more: Any) -> Item:
    scores = more.pop("scores", {"refusal": 0.0, "correct": 0.0})
    return Item(arm, index, "positive", "g", f"{HOSTILE} {index}", output=output, scores=scores,
                role="refusal", **more)  # fmt: skip


def test_text_of_prompts_and_models_is_escaped() -> None:
    evidence = Section(
        HOSTILE,
        HOSTILE,
        columns=(HOSTILE,),
        rows=((HOSTILE,),),
        data={"examples": [{"role": "refusal", "side": "positive"}]},
    )
    chance = Null(HOSTILE, 0.0, 0.1, 0.2, 0.5, 9)
    finding = Finding("no", HOSTILE, {HOSTILE: wilson(1, 9)}, {HOSTILE: chance}, evidence=evidence)
    report = made(finding, said("model", 0, HOSTILE), said("against", 0, HOSTILE))
    for text in (to_html(report), report._repr_html_()):
        assert "<script>alert" not in text and "<img" not in text
        assert "&lt;script&gt;alert(&#39;a&#39;)" in text
    text = to_markdown(report)
    assert "<script>" not in text.replace(f"`{HOSTILE.replace('`', chr(39))}`", "")
    assert len(report.examples["odd"]) == 1 and "<script" in json.dumps(report.to_json())


def test_a_finding_of_words_alone_has_a_page() -> None:
    report = made(Finding("inconclusive", "Nothing was there."))
    assert "Nothing was there." in to_html(report) and "newPlot" not in to_html(report)
    found = report.to_json()["findings"]["odd"]
    assert found["figure"] is None and found["examples"] == []


def test_examples_are_drawn_alike_and_begin_where_arms_differ() -> None:
    no, refused = {"refusal": 0.0, "correct": 0.0}, {"refusal": 1.0, "correct": 0.0}
    items = [said("model", i, "x") for i in range(12)]
    items += [said("against", i, "y", scores=refused if i in (4, 9) else no) for i in range(12)]
    items += [said("steered, refitted at 3", i, "no arm") for i in range(12)]
    places = [{"role": "refusal", "side": "positive"}]
    found = examples_of(items, "odd", places, seed=1)
    assert found == examples_of(items, "odd", places, seed=1)
    assert {e.index for e in found[:2]} == {4, 9} and found[0].differ
    assert [a for a, _, _ in found[0].answers] == ["model", "against"]
    drawn = {examples_of(items, "odd", places, seed=s)[2].index for s in range(8)}
    assert len(drawn) > 2, "another seed draws others"
    assert examples_of(items, "odd", ()) == (), "no items of its own"
    own = [said(f"odd: {arm}", 0, "x", scores={"judge": float(arm == "six")})
           for arm in ("one", "two", "three", "four", "five", "six")]  # fmt: skip
    (example,) = examples_of([*items, *own], "odd", ())
    assert [a for a, _, _ in example.answers] == ["one", "two", "three", "six"]
    assert len(example.answers) == N_ARMS and example.answers[-1][2] == "complies"


def test_judgements_are_told_in_words() -> None:
    def of(**scores: float) -> str:
        return judged(said("model", 0, "x", scores=scores))

    assert of(refusal=1.0, correct=0.0) == "refused"
    assert of(refusal=0.0, correct=1.0) == "right"
    assert of(refusal=0.0, correct=0.0) == "neither refused nor right"
    assert of(refusal=0.0, correct=float("nan")) == "not refused"
    assert (of(judge=0.0), of()) == ("does not comply", "not judged")
    nan = float("nan")
    assert of(refusal=nan, correct=1.0) == of(judge=nan) == "the judge failed"


def test_on_a_phone_the_verdict_is_a_line_a_question_and_in_full_behind_a_box(
    report: SuiteReport, page: str
) -> None:
    """Answer, what was asked, and the number fit one line; the rest of them is there unseen."""
    verdict = page[page.index('<section class="verdict') :].split("</section>")[0]
    lines = [one.split("</div>")[0] for one in verdict.split('<div class="question">')[1:]]
    assert len(lines) == len(report.findings)
    for line, (name, finding) in zip(lines, report.findings.items(), strict=True):
        short = re.findall(r'class="short">([^<]*)<', line)
        number = re.findall(r'<b class="n short">([^<]*)<', line)
        assert short == [name.replace("_", " ")] and f">{finding.answer}<" in line
        assert len(short[0]) + len("".join(number)) <= 44, "or it takes two lines"
    hidden = " ".join(re.findall(r'full">([^<]*)<', verdict))
    for examination in report.asked:
        assert examination.question in unescape(hidden)
    for name, p in report.p_adjusted.items():
        assert p is None or told_p(p) in unescape(hidden), name
    assert '<input type="checkbox" id="in-full"><label for="in-full"' in verdict
    assert "#in-full:checked ~ * .full { display: inline; }" in page
    assert all(f'href="#missing-{name}"' in verdict for name in report.not_measured)
