"""What small real models let a probe read, beside the words alone and an untrained model.

    python benchmarks/probe_controls.py --shared DIR [--quick]

Not a timing. `DIR` holds `models/` (stories260K, babyllama-tok361) and `data/` (SST, emotions,
true and false facts). Every contrast is probed at all layers' last token and, apart, at the mean
of the prompt: site and penalty chosen on inner folds, scored on outer ones, on a seeded sample of
each set. Beside the models' own stand the shipped contrasts on the organism, where the answer is
known. Numbers only, no text. Writes `results/probe_controls.json`,
each contrast as it is done.
"""

import argparse
import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch

import steerkit as sk
from steerkit import datasets
from steerkit.errors import PromptError
from steerkit.models import LanguageModel
from steerkit.prompts import Contrast, Prompt

MODELS = ("stories260K", "babyllama-tok361")
POSITIONS = ("last", "mean_prompt")


def rows(file: Path, text: str, label: str, name: str, *, opening: int = 0) -> Contrast:
    """A CSV with a text and a label of 1 or 0; the same text is one prompt.

    With `opening`, prompts that begin with the same so many words are one group: true and false
    statements from one template would otherwise be split, and mislead the words across folds.
    """
    with file.open(encoding="utf-8", newline="") as opened:
        found = {row[text].strip(): int(row[label]) for row in csv.DictReader(opened)}
    sides = (
        [
            Prompt(t, group=" ".join(t.lower().split()[:opening]))
            for t, own in found.items()
            if own == side
        ]
        for side in (1, 0)
    )
    return Contrast.of(*sides, name=name)


def emotions(folder: Path) -> Contrast:
    """Happy against sad scenarios; texts on both sides are left out."""
    sides = [
        list(dict.fromkeys(json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))))
        for name in ("happiness", "sadness")
    ]
    both = set(sides[0]) & set(sides[1])
    return Contrast.of(*([t for t in side if t not in both] for side in sides), name="happiness")


CONTRASTS: dict[str, Callable[[Path], Contrast]] = {
    "sst": lambda data: rows(data / "sst" / "train_binary_sent.csv", "sentence", "label", "sst"),
    "emotions": lambda data: emotions(data / "emotions"),
    "facts": lambda data: rows(
        data / "facts" / "facts_true_false.csv", "statement", "label", "facts", opening=3
    ),
}


def fitting(contrast: Contrast, model: LanguageModel, n: int) -> Contrast:
    """At most `n` prompts a side, of those that fit the model's context."""
    drawn = contrast.sample(4 * n)

    def fits(prompt: Prompt) -> bool:
        try:
            return bool(model.tokenize([prompt]))
        except PromptError:
            return False

    sides = ([p for p in side if fits(p)][:n] for side in (drawn.positive, drawn.negative))
    return Contrast.of(*sides, name=contrast.name)


def probed(model: LanguageModel, contrast: Contrast, position: str, **options: Any) -> Any:
    """The report as numbers: probabilities of single prompts are left out."""
    acts = sk.capture(model, contrast, positions=position, progress=False)
    found = sk.probe(acts, untrained=sk.untrained(model), progress=False, **options)
    print(f"{position:12s} {found.sentence()}", flush=True)
    data = found.to_json()
    del data["probabilities"]
    return data


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--shared", type=Path, default=os.environ.get("STEERKIT_SHARED"), help="models and data"
    )
    options.add_argument("--models", nargs="*", default=MODELS, help="which of the two")
    options.add_argument("--contrasts", nargs="*", default=tuple(CONTRASTS), choices=CONTRASTS)
    options.add_argument("--n", type=int, default=300, help="prompts a side at most")
    options.add_argument("--quick", action="store_true", help="few prompts; proves it runs")
    given = options.parse_args()
    torch.set_num_threads(1)
    n = 40 if given.quick else given.n
    draws = {"n_permutations": 19, "n_random": 19} if given.quick else {}
    organism = sk.load("organism:aligned")
    name = "probe_controls-quick" if given.quick else "probe_controls"
    known = {
        contrast: {"last": probed(organism, datasets.contrast(contrast), "last", **draws)}
        for contrast in ("truth_topical", "truth_balanced")
    }
    timing.update(name, {"machine": timing.machine(), "organism:aligned": known})
    for model_name in given.models if given.shared else ():
        model = sk.load(given.shared / "models" / model_name)
        for concept in given.contrasts:
            contrast = fitting(CONTRASTS[concept](given.shared / "data"), model, n)
            print(f"{model_name}, {concept}: {contrast}")
            found = {position: probed(model, contrast, position, **draws) for position in POSITIONS}
            print(timing.update(name, {f"{model_name}, {concept}": found}))


if __name__ == "__main__":
    main()
