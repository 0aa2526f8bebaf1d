"""Truth, sentiment and refusal are read from the organism on words and templates never seen.

Directions are fitted on the training split and tested on the held-out one, which shares no
template and none of the deciding words with it. The layer (the middle one) and the token (where
the model is about to give its verdict) were fixed beforehand.
"""

from functools import cache

import numpy as np
import pytest

import steerkit as sk
from steerkit import datasets, organisms
from steerkit.activations import Activations
from steerkit.extraction.text_baseline import text_scores
from steerkit.prompts import Contrast, Prompt
from steerkit.statistics import auc

LAYER = 2
METHODS = ["mean_difference", "logistic", "ridge", "lda", "svm"]
CONCEPTS = ["truth/easy", "truth/balanced", "sentiment/easy", "sentiment/balanced", "refusal"]
ASKED = {"truth": " that is", "sentiment": " i"}
"""The words after which the model says true or false, liked or hated."""


def contrast(concept: str, split: str) -> Contrast:
    """A split's texts of a concept, each once."""
    if concept == "refusal":
        return datasets.refusal(split, 250, seed=0 if split == "train" else 1)
    name, kind = concept.split("/")
    draw = {"truth": organisms.statements, "sentiment": organisms.sentiment}[name]
    items = {item.text: item for item in draw(split, 500, balanced=kind == "balanced")}
    return Contrast.of(
        *(
            [
                Prompt(item.text + ASKED[name], group=item.group, template="raw")
                for item in items.values()
                if item.label == label
            ]
            for label in (True, False)
        ),
        name=name,
    )


@cache
def both(concept: str) -> tuple[Activations, Activations]:
    """Fitted on, and held out."""
    model = sk.load("organism:aligned")
    train, test = (
        sk.capture(model, contrast(concept, split), layers=[LAYER], progress=False)
        for split in ("train", "held_out")
    )
    return train, test


@pytest.mark.parametrize("concept", CONCEPTS)
@pytest.mark.parametrize("method", METHODS)
def test_it_is_read_on_unseen_words_and_templates(concept: str, method: str) -> None:
    train, test = both(concept)
    (direction,) = sk.extract(train, method, n_folds=0, progress=False)
    scores = test.at(LAYER).double() @ direction.unit.double()
    assert auc(scores.numpy(), test.row_labels.numpy()) >= 0.95


@pytest.mark.parametrize("concept", [c for c in CONCEPTS if c.endswith("balanced")])
def test_the_words_alone_do_not_tell(concept: str) -> None:
    """The text-only baseline, fitted and tested on the same prompts."""
    train, test = both(concept)
    prompts = [*train.prompts, *test.prompts]
    labels = np.array([*train.labels, *test.labels])
    split = (np.arange(len(train)), np.arange(len(train), len(prompts)))
    scores = text_scores(prompts, labels, [split])
    assert scores is not None
    assert auc(scores[split[1]], labels[split[1]]) <= 0.6
    assert not {p.text for p in train.prompts} & {p.text for p in test.prompts}
