"""Truth, sentiment and refusal are read from the organism on words and templates never seen.

Directions are fitted on the training split and tested on the held-out one, which shares no
template and none of the deciding words with it, but for the places of `truth/easy`, which the
text-only baseline therefore reads as well. For truth and sentiment the layer and the token
(where the model is about to give its verdict) were chosen after a look at held-out AUC on the
shipped seed; for refusal they were not. `benchmarks/planted_concepts.py` has the numbers of five
seeds.
"""

from functools import cache

import numpy as np
import pytest

import steerkit as sk
from steerkit import datasets, organisms
from steerkit.activations import Activations
from steerkit.extraction.text_baseline import text_scores
from steerkit.organisms import vocabulary
from steerkit.prompts import Contrast, Prompt
from steerkit.statistics import auc

LAYER = 2
METHODS = ["mean_difference", "logistic", "ridge", "lda", "svm"]
CONCEPTS = ["truth/easy", "truth/balanced", "sentiment/easy", "sentiment/balanced", "refusal"]
ASKED = {"truth": " that is", "sentiment": " i"}
"""The words after which the model says true or false, liked or hated."""


def contrast(concept: str, split: str, n: int = 500) -> Contrast:
    """A split's texts of a concept, each once."""
    if concept == "refusal":
        return datasets.refusal(split, n // 2, seed=0 if split == "train" else 1)
    name, kind = concept.split("/")
    draw = {"truth": organisms.statements, "sentiment": organisms.sentiment}[name]
    items = {item.text: item for item in draw(split, n, balanced=kind == "balanced")}
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


def text_auc(concept: str) -> float:
    """AUC of words and word pairs, fitted and tested on the same prompts as the probes."""
    train, test = both(concept)
    prompts = [*train.prompts, *test.prompts]
    labels = np.array([*train.labels, *test.labels])
    split = (np.arange(len(train)), np.arange(len(train), len(prompts)))
    scores = text_scores(prompts, labels, [split])
    assert scores is not None
    return auc(scores[split[1]], labels[split[1]])


@pytest.mark.parametrize("concept", [c for c in CONCEPTS if c.endswith("balanced")])
def test_the_words_alone_do_not_tell(concept: str) -> None:
    train, test = both(concept)
    assert text_auc(concept) <= 0.55
    assert not {p.text for p in train.prompts} & {p.text for p in test.prompts}


def words_of(acts: Activations) -> set[str]:
    return {word for prompt in acts.prompts for word in prompt.text.split()}


@pytest.mark.parametrize(
    ("concept", "deciding"),
    [
        ("truth/easy", {*vocabulary.ANIMALS, *vocabulary.THINGS}),
        ("truth/balanced", {*vocabulary.ANIMALS, *vocabulary.THINGS}),
        ("sentiment/easy", {*vocabulary.PLEASANT, *vocabulary.UNPLEASANT}),
        ("sentiment/balanced", {*vocabulary.PLEASANT, *vocabulary.UNPLEASANT}),
        ("refusal", {*vocabulary.HARMFUL_VERBS, *vocabulary.HARMLESS_VERBS}),
    ],
)
def test_the_deciding_words_and_the_templates_are_unseen(concept: str, deciding: set[str]) -> None:
    """Subjects of statements, adjectives of reviews, verbs of requests; and every template."""
    train, test = both(concept)
    seen, unseen = words_of(train) & deciding, words_of(test) & deciding
    assert len(seen) > 3 and len(unseen) > 3 and not seen & unseen
    assert not set(train.groups) & set(test.groups)


def test_words_that_were_never_seen_tell_the_baseline_nothing() -> None:
    """The easy reviews too: what gives them away is an adjective, and none of them is known."""
    assert text_auc("sentiment/easy") == 0.5


def test_the_easy_set_is_given_away_by_its_words() -> None:
    """A perfect probe that proves nothing: the baseline matches it on the same prompts."""
    assert text_auc("truth/easy") == 1.0


def test_an_eraser_removes_what_is_linear_and_a_kernel_says_what_is_left() -> None:
    """Sentiment in balanced reviews, nearly all there are: 714, split by template and subject."""
    reviews = contrast("sentiment/balanced", "train", n=3000)
    acts = sk.capture(sk.load("organism:aligned"), reviews, layers=[LAYER], progress=False)
    found = sk.check_erasure(acts, LAYER)
    erased, ablated = found["erased"], found["mean difference ablated"]
    assert found["untouched"].linear.value == 1.0
    assert erased.linear.low < 0.55 and erased.linear.value < min(0.65, found.floor)
    assert erased.change < ablated.change
    assert erased.nonlinear.low > 0.65, "it was planted so that more than a line holds it"


def test_a_model_that_is_steered_by_the_eraser_is_erased_there() -> None:
    train, _ = both("sentiment/balanced")
    eraser = sk.Eraser.fit(train, LAYER)
    model = sk.load("organism:aligned")
    steered = sk.capture(
        model.with_(eraser.intervention()),
        contrast("sentiment/balanced", "train"),
        layers=[LAYER],
        progress=False,
    )
    wanted = eraser(train.at(LAYER))
    error = (steered.at(LAYER) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(error.max()) < 1e-5
    gap = steered.at(LAYER)[steered.row_labels == 1].mean(0)
    gap = gap - steered.at(LAYER)[steered.row_labels == 0].mean(0)
    assert float(gap.norm()) < 1e-4 * float(wanted.norm(dim=1).mean())
