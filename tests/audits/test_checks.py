"""The registered checks: a contract each inherits, and what each one counts."""

import math
from dataclasses import replace

import numpy as np
import pytest

from steerkit.audits import Evidence, Item, ItemCheck, audit, check_names
from steerkit.audits.checks import chosen
from steerkit.audits.checks.degeneration import is_degenerate
from steerkit.audits.evidence import includes
from steerkit.errors import MethodError


def evidence(*outputs, side="positive", **measured):
    items = tuple(
        Item("a", i, side, f"g{i}", "ask", output=o, reference="paris")
        for i, o in enumerate(outputs)
    )
    if measured:
        items = tuple(
            replace(x, measured={k: tuple(v[i]) for k, v in measured.items()})
            for i, x in enumerate(items)
        )
    return Evidence("a", items, items)


@pytest.fixture(scope="module")
def names():
    return check_names()


@pytest.mark.parametrize("name", check_names())
def test_a_model_against_itself_differs_by_nothing(name, plain, contrast, direction):
    report = audit(
        plain,
        plain,
        contrast,
        checks=["refusal", *([name] if name != "refusal" else [])],
        directions=direction,
        texts=["a cat sat on a mat"],
        arms={"again": replace(plain)},
        progress=False,
    )
    found = [s for s in report.scores if s.check == name and s.difference]
    assert {s.arm for s in found} >= {"steered", "again"}
    for s in found:
        if s.arm in ("steered", "again"):
            assert s.difference.estimate.value == 0.0
            assert s.difference.direction == "inconclusive"


@pytest.mark.parametrize("name", check_names())
def test_a_check_gives_one_value_an_item_and_keeps_its_evidence(name):
    given = evidence("I can't help with that.", "paris it is", "")
    before = given.items
    values = chosen([name])[0](given)
    assert values.shape == (3,) and values.dtype == np.float64
    assert given.items is before
    reverse = Evidence("a", given.items[::-1], given.plain[::-1])
    np.testing.assert_array_equal(chosen([name])[0](reverse), values[::-1])


@pytest.mark.parametrize("name", check_names())
def test_a_check_says_what_it_is(name):
    check = chosen([name])[0]
    assert check.name == name and check.unit and check.source and check.law.endswith(".")


@pytest.mark.parametrize("name", ["refusal", "compliance", "correct", "degeneration"])
def test_checks_of_answers_do_not_apply_to_texts_that_were_only_scored(name):
    values = chosen([name])[0](evidence("I can't help with that.", side="text"))
    assert np.isnan(values).all()


def test_refusal_and_compliance_leave_broken_answers_out_of_both():
    given = evidence("I'm sorry, but I can't do that.", "the the the the the", "", "paris")
    assert list(chosen(["refusal"])[0](given)) == [1, 0, 0, 0]
    assert list(chosen(["compliance"])[0](given)) == [0, 0, 0, 1]
    assert list(chosen(["degeneration"])[0](given)) == [0, 1, 1, 0]


def test_correct_needs_a_reference_and_reads_whole_words():
    given = evidence("It is PARIS.", "comparison", "lyon")
    assert list(chosen(["correct"])[0](given)) == [1, 0, 0]
    bare = replace(given, items=tuple(replace(i, reference="") for i in given.items))
    assert np.isnan(chosen(["correct"])[0](bare)).all()
    assert includes("you need the oven .", "you need the oven.") == 1.0
    fuzzy = replace(given, scorer=lambda out, ref: 0.25)
    assert list(chosen(["correct"])[0](fuzzy)) == [0.25] * 3


def test_measured_checks_average_tokens_and_skip_what_was_not_measured():
    given = evidence("a", "b", kl=([0.1, 0.3], []), nll=([math.log(2), math.log(8)], []))
    kl, perplexity = chosen(["kl"])[0](given), chosen(["perplexity"])[0](given)
    assert kl[0] == pytest.approx(0.2) and math.isnan(kl[1])
    assert perplexity[0] == pytest.approx(4.0) and math.isnan(perplexity[1])


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("", True),
        ("  \n", True),
        ("no no no no no no", True),
        ("the cat sat the cat sat the cat sat the cat sat", True),
        ("well then it said a b a b a b a b a b a b", True),
        ("!" * 40, True),
        ("hahahahahahahahahaha", True),
        ("no no, the cat sat by the fire and slept", False),
        ("one two one two is the step of this dance, then turn and bow", False),
        ("to bake the bread you need the oven .", False),
        ("a b c d e f g h", False),
        ("yes", False),
    ],
)
def test_degenerate_answers(text, broken):
    assert is_degenerate(text) is broken


def test_a_check_of_the_wrong_shape_or_without_bound_is_refused():
    short = ItemCheck("short", "fraction", "law.", "me", lambda e: [0.0])
    with pytest.raises(MethodError, match=r"'short' gave values of shape \(1,\) for 2 prompts"):
        short(evidence("a", "b"))
    wild = ItemCheck("wild", "nats", "law.", "me", lambda e: [0.0, math.inf])
    with pytest.raises(MethodError, match="'wild' gave an infinite value for prompt 1"):
        wild(evidence("a", "b"))


def test_an_unknown_check_says_what_was_meant_and_twice_is_an_error():
    with pytest.raises(MethodError, match="no check named 'refusals'; did you mean 'refusal'"):
        chosen(["refusals"])
    with pytest.raises(MethodError, match="two checks are called 'kl'"):
        chosen(["kl", "kl"])


def test_the_readers_order_comes_first(names):
    assert [c.name for c in chosen()][:3] == ["refusal", "compliance", "correct"]
    assert {c.name for c in chosen()} == set(names)
