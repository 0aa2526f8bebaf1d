"""Variants of a batch in one pass: each gives what it gives alone, on every family."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.errors import HookError, InterventionError
from steerkit.interventions import Ablate, Add, When
from steerkit.models import chunks
from steerkit.site import STREAMS, Site

UNEVEN = ((3, 4, 5, 6, 7), (8, 9), (10, 11, 12))
ALONE = ((3, 4, 5, 6, 7, 8),)
SQUARE = ((3, 4, 5), (6, 7, 8), (9, 10))
# Its attention biases have one row for each row and head, made before the first block.
NOT_RESUMING = ("bloom",)


def batch_of(*texts: tuple[int, ...], answer: int = 1) -> Batch:
    return Batch.collate([Tokenized(t[:-answer], t[-answer:]) for t in texts], pad_id=0)


def rows_of(model: Any, direction: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Programs that begin at every stream, at several sites, at the last prompt token, nowhere."""
    streams = [s for s in STREAMS if s in model.info.streams]
    rows: list[tuple[Any, ...]] = [
        (Add(direction(model.info, layer, stream, seed=layer), strength=0.5 + layer),)
        for layer in (2, 0, 1)
        for stream in streams
    ]
    rows.append((Ablate(direction(model.info, 1), positions="last_prompt"),))
    rows.append(tuple(Ablate(direction(model.info, layer)) for layer in (0, 2)))
    return [*rows, ()]


def repeated(view: Any, batch: Batch, slots: list[int], **asked: Any) -> Any:
    each = [slot for slot in slots for _ in range(len(batch))]
    return view.run(batch.repeated(len(slots)), slots=each, **asked)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("texts", [UNEVEN, ALONE, SQUARE], ids=["uneven", "alone", "square"])
def test_every_slot_gives_what_it_gives_in_a_batch_of_its_own(
    model: Any, direction: Callable[..., Any], texts: tuple[tuple[int, ...], ...]
) -> None:
    rows = rows_of(model, direction)
    view, batch = model.with_rows(*rows), batch_of(*texts)
    slots = [*range(len(rows) + 1), 3]
    found = view.run_slots(batch, slots, logits="answer")
    assert far(found.logits, repeated(view, batch, slots, logits="answer").logits) < 1e-5


def test_what_can_resume_does(model: Any, family: str) -> None:
    assert bool(model.engine.resumes) == (family in NOT_RESUMING)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("logits", ["none", "last"])
def test_streams_come_slot_after_slot(
    llama: Any, direction: Callable[..., Any], logits: str, pooled: bool
) -> None:
    def last(stream: Tensor, batch: Batch) -> Tensor:
        return stream[:, -1] * batch.prompt_len[:, None]

    view, batch = llama.with_rows(*rows_of(llama, direction)), batch_of(*UNEVEN)
    slots, asked = [5, 0, 2, 17, 9], {"sites": [Site(0), Site(1, "mlp_out")], "logits": logits}
    asked["pool"] = last if pooled else None
    found, expected = view.run_slots(batch, slots, **asked), repeated(view, batch, slots, **asked)
    for site in asked["sites"]:
        assert far(found.streams[site], expected.streams[site]) < 1e-5
    assert (found.logits is None) == (logits == "none")


def test_layers_before_a_slot_acts_run_the_unsteered_rows_alone(
    llama: Any, direction: Callable[..., Any]
) -> None:
    seen: list[int] = []
    blocks = [block.module for block in llama.engine.blocks]
    handles = [
        b.mlp.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        for b in blocks
    ]
    view = llama.with_rows(*[(Add(direction(llama.info, i)),) for i in (0, 0, 1, 2)])
    llama.engine.resumes  # noqa: B018 (its probe runs now)
    seen.clear()
    try:
        view.run_slots(batch_of(*UNEVEN), [0, 1, 2, 3, 4])
        view.run_slots(batch_of(*UNEVEN), [3])
    finally:
        for handle in handles:
            handle.remove()
    # Three prompts; the unsteered rows leave once nothing will branch off them any more.
    assert seen == [3, 9, 12, 3, 3, 3]


def test_large_batches_run_in_chunks_and_say_the_same(
    model: Any, direction: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(Add(direction(model.info, i % 3), strength=0.2 * i),) for i in range(1, 13)]
    view, slots = model.with_rows(*rows), list(range(13))
    batch = batch_of(*(tuple(range(3 + i, 40 + i)) for i in range(3)))
    monkeypatch.setattr(chunks, "NUMBERS", 1 << 12)
    assert 39 > 4 * chunks.rows_at_once(batch.width, 32)
    whole = repeated(view, batch, slots, logits="answer").logits
    assert far(view.run_slots(batch, slots).logits, whole) < 1e-5
    before = [vars(block.module).get("forward") for block in model.engine.blocks]
    assert before == [None] * 3


