"""Which of two texts is likelier: planted preferences, what length alone prefers, false alarms."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.errors import PromptError
from steerkit.prompts import Contrast, Prompt
from steerkit.suites import Material
from steerkit.suites import preference as tested
from steerkit.suites.preference import Preferences, preferences, preferred
from steerkit.suites.subject import Subject

QUIET: dict[str, Any] = {"progress": False}
NAMES = ("stereotypes", "truthfulness")
MODEL: Any = object()
"""Where preferences are given, no model is asked."""


@pytest.fixture(scope="module")
def material() -> Material:
    return Material.of_organisms(30, seed=2)


def turned(material: Material) -> Material:
    """The sides of every pair exchanged."""
    return Material(
        {
            role: replace(c, positive=c.negative, negative=c.positive)
            for role, c in material.contrasts.items()
        }
    )


def test_planted_preferences_are_found(material: Material) -> None:
    """Of occupations that lean the planted word, of statements what they were planted to be."""
    model = sk.load("organism:aligned")
    found = sk.audit(model, suite=NAMES, material=material, **QUIET)
    other = sk.audit(model, suite=NAMES, material=turned(material), **QUIET)
    for name, first in (("stereotypes", "the stereotype"), ("truthfulness", "the right answer")):
        assert found[name].answer == "yes" and other[name].answer == "no"
        share, back = (f[name].estimates[f"{first} likelier"] for f in (found, other))
        assert share.value > 0.95 and back.value == pytest.approx(1 - share.value)
        assert found[name].p == other[name].p and found[name].rests_on_p


def test_log_probabilities_are_those_of_the_network(tiny_model: Any) -> None:
    texts = ["the cat was happy", "the cat was sad and not good"]
    answers = [" good", " very bad"]
    pairs = Contrast.of([texts[0], Prompt("is it ?", answer=answers[0])],
                        [texts[1], Prompt("is it ?", answer=answers[1])], paired=True)  # fmt: skip

    def by_hand(prompt: Prompt) -> tuple[float, int]:
        item = tiny_model.tokenize([prompt if prompt.answer else
                                    replace(prompt, template="raw")])[0]  # fmt: skip
        ids = torch.tensor([[*item.prompt, *item.answer]])
        start = len(item.prompt) if prompt.answer else 1
        with torch.no_grad():
            logits = tiny_model.network.double()(ids).logits[0].log_softmax(-1)
        tiny_model.network.float()
        new = ids[0, start:]
        return float(logits[start - 1 : -1].gather(1, new[:, None]).sum()), len(new)

    found = preferences(tiny_model, pairs)
    for i, (a, b) in enumerate(zip(pairs.positive, pairs.negative, strict=True)):
        (one, n), (other, m) = by_hand(a), by_hand(b)
        assert found.total[i] == (one > other) and found.mean[i] == (one / n > other / m)
        assert found.shorter[i] == (np.sign(m - n) + 1) / 2


def alone(values: Preferences, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is said of given preferences."""
    n = len(values.total)
    pairs = Contrast.of([f"a{i}" for i in range(n)], [f"b{i}" for i in range(n)], paired=True)
    monkeypatch.setattr(tested, "preferences", lambda *args, **options: values)
    subject = Subject(MODEL, Material({"stereotypes": pairs}))
    return preferred(subject, "stereotypes", first="one", second="other")


def test_what_length_alone_prefers_is_no_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum likes the shorter side and the mean does not: no is said, or nothing."""
    rng = np.random.default_rng(0)
    short = (rng.random(400) < 0.8).astype(float)
    found = alone(Preferences(short, 1 - short, short), monkeypatch)
    assert found.answer == "no" and found.estimates["one likelier"].low > 0.7
    assert found.estimates["one shorter"].value == found.estimates["one likelier"].value


def test_sides_that_are_no_pairs_are_not_measured(material: Material) -> None:
    apart = replace(material.contrasts["truths"], paired=False)
    with pytest.raises(PromptError, match="needs pairs, the right answer and a wrong one"):
        sk.audit(sk.load("organism:base"), suite=["truthfulness"], progress=False,
                 material=Material({"truths": apart}))  # fmt: skip
