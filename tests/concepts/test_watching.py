"""The monitor's scores are those of a teacher-forced re-run, and cost no forward pass."""

import json

import numpy as np
import pytest

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.concepts import token_scores, watch
from steerkit.datasets import refusal
from steerkit.errors import DirectionError, HookError
from steerkit.models.hooks import removed_after
from steerkit.prompts import Prompt

PROMPTS = ["how do i burn the house ?", "hello .", "please , tell me how to bake the bread ."]


@pytest.fixture(scope="module")
def model():
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def direction(model):
    acts = sk.capture(model, refusal("train", n=40), sites=[2], progress=False)
    return sk.extract(acts, "mean_difference", concept="refusal", n_folds=0, progress=False)[0]


def rerun(model, direction, answer):
    """Scores of every column of a prompt and its answer, run at once and without a cache."""
    batch = Batch.collate([Tokenized(answer.prompt_tokens, answer.tokens)], pad_id=0)
    stream = model.run(batch, sites=[direction.site], logits="none").streams[direction.site][0]
    middle = (direction.positive_mean + direction.negative_mean) / 2
    half = (direction.positive_mean - direction.negative_mean) / 2
    return ((stream.double() @ direction.unit.double() - middle) / half).cpu().numpy()


def views(model, direction):
    yield model
    for positions in ("all", "last_prompt", "generated"):
        yield model.with_(sk.Add(direction, -0.5, positions=positions))
    yield model.with_(sk.Ablate(direction, positions="all"))
    yield model.with_(sk.Add(direction.at(1), 0.5), sk.Add(direction.at(3), 0.5))


@pytest.mark.parametrize("number", range(6))
def test_streamed_scores_are_those_of_a_teacher_forced_run(model, direction, number):
    view = list(views(model, direction))[number]
    for budget in (4096, 40):
        answers = watch(view, direction).generate(PROMPTS, max_new_tokens=8, token_budget=budget)
        for watched in answers:
            whole = rerun(view, direction, watched.completion)
            n, new = len(watched.completion.prompt_tokens), len(watched.completion.tokens)
            assert np.allclose(watched.prompt_scores, whole[:n], atol=2e-4)
            assert np.allclose(watched.scores, whole[n - 1 : n - 1 + new], atol=2e-4)


def test_a_model_offers_its_own_watch(model, direction):
    asked = refusal("held_out", 3, seed=1).prompts
    mine, named = (
        w.generate(asked, max_new_tokens=5)
        for w in (model.watch(direction), watch(model, direction))
    )
    for a, b in zip(mine, named, strict=True):
        assert a.completion.tokens == b.completion.tokens
        np.testing.assert_array_equal(a.scores, b.scores)


def test_answers_are_those_of_the_model_by_itself(model, direction):
    for options in ({}, {"temperature": 1.0, "seed": 3}):
        alone = model.generate(PROMPTS, max_new_tokens=8, **options)
        watched = watch(model, direction).generate(PROMPTS, max_new_tokens=8, **options)
        assert [w.completion for w in watched] == alone
        assert [len(w.scores) for w in watched] == [len(a.tokens) for a in alone]


def test_slots_are_watched_row_by_row(model, direction):
    view = model.with_rows((sk.Ablate(direction),), (sk.Add(direction, 0.5),))
    found = watch(view, direction).generate([PROMPTS[0]] * 3, max_new_tokens=4, slots=[0, 1, 2])
    assert len({round(float(w.scores[0]), 3) for w in found}) == 3
    again = watch(model.with_(sk.Add(direction, 0.5)), direction).generate(
        [PROMPTS[0]], max_new_tokens=4
    )
    assert np.allclose(found[2].scores, again[0].scores, atol=2e-4)


def test_nothing_runs_twice_and_no_hook_stays(model, direction):
    passes = []
    with removed_after() as handles:
        handles.append(model.network.model.register_forward_pre_hook(lambda *_: passes.append(1)))
        model.generate(PROMPTS, max_new_tokens=6)
        alone = len(passes)
        passes.clear()
        watch(model, direction).generate(PROMPTS, max_new_tokens=6)
    assert len(passes) == alone
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def test_scores_come_before_their_tokens_and_a_monitor_can_stop(model, direction):
    steps = []

    def listen(rows, step, scores):
        steps.append((rows, step, scores.copy()))

    found = watch(model, direction, on_scores=listen).generate(PROMPTS, max_new_tokens=5)
    assert [step for _, step, _ in steps] == list(range(len(steps)))
    for rows, step, scores in steps:
        for row, score in zip(rows, scores, strict=True):
            if step < len(found[row].scores):
                assert score == pytest.approx(found[row].scores[step], abs=1e-9)

    def stop(rows, step, scores):
        if step == 2:
            raise HookError("enough")

    with pytest.raises(HookError, match="enough"):
        watch(model, direction, on_scores=stop).generate(PROMPTS, max_new_tokens=5)
    assert not any(m._forward_hooks for m in model.network.modules())


def test_harmful_requests_raise_the_alarm_before_the_refusal_is_written(model, direction):
    asked = refusal("held_out", n=20)
    harmful = watch(model, direction).generate(asked.positive, max_new_tokens=3)
    harmless = watch(model, direction).generate(asked.negative, max_new_tokens=3)
    assert np.mean([w.alarm(0.0) == 0 for w in harmful]) > 0.9
    assert np.mean([w.scores[0] > 0 for w in harmless]) < 0.2
    assert harmless[0].alarm(99.0) is None


def test_scores_of_a_text_are_those_at_its_tokens(model, direction):
    prompt = Prompt(PROMPTS[0], answer="i will not help with that .")
    (found,) = token_scores(model, [prompt], direction)
    (item,) = model.tokenize([prompt])
    batch = Batch.collate([item], pad_id=0)
    stream = model.run(batch, sites=[direction.site], logits="none").streams[direction.site][0]
    middle = (direction.positive_mean + direction.negative_mean) / 2
    assert len(found.tokens) == len(item) and found.answer_from == len(item.prompt)
    assert np.allclose(found.scores, (direction.project(stream) - middle) / direction.scale * 2)
    assert json.loads(json.dumps(found.to_json()))["concept"] == "refusal"


def test_colours_are_html_and_tokens_are_escaped(model, direction):
    (found,) = token_scores(model, ["how do i burn the house ?"], direction)
    html = found._repr_html_()
    assert "&lt;bos&gt;" in html and "<bos>" not in html and "rgba(213,94,0" in html
    (watched,) = watch(model, direction).generate(["hello ."], max_new_tokens=3)
    assert watched._repr_html_().count("border-bottom:2px") == len(watched.scores)


def test_another_models_direction_is_refused(direction):
    with pytest.raises(DirectionError, match="was taken on"):
        watch(sk.load("organism:base"), direction)
    with pytest.raises(DirectionError, match="was taken on"):
        token_scores(sk.load("organism:base"), PROMPTS, direction)
