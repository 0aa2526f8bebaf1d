"""Truth, sentiment and refusal on words and templates never seen, by five methods, over seeds.

    python -m steerkit.organisms.seeds --out DIR       # trains five seeds, an hour
    python benchmarks/planted_concepts.py --organisms DIR [--quick]

Not a timing. On each seed's `aligned` organism directions are fitted on the training split and
scored on the held-out one, which shares no template and none of the deciding words with it (but
for the places of `truth/easy`). Beside each AUC stands that of words and word pairs, fitted and
tested on the same prompts. The layer (2) and the token (where the model is about to give its
verdict) were chosen for truth and sentiment after a look at held-out AUC on the shipped seed, 0;
the other seeds were read after that. Lexically balanced sets stand as they are. Without
`--organisms` only the shipped seed is measured. Writes `results/planted_concepts.json`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch

import steerkit as sk
from steerkit import datasets, organisms
from steerkit.extraction.ranking import fold_auc
from steerkit.extraction.text_baseline import text_scores
from steerkit.models import LanguageModel
from steerkit.prompts import Contrast, Prompt

LAYER = 2
METHODS = ("mean_difference", "logistic", "ridge", "lda", "svm")
CONCEPTS = ("truth/easy", "truth/balanced", "sentiment/easy", "sentiment/balanced", "refusal")
ASKED = {"truth": " that is", "sentiment": " i"}
GOAL = 0.95


def contrast(concept: str, split: Any, n: int) -> Contrast:
    """A split's texts of a concept, each once."""
    if concept == "refusal":
        return datasets.refusal(split, n // 2, seed=0 if split == "train" else 1)
    name, kind = concept.split("/")
    draw = {"truth": organisms.statements, "sentiment": organisms.sentiment}[name]
    items = {item.text: item for item in draw(split, n, balanced=kind == "balanced")}
    sides = (
        [
            Prompt(item.text + ASKED[name], group=item.group, template="raw")
            for item in items.values()
            if item.label == label
        ]
        for label in (True, False)
    )
    return Contrast.of(*sides, name=name)


def read(model: LanguageModel, concept: str, n: int) -> dict[str, Any]:
    """Every method's AUC on the held-out split, and that of the words."""
    train, test = (
        sk.capture(model, contrast(concept, split, n), layers=[LAYER], progress=False)
        for split in ("train", "held_out")
    )
    labels = np.array(test.labels)
    one = np.zeros(len(labels), dtype=np.int64)
    found: dict[str, Any] = {}
    for direction in sk.extract(train, METHODS, n_folds=0, progress=False):
        scores = (test.at(LAYER).double() @ direction.unit.double()).numpy()
        found[direction.method] = fold_auc(scores, labels, one, test.groups).to_json()
    prompts = [*train.prompts, *test.prompts]
    both = np.array([*train.labels, *test.labels])
    held = np.arange(len(train), len(prompts))
    words = text_scores(prompts, both, [(np.arange(len(train)), held)])
    text = None if words is None else fold_auc(words[held], labels, one, test.groups).to_json()
    return {"prompts": len(labels), "methods": found, "words alone": text}


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--organisms", type=Path, help="folder of seed_N folders")
    options.add_argument("--quick", action="store_true", help="few prompts; proves it runs")
    given = options.parse_args()
    torch.set_num_threads(1)
    folders = sorted(given.organisms.glob("seed_*")) if given.organisms else [None]
    by_seed: dict[str, Any] = {}
    for folder in folders:
        seed = folder.name.removeprefix("seed_") if folder else "embedded"
        model = sk.load(str(folder / "aligned") if folder else "organism:aligned")
        by_seed[seed] = {c: read(model, c, 100 if given.quick else 500) for c in CONCEPTS}
        for concept, row in by_seed[seed].items():
            told = "  ".join(f"{m} {e['value']:.3f}" for m, e in row["methods"].items())
            print(f"seed {seed} {concept:18s} {told}  words {row['words alone']['value']:.3f}")
    reached = {
        concept: sum(
            all(e["value"] >= GOAL for e in rows[concept]["methods"].values())
            for rows in by_seed.values()
        )
        for concept in CONCEPTS
    }
    print(f"seeds on which all five methods reach {GOAL}: {reached} of {len(by_seed)}")
    name = "planted_concepts-quick" if given.quick else "planted_concepts"
    part = {"machine": timing.machine(), "seeds_at_goal": reached, "by_seed": by_seed}
    print(timing.update(name, {"over_seeds" if given.organisms else "embedded": part}))


if __name__ == "__main__":
    main()
