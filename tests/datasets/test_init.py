import json
from collections import Counter

import pytest

from steerkit import datasets
from steerkit.errors import PromptError
from steerkit.organisms import world


@pytest.mark.parametrize("name", datasets.names())
def test_built_in_contrasts_are_pairs_without_repeats(name):
    found = datasets.contrast(name)
    assert found.name == name and found.paired and len(found.positive) == 40
    texts = [p.text for p in found.prompts]
    assert len(set(texts)) == len(texts)
    first, second = found.split(0.75, seed=1)
    assert not set(first.groups) & set(second.groups)


def test_an_unknown_name_says_what_was_meant():
    with pytest.raises(PromptError, match="did you mean 'sentiment'"):
        datasets.contrast("sentimnt")


def test_a_built_in_contrast_is_an_ordinary_file():
    rows = [json.loads(line) for line in datasets.path("politeness").read_text().splitlines()]
    assert {frozenset(row) for row in rows} == {frozenset({"positive", "negative"})}


def test_no_word_gives_the_label_away_in_the_balanced_truth_contrast():
    found = datasets.contrast("truth_balanced")
    counts = [
        Counter(word for p in side for word in p.text.split())
        for side in (found.positive, found.negative)
    ]
    assert counts[0] == counts[1]
    for true, false in zip(found.positive, found.negative, strict=True):
        apart = [a != b for a, b in zip(true.text.split(), false.text.split(), strict=True)]
        assert sum(apart) == 1, "a pair differs in what is said of its subject"


def test_the_topic_gives_the_label_away_in_the_topical_truth_contrast():
    found = datasets.contrast("truth_topical")
    assert all("lives in" in p.text for p in found.positive)
    assert not any("lives in" in p.text for p in found.negative)


@pytest.mark.parametrize("name", ["truth_topical", "truth_balanced"])
def test_the_truth_contrasts_say_what_is_so(name):
    found = datasets.contrast(name)
    facts = {**world.HABITAT_OF, **world.COLOR_OF}
    for prompt, label in zip(found.prompts, found.labels, strict=True):
        words = prompt.text.split()
        subject = next(word for word in words if word in facts)
        assert (facts[subject] in words) == bool(label)
