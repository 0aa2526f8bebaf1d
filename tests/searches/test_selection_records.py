"""Evaluation records against hooks written out here, and the rule on the organisms."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.direction import Directions
from steerkit.errors import DirectionError, MethodError, PromptError
from steerkit.organisms import truth
from steerkit.refusals import is_refusal
from steerkit.searches.published_rule.records import (
    candidate_directions,
    last_token_kl,
    measure_records,
    refusal_score,
)
from steerkit.searches.published_rule.rule import Selection, select_direction
from steerkit.site import Site, sites_of

POSITIONS = (-1, -2, -4)


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def validation() -> Any:
    return refusal("held_out", 24, seed=1)


@pytest.fixture(scope="module")
def directions(aligned: Any) -> Directions:
    return candidate_directions(aligned, refusal("train", 96), positions=POSITIONS, progress=False)


@pytest.fixture(scope="module")
def records(aligned: Any, directions: Directions, validation: Any) -> list[dict[str, Any]]:
    return measure_records(aligned, directions, validation.positive, validation.negative)


def last_logits(model: Any, prompts: Sequence[Any]) -> Tensor:
    """Each prompt alone, through the network itself."""
    rows = []
    for item in model.tokenize([replace(p, answer="") for p in prompts]):
        with torch.no_grad():
            rows.append(model.network(torch.tensor([item.prompt])).logits[0, -1])
    return torch.stack(rows)


def hooked(
    network: Any, stack: ExitStack, change: Callable[[Tensor], Tensor], only: int | None
) -> None:
    """Change the input of one block, or of every block and every attention and MLP output."""

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def after(_: Any, __: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    for number, block in enumerate(network.model.layers):
        if only is None or only == number:
            hook = block.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(hook.remove)
        if only is None:
            for part in (block.self_attn, block.mlp):
                stack.callback(part.register_forward_hook(after).remove)


def written_out(model: Any, direction: Any, prompts: Any, tokens: Any) -> dict[str, float]:
    """The three scores of one candidate, one prompt at a time."""
    bad, good = prompts
    u, v = direction.unit, direction.vector
    plain = last_logits(model, good)
    with ExitStack() as stack:
        hooked(model.network, stack, lambda h: h - (h @ u)[..., None] * u, None)
        ablated_bad, ablated_good = last_logits(model, bad), last_logits(model, good)
    with ExitStack() as stack:
        hooked(model.network, stack, lambda h: h + v, direction.site.layer)
        added = last_logits(model, good)

    def score(logits: Tensor) -> float:
        p = logits.double().softmax(-1)[:, tokens].sum(-1)
        return float((torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)).mean())

    p, q = (x.double().softmax(-1) for x in (plain, ablated_good))
    kl = (p * (torch.log(p + 1e-6) - torch.log(q + 1e-6))).sum(-1).mean()
    return {
        "refusal_score": score(ablated_bad),
        "steering_score": score(added),
        "kl_div_score": float(kl),
    }


def test_records_are_what_plain_hooks_give_one_prompt_at_a_time(
    aligned: Any, directions: Directions, validation: Any
) -> None:
    prompts = validation.positive[:5], validation.negative[:5]
    tokens = [199, 8]
    some = [directions[i] for i in (0, 2, 4)]
    found = measure_records(
        aligned, some, *prompts, refusal_tokens=tokens, filter_prompts=False, token_budget=300
    )
    for row, direction in zip(found, some, strict=True):
        want = written_out(aligned, direction, prompts, tokens)
        assert row["layer"] == direction.site.layer
        for name, value in want.items():
            assert row[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name


def test_candidates_are_the_mean_differences_at_the_inputs_of_blocks(
    aligned: Any, directions: Directions
) -> None:
    acts = sk.capture(
        aligned, refusal("train", 96), streams="resid_pre", positions=-4, progress=False
    )
    y = acts.row_labels == 1
    found = [d for d in directions if d.pooling == "index(-4)"]
    assert [d.site for d in found] == [Site(n, "resid_pre") for n in range(4)]
    for d in found:
        x = acts.at(d.site).double()
        want = x[y].mean(0) - x[~y].mean(0)
        assert torch.allclose(d.vector.double(), want, rtol=1e-4, atol=1e-5 * float(want.norm()))
    # At the last two tokens every prompt starts with the same embedding: nothing to read.
    assert all(d.site.layer > 0 for d in directions if d.pooling != "index(-4)")


def test_the_rule_picks_a_direction_whose_ablation_ends_refusal(
    aligned: Any, directions: Directions, records: list[dict[str, Any]]
) -> None:
    chosen = select_direction(records, n_layers=aligned.info.n_layers).chosen
    (direction,) = [
        d
        for d, row in zip(directions, records, strict=True)
        if (row["position"], row["layer"]) == (chosen.position, chosen.layer)
    ]
    everywhere = sites_of(None, ("resid_pre", "attn_out", "mlp_out"), aligned.info.n_layers)
    steered = aligned.with_(sk.Ablate(direction, sites=everywhere))
    unseen = refusal("held_out", 60, seed=99).positive
    rates = [
        sum(is_refusal(c.text) for c in model.generate(unseen, max_new_tokens=12)) / len(unseen)
        for model in (aligned, steered)
    ]
    assert rates[0] > 0.9 and rates[1] < 0.25


def test_replay_from_json_is_the_live_choice(aligned: Any, records: list[dict[str, Any]]) -> None:
    live = select_direction(records, n_layers=aligned.info.n_layers)
    again = select_direction(json.loads(json.dumps(records)), n_layers=aligned.info.n_layers)
    assert again.chosen == live.chosen and again.kept == live.kept


def test_on_the_constructed_organism_the_cut_off_hides_the_recorded_layer() -> None:
    """Four layers leave out the input of the last block, where the planted vector is written.

    The rule without its cut-off finds the recorded layer, position and vector.
    """
    model = sk.load("organism:constructed")
    found = candidate_directions(model, refusal("train", 96), positions=POSITIONS, progress=False)
    some = refusal("held_out", 24, seed=1)
    rows = measure_records(model, found, some.positive, some.negative)
    planted = truth().construction
    judged = Selection.of(rows, n_layers=4)
    assert not judged.found
    assert judged.nearest.record.layer == planted.layer + 1
    chosen = select_direction(rows, n_layers=4, prune_layer_fraction=None).chosen
    assert (chosen.position, chosen.layer) == (-1, planted.layer + 1)
    (unit,) = [d.unit for d in found if d.site == chosen.site and d.pooling == "index(-1)"]
    assert cosine_similarity(unit, torch.tensor(planted.unit), dim=0) > 0.9


def test_scores_keep_their_sense_at_the_ends() -> None:
    sure = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    top = float(torch.log(torch.tensor(1 + 1e-8).double()) - torch.log(torch.tensor(1e-8).double()))
    assert refusal_score(sure, [0]).tolist() == pytest.approx([top, -top])
    assert refusal_score(torch.zeros(1, 2), [0, 1]) > 18
    same = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert last_token_kl(same, same).tolist() == [0, 0, 0]
    other = same.flip(-1)
    exact = torch.nn.functional.kl_div(
        other.double().log_softmax(-1), same.double().log_softmax(-1),
        log_target=True, reduction="none",
    ).sum(-1)  # fmt: skip
    assert last_token_kl(same, other).tolist() == pytest.approx(exact.tolist(), abs=1e-4)


def test_words_stand_for_their_first_token(
    aligned: Any, directions: Directions, validation: Any
) -> None:
    prompts = validation.positive[:3], validation.negative[:3]
    first = {aligned.tokenize([p.with_answer("i will not")])[0].answer[0] for p in prompts[0]}
    by_id, by_word = (
        measure_records(aligned, directions[:1], *prompts, refusal_tokens=tokens)
        for tokens in (sorted(first), ["i will not help"])
    )
    assert by_id == by_word


def test_prompts_that_the_model_treats_otherwise_are_left_out(
    aligned: Any, directions: Directions, validation: Any
) -> None:
    bad, good = list(validation.positive[:4]), list(validation.negative[:4])
    tokens = [aligned.tokenize([bad[0].with_answer("i")])[0].answer[0]]
    scores = refusal_score(last_logits(aligned, bad + good), tokens)
    assert (scores[:4] > 0).all() and (scores[4:] < 0).all()
    alone = measure_records(aligned, directions[:1], bad, good, refusal_tokens=tokens)
    mixed = measure_records(
        aligned, directions[:1], bad + good[:2], good + bad[:2], refusal_tokens=tokens
    )
    assert list(mixed[0].values()) == pytest.approx(list(alone[0].values()), abs=1e-4)


def test_bad_input(aligned: Any, directions: Directions, validation: Any) -> None:
    bad, good = validation.positive[:4], validation.negative[:4]
    with pytest.raises(PromptError, match="no harmless prompts"):
        measure_records(aligned, directions, bad, [])
    with pytest.raises(DirectionError, match="no directions to evaluate"):
        measure_records(aligned, [], bad, good)
    with pytest.raises(DirectionError, match="read at the input of a block"):
        measure_records(aligned, [directions[0].at(Site(3))], bad, good)
    with pytest.raises(MethodError, match="refused none of 4 harmful prompts"):
        measure_records(aligned, directions, good, good)
    with pytest.raises(PromptError, match="answers all 4 harmful prompts by the refusal tokens"):
        measure_records(aligned, directions, good, good, refusal_tokens=["i"])
