"""Two shipped contrasts claim to be about truth; one of them is about animals against things."""

import pytest

import steerkit as sk
from steerkit import datasets
from steerkit.probing import ProbeReport


@pytest.fixture(scope="module")
def model():
    return sk.load("organism:aligned")


def probed(model, name: str) -> ProbeReport:
    acts = sk.capture(model, datasets.contrast(name), progress=False)
    blank = sk.untrained(model)
    return sk.probe(acts, untrained=blank, n_permutations=99, n_random=49, progress=False)


def test_a_perfect_probe_that_reads_the_topic_is_exposed(model):
    """At least 98%, p = 0.01, and it holds in left-out categories: only words give it away."""
    found = probed(model, "truth_topical")
    assert found.auc.value >= 0.98 and found.permutation.p == 0.01
    assert found.text is not None and found.text.auc.value >= 0.98
    assert found.text.state(found.margin) == "matched"
    assert found.reads_topic and "words alone" in found.exposed_by
    assert "reads the topic: not above the words alone" in found.summary()


def test_the_lexically_balanced_one_is_not_flagged(model):
    found = probed(model, "truth_balanced")
    assert found.auc.value >= 0.95 and found.verdict == "stands" and not found.exposed_by
    assert found.text is not None and found.text.auc.value <= 0.55
    assert found.untrained is not None and found.untrained.auc.value <= 0.55
    assert found.left_out is not None and found.left_out.auc.low > 0.5
