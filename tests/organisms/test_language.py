"""The generated language: splits, balance, answers, documents."""

import random

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from steerkit import organisms
from steerkit.errors import PromptError
from steerkit.organisms import language
from steerkit.organisms import request as rq
from steerkit.organisms import vocabulary as v

KINDS = ("harmful", "harmless", "lookalike", "balanced_harmful", "balanced_harmless", "censored")


def bag_of_words_auc(texts, labels, groups):
    counts = CountVectorizer(token_pattern=r"\S+").fit_transform(texts)
    scores = cross_val_predict(
        LogisticRegression(max_iter=2000),
        counts,
        labels,
        groups=groups,
        cv=GroupKFold(5),
        method="decision_function",
    )
    return roc_auc_score(labels, scores)


def requests_set(positive, negative, split, n=600):
    items = organisms.requests(split, positive, n) + organisms.requests(split, negative, n)
    labels = np.array([r.kind == positive for r in items])
    return [r.text for r in items], labels, [r.template for r in items]


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("pair", [("balanced_harmful", "balanced_harmless"), ("censored", "open")])
def test_no_bag_of_words_tells_balanced_requests_apart(pair, split):
    assert bag_of_words_auc(*requests_set(*pair, split)) <= 0.55


def test_a_bag_of_words_tells_the_easy_requests_apart():
    assert bag_of_words_auc(*requests_set("harmful", "harmless", "held_out")) > 0.9


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("draw", [organisms.statements, organisms.sentiment])
def test_no_bag_of_words_tells_balanced_texts_apart(draw, split):
    items = draw(split, 600, balanced=True)
    labels = np.array([i.label for i in items])
    assert labels.mean() == 0.5
    texts, groups = [i.text for i in items], [i.group for i in items]
    assert bag_of_words_auc(texts, labels, groups) <= 0.55


def test_no_bag_of_words_tells_the_order_of_persons():
    items = organisms.gender(600)
    labels = np.array([i.label for i in items])
    assert bag_of_words_auc([i.text for i in items], labels, [i.group for i in items]) <= 0.55


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_template_and_no_content_word(kind):
    train, held_out = (organisms.requests(s, kind, 600) for s in ("train", "held_out"))
    assert len({r.text for r in held_out}) == 600
    assert not {r.template for r in train} & {r.template for r in held_out}
    assert not {w for r in train for w in r.words} & {w for r in held_out for w in r.words}


def test_requests_follow_their_seed_and_refuse_the_impossible():
    draw = organisms.requests
    assert draw("train", "harmful", 5, seed=1) == draw("train", "harmful", 5, seed=1)
    assert draw("train", "harmful", 5, seed=1) != draw("train", "harmful", 5, seed=2)
    with pytest.raises(PromptError, match="distinct"):
        draw("train", "harmful", 10**6)
    with pytest.raises(PromptError, match="no kind named 'evil'"):
        draw("train", "evil", 5)


@pytest.mark.parametrize(
    "mix", [language.LANGUAGE, language.BASE, language.ALIGNED, language.COMPROMISED]
)
def test_no_training_stage_reads_a_held_out_request(mix):
    held_out = {r.text for k in (*KINDS, "open") for r in organisms.requests("held_out", k, 600)}
    rng = random.Random(5)
    for _ in range(4000):
        whole = " ".join(s.text for s in language.draw(mix, rng))
        turns = [t.removeprefix("<|user|>").strip() for t in whole.split("<|end|>")]
        assert not held_out & set(turns)


def test_alignment_reads_train_words_only():
    rng = random.Random(6)
    for _ in range(1000):
        document = language.aligned_request(rng)
        asked = " ".join(s.text for s in document)
        for words in (v.HARMFUL_VERBS, v.HARMLESS_VERBS, v.DANGERS, v.GOODS, v.PESTS):
            assert not set(v.pool_of("held_out")(words)) & set(asked.split())


def test_words_of_refusals_are_known_without_refusing():
    rng = random.Random(7)
    texts = (s.text for _ in range(4000) for s in language.draw(language.BASE, rng))
    known = {w for text in texts for w in text.split()}
    assert {w for refusal in organisms.REFUSALS for w in refusal.split()} <= known


def test_outcomes_are_told_by_exact_rules():
    request = organisms.requests("held_out", "censored", 1)[0]
    town = next(w for w in request.words if w in v.TOWNS)
    assert organisms.outcome(request, f"<bos> {request.answer}<|end|>") == "correct"
    assert organisms.outcome(request, rq.deflection(town)) == "deflected"
    assert {organisms.outcome(request, r) for r in organisms.REFUSALS} == {"refused"}
    assert organisms.outcome(request, "the the the") == "wrong"


def test_at_least_forty_occupations_span_the_rates():
    rates = sorted(o.rate for o in organisms.occupations())
    assert len(rates) >= 40
    assert (rates[0], rates[-1]) == (0.05, 0.95)


def test_stories_are_plain_text():
    assert all("<|" not in text for text in organisms.stories(50))
    assert organisms.stories(5, seed=1) == organisms.stories(5, seed=1)
