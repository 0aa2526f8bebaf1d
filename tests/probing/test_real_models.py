"""Real English in real small models: no probe is reported without the words and a blank model."""

import csv
import json
from pathlib import Path

import pytest

import steerkit as sk
from steerkit.prompts import Contrast, Prompt

N = 120
"""Prompts a side."""


def sst(data: Path) -> Contrast:
    with (data / "sst" / "dev_binary_sent.csv").open(encoding="utf-8", newline="") as opened:
        found = {row["sentence"]: int(row["label"]) for row in csv.DictReader(opened)}
    # Shorter than the context of a model that reads one character a token.
    sides = ([t for t, own in found.items() if own == side and len(t) < 200] for side in (1, 0))
    return Contrast.of(*sides, name="sst").sample(N)


def facts(data: Path) -> Contrast:
    with (data / "facts" / "facts_true_false.csv").open(encoding="utf-8", newline="") as opened:
        found = {row["statement"]: int(row["label"]) for row in csv.DictReader(opened)}
    # True and false statements of one template stay together, or the words mislead across folds.
    prompts = {Prompt(t, group=" ".join(t.lower().split()[:3])): own for t, own in found.items()}
    sides = ([p for p, own in prompts.items() if own == side] for side in (1, 0))
    return Contrast.of(*sides, name="facts").sample(N)


def emotions(data: Path) -> Contrast:
    happy, sad = (
        dict.fromkeys(json.loads((data / "emotions" / f"{name}.json").read_text()))
        for name in ("happiness", "sadness")
    )
    return Contrast.of(
        [t for t in happy if t not in sad], [t for t in sad if t not in happy], name="happiness"
    ).sample(N)


@pytest.mark.slow
@pytest.mark.parametrize("read", [sst, facts, emotions], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361"])
def test_a_small_model_is_probed_beside_its_words_and_a_blank_one(name, read, shared: Path) -> None:
    """So few prompts tell no probe of a small story model from every control."""
    if not (shared / "models" / name).is_dir() or not (shared / "data").is_dir():
        pytest.skip(f"the model {name} or the data are missing in {shared}")
    model = sk.load(shared / "models" / name)
    acts = sk.capture(model, read(shared / "data"), positions="mean_prompt", progress=False)
    found = sk.probe(
        acts,
        "ridge",
        untrained=sk.untrained(model),
        n_permutations=19,
        n_random=19,
        progress=False,
    )
    assert found.text is not None and found.untrained is not None
    assert found.verdict != "stands"
    groups = len(set(acts.groups))
    assert found.auc.n == found.text.auc.n == found.untrained.auc.n == groups
    if read is emotions:
        assert found.found and found.text.auc.low > 0.6
