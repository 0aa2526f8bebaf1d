"""Pages: self-contained, escaped, complete."""

import re
from html.parser import HTMLParser

import pytest

from steerkit.audits import Report, Section, audit
from steerkit.audits.render import examples, to_html, to_markdown
from steerkit.prompts import Contrast, Prompt

HOSTILE = "<script>alert('x')</script><img src=https://evil.example/x.png onerror=alert(1)>"


class Page(HTMLParser):
    """Tags, addresses that a browser would fetch, and text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched, self.text, self._skip = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self._skip = tag in ("script", "style")
        if tag in ("script", "link", "img", "iframe", "source", "video", "object"):
            self.fetched += [v for k, v in found.items() if k in ("src", "href", "data") and v]

    def handle_endtag(self, tag):
        self._skip = False

    def handle_data(self, data):
        self.text += "" if self._skip else data


@pytest.fixture(scope="module")
def hostile():
    """A report in which the concept, prompts, answers, arms and sections are hostile."""
    return HOSTILE


@pytest.fixture
def report(plain, scripted, steered, direction, hostile):
    contrast = Contrast.of(
        [Prompt(f"bomb {i} {hostile} end now", group=f"a{i}") for i in range(9)],
        [Prompt(f"cake {i} end now", group=f"b{i}") for i in range(9)],
        name=f"harm {hostile}",
    )
    talker = scripted(lambda p: hostile, shift=0.2, steering=(f"add {hostile}",))
    return audit(
        plain,
        talker,
        contrast,
        directions=direction,
        arms={f"arm {hostile}": steered},
        sections=[
            Section(
                f"Search {hostile}", f"{hostile}\n\nmore", columns=(hostile,), rows=((hostile,),)
            )
        ],
        progress=False,
    )


def test_the_page_is_self_contained_and_small(report):
    text = to_html(report)
    page = Page(text)
    assert page.fetched == []
    assert len(text.encode()) < 6_000_000
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    assert "url(" not in styles and "@import" not in styles
    assert text.count("plotly.js v") <= 1


def test_hostile_text_is_shown_and_never_run(report, hostile):
    text = to_html(report)
    page = Page(text)
    scripts = [a for t, a in page.tags if t == "script"]
    assert not [t for t, _ in page.tags if t == "img"]
    assert hostile in page.text
    # One script is plotly, the others draw figures: none holds the text as markup.
    assert len(scripts) == 1 + text.count('class="plotly-graph-div"')
    assert "alert('x')</script>" not in text
    assert "alert(1)>" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_the_page_reads_on_a_phone_in_the_dark_and_on_paper(report):
    text = to_html(report)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert '"responsive": true' in text


def test_the_verdict_comes_first_and_every_part_is_there(report):
    text = Page(to_html(report)).text
    parts = ("Figures", "Answers side by side", "What the numbers mean", "Provenance")
    places = [text.index(report.verdict), *(text.rindex(part) for part in parts)]
    assert places[0] == min(places)
    for words in ("KL per token", "Projection on the direction", "not measured", "sha256"):
        assert words.lower() in text.lower()


def test_markdown_holds_the_same_numbers_on_one_line_a_row(report):
    text = to_markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    table = [r for r in rows if r.startswith(("| refusal", "| kl", "| degeneration"))]
    assert len(table) == 6
    assert {len(re.findall(r"(?<!\\)\|", r)) for r in table} == {len(report.arms) + 2}
    assert any(line.startswith("| refusal, positive |") for line in rows)
    spoken = re.sub(r"`[^`\n]*`", "", text)
    assert "<script>" not in spoken and "<img" not in spoken
    shown = report.score("refusal", "positive").estimate
    assert f"{100 * shown.value:.0f}%" in next(r for r in rows if r.startswith("| refusal, pos"))


def test_notebook_and_terminal_forms(report):
    html = report._repr_html_()
    assert "<script" not in html and "<img" not in html and "refusal, positive" in html
    text = str(report)
    assert text.splitlines()[1] == report.verdict
    assert "not measured: correct" in text


def test_answers_stand_side_by_side_and_long_ones_are_cut(report):
    shown = examples(report, 3)
    assert [e["side"] for e in shown] == ["positive"] * 3 + ["negative"] * 3
    assert [a["arm"] for a in shown[0]["answers"]][:2] == ["plain", "steered"]
    assert shown[0]["answers"][0]["marks"] == ["refusal"]
    assert all(len(a["text"]) <= 601 for e in shown for a in e["answers"])


def test_a_report_without_audit_holds_sections_alone():
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=[0, 1], y=[0.5, 0.9], name="AUC"))
    report = Report("Directions", sections=(Section("AUC by layer", "Text.", figure),))
    text = to_html(report, sections=[Section("Later", html="<b>card</b>")])
    page = Page(text)
    assert "AUC by layer" in page.text and "Later" in page.text and "<b>card</b>" in text
    assert "nconclusive" not in page.text and "Provenance" not in page.text
    assert page.fetched == [] and '"name":"AUC"' in text
    assert "AUC by layer" in to_markdown(report)
