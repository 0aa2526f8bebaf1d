"""Matched contrasts differ in one word."""

from collections import Counter

from steerkit.datasets.occupations import TEMPLATES, occupation_concepts, sex_concepts
from steerkit.datasets.swapped import swapped
from steerkit.organisms.tokenizer import token_ids


def test_pairs_differ_in_the_word_alone():
    made = swapped("fruit", ["apple", "pear"], ["car", "bus", "apple"], ["a {w} .", "the {w}"], n=2)
    assert made.paired and len(made.positive) == len(made.negative) == 4
    for one, other in zip(made.positive, made.negative, strict=True):
        assert one.text.replace(one.category, "_") == other.text.replace(other.category, "_")
        assert one.group == other.group == one.text.replace(one.category, "{w}")
    assert Counter(p.category for p in made.positive) == {"apple": 2, "pear": 2}
    assert Counter(p.category for p in made.negative) == {"car": 2, "bus": 2}
    again = swapped("fruit", ["apple", "pear"], ["car", "bus"], ["a {w} .", "the {w}"], n=2)
    assert made == again


def test_occupations_are_compared_with_each_other_in_words_that_the_organisms_know():
    made = occupation_concepts()
    assert len(made) == 40 and {len(c.positive) for c in made.values()} == {8 * len(TEMPLATES)}
    assert all(f"the {name}" not in {p.category for p in c.negative} for name, c in made.items())
    known = set(token_ids())
    texts = [p.text for c in (*made.values(), *sex_concepts()) for p in (*c.positive, *c.negative)]
    assert {word for text in texts for word in text.split()} <= known
    assert not {word for text in texts for word in text.split()} & {"she", "he", "her", "his"}
