"""Cards: every number and prompt is on them, escaped, in HTML that closes."""

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from steerkit.cards import direction_card, directions_table
from steerkit.direction import Direction, Directions, ProbeScores
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.statistics import Estimate, Null

INFO = ModelInfo("toy<model>", "llama", 4, 2, 50, 64, ("resid_post",), "float32", "cpu", "a" * 64)
SCORES = ProbeScores(
    auc=Estimate(0.912, 0.85, 0.96, 40, "AUC"),
    permutation=Null("permuted", 0.5, 0.613, 0.65, 0.005, 199),
    random=Null("random", 0.55, 0.724, 0.75, 0.015, 199),
    text=Estimate(0.635, 0.52, 0.71, 40, "AUC"),
    shaped=Null("shaped", 0.55, 0.745, 0.75, 0.02, 199),
    family=Null("family", 0.6, 0.687, 0.75, 0.01, 199),
)


def direction(**more: Any) -> Direction:
    given: dict[str, Any] = {
        "unit": torch.tensor([0.6, 0.8]),
        "scale": 2.25,
        "site": Site(1),
        "method": "lda",
        "concept": "joy <script>alert(1)</script>",
        "positive_mean": 1.75,
        "negative_mean": -0.5,
        "model": INFO,
        "pooling": "last",
        "polarity": 1,
        "scores": SCORES,
        "examples": ((("a <b>bold</b> & 'quoted' prompt", 3.25),), (("long " * 80, -2.5),)),
        "tokens": ((" happy", "\n"), ("<eos>", "")),
    }
    return Direction(**{**given, **more})


class Checker(HTMLParser):
    """Tags opened and not closed, the text, and every style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.styles: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.styles += [value or "" for name, value in attrs if name == "style"]
        assert {name for name, _ in attrs} <= {"style"}, f"a stray attribute in {attrs}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", ["card", "table"])
def test_the_html_closes_what_it_opens_and_runs_nothing(text: str) -> None:
    d = direction()
    found = Checker(direction_card(d) if text == "card" else directions_table(Directions((d,))))
    assert not found.open
    assert not found.tags & {"script", "style", "img", "link", "iframe"}
    assert "joy <script>alert(1)</script>" in found.text, "shown as text, not run"
    assert "toy<model>" in found.text
    # A page may be light or dark: no surface or text colour is fixed.
    for style in found.styles:
        for part in style.split(";"):
            name, _, value = part.partition(":")
            assert name != "color" or value == "inherit"
            if name == "background" and value.startswith("#"):
                assert value in ("#D55E00", "#8A8A8A", "#E69F00"), "only bars are coloured"


def test_a_card_shows_what_the_direction_knows() -> None:
    text = Checker(direction_card(direction())).text
    for shown in ("lda", "resid_post@1", "read at last", "2.25", "1.75", "-0.5"):
        assert shown in text
    for number in ("0.912", "[0.850, 0.960]", "0.635", "0.613", "0.724", "0.745", "0.687"):
        assert number in text
    assert "p 0.005" in text and "p 0.01" in text and "199 draws" in text
    assert "·happy" in text and "↵" in text and "<eos>" in text and "∅" in text
    assert "a <b>bold</b> & 'quoted' prompt" in text and "3.25" in text
    assert "…" in text and "long " * 40 not in text, "long prompts are cut"
    assert "held on unseen prompts" in text


def test_bars_reach_from_one_half_to_the_value() -> None:
    html = direction_card(direction())
    assert "left:50.0%;width:41.2%" in html, "AUC"
    assert "left:85.0%" in html and "width:11.0%" in html, "its interval"
    low = replace(SCORES, auc=Estimate(0.3, 0.2, 0.4, 40, "AUC"))
    assert "left:30.0%;width:20.0%" in direction_card(direction(scores=low))


@pytest.mark.parametrize("polarity, told", [(-1, "reversed on unseen"), (0, "not checked on")])
def test_a_doubtful_sign_is_told(polarity: int, told: str) -> None:
    assert told in Checker(direction_card(direction(polarity=polarity))).text


def test_a_card_without_scores_tokens_or_examples() -> None:
    bare = direction(scores=None, tokens=((), ()), examples=((), ()), polarity=0)
    found = Checker(direction_card(bare))
    assert "never scored" in found.text and "AUC" not in found.text and not found.open


def test_nulls_that_were_not_drawn_are_not_shown() -> None:
    empty = Null("", float("nan"), float("nan"), float("nan"), float("nan"), 0)
    scores = ProbeScores(SCORES.auc, empty, empty)
    found = Checker(direction_card(direction(scores=scores)))
    assert "nan" not in found.text and "permuted" not in found.text


def test_the_table_has_a_row_for_each_and_marks_the_best() -> None:
    worse = replace(SCORES, auc=Estimate(0.7, 0.6, 0.8, 40, "AUC"))
    items = (direction(scores=worse, method="pca", polarity=-1), direction(site=Site(2)))
    html = directions_table(Directions(items))
    assert html.count("<tr ") == 3
    rows = html.split("<tr ")
    assert "pca" in rows[2] and "flipped" in rows[2] and "font-weight:600'><td" not in rows[2]
    assert "resid_post@2" in rows[3] and "font-weight:600'><td" in rows[3]
    assert "0.64" in Checker(html).text, "the words alone"


def test_tables_of_nothing_and_of_unscored_directions() -> None:
    assert "no directions" in directions_table(Directions(()))
    found = Checker(directions_table(Directions((direction(scores=None),))))
    assert "not scored" in found.text and not found.open


def test_jupyter_gets_them() -> None:
    d = direction()
    assert d._repr_html_() == direction_card(d)
    assert Directions((d,))._repr_html_() == directions_table(Directions((d,)))
