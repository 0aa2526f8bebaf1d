import json

import pytest

from steerkit import datasets
from steerkit.errors import PromptError


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