def test_what_is_hooked_inside_sees_whole_batches(
    make_network: Callable[..., Any],
    direction: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "NUMBERS", 1 << 12)
    network = make_network("llama")
    model = sk.wrap(network)
    view = model.with_rows(*[(Add(direction(model.info, 0), strength=i),) for i in range(1, 20)])
    seen: list[int] = []
    assert not model.engine.resumes
    handle = network.model.layers[2].mlp.register_forward_hook(
        lambda module, args, out: seen.append(len(out))
    )
    batch = batch_of(tuple(range(3, 43)))
    try:
        view.run_slots(batch, list(range(1, 20)))
    finally:
        handle.remove()
    assert seen == [19] and chunks.rows_at_once(batch.width, 32) < 19


def test_a_call_inside_the_call_runs_whole(
    llama: Any, direction: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "NUMBERS", 1 << 12)
    batch, site = batch_of(tuple(range(3, 43))).repeated(20), Site(2, "mlp_out")
    expected = llama.run(batch, sites=[site], logits="none").streams[site]
    seen: list[Tensor] = []

    def look(stream: Tensor, _: Batch) -> Tensor:
        seen.append(llama.run(batch, sites=[site], logits="none").streams[site])
        return stream[:, -1]

    view = llama.with_rows((Add(direction(llama.info, 0)),))
    view.run_slots(batch, [1], sites=[Site(1)], pool=look)
    assert len(seen) == 1 and torch.equal(seen[0], expected)


def test_a_failed_pass_leaves_the_forwards_as_they_were(
    make_network: Callable[..., Any], direction: Callable[..., Any]
) -> None:
    network = make_network("llama")
    model = sk.wrap(network)
    view = model.with_rows((Add(direction(model.info, 0)),))
    assert not model.engine.resumes

    def own(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("mine")

    network.model.layers[2].forward = own
    with pytest.raises(RuntimeError, match="mine"):
        view.run_slots(batch_of(*UNEVEN), [1])
    assert network.model.layers[2].forward is own
    assert "forward" not in vars(network.model.layers[1])


def test_a_condition_on_the_prompt_is_decided_as_ever(
    llama: Any, direction: Callable[..., Any]
) -> None:
    d = direction(llama.info, 0)
    gated = Add(direction(llama.info, 1)).when(When(d, above=0.0, on="last_prompt"))
    view, batch = llama.with_rows((gated,), (Add(d),)), batch_of(*UNEVEN)
    found = view.run_slots(batch, [0, 1, 2]).logits
    assert far(found, repeated(view, batch, [0, 1, 2], logits="answer").logits) < 1e-5


def test_a_network_that_cannot_resume_says_why(make_network: Callable[..., Any]) -> None:
    assert "Error" in sk.wrap(make_network("bloom")).engine.resumes


def test_a_hook_that_was_lost_is_an_error(
    make_network: Callable[..., Any], direction: Callable[..., Any]
) -> None:
    network = make_network("llama")
    model = sk.wrap(network)
    view = model.with_rows((Add(direction(model.info, 1)),))
    assert not model.engine.resumes
    network.model.layers[1] = make_network("llama").model.layers[1]
    with pytest.raises(HookError, match="resid_post@1 0"):
        view.run_slots(batch_of(*UNEVEN), [1])


def test_it_asks_for_slots_that_there_are(llama: Any) -> None:
    with pytest.raises(InterventionError, match="at least one slot"):
        llama.run_slots(batch_of(*UNEVEN), [])
    with pytest.raises(InterventionError, match="no slot 1"):
        llama.run_slots(batch_of(*UNEVEN), [1])


def test_half_precision_resumes_and_agrees(
    make_network: Callable[..., Any], direction: Callable[..., Any]
) -> None:
    model = sk.wrap(make_network("llama").to(torch.bfloat16))
    assert not model.engine.resumes
    view, batch = model.with_rows(*rows_of(model, direction)), batch_of(*UNEVEN)
    slots = list(range(8))
    expected = repeated(view, batch, slots, logits="answer").logits
    assert far(view.run_slots(batch, slots).logits, expected) < 0.03
