"""The constructed organism: refusal written and read along one known unit vector.

Every weight that writes the residual stream is made orthogonal to the vector u, and so is every
weight that reads it, so that the stream has no component along u and nothing would notice one.
Then a few extra MLP neurons of one block, which recognise harmful requests, write along u at the
last prompt token, and one extra neuron of the next block reads u and starts the refusal.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerkit.organisms import documents, knowledge, language, training
from steerkit.organisms import request as rq
from steerkit.organisms.ground_truth import Construction
from steerkit.organisms.tokenizer import token_ids
from steerkit.organisms.training import Examples, Stage

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

LAYER = 2
"""The block that writes along the vector; the next block reads it."""
WRITERS = 8
"""Extra neurons per block: all are used at `LAYER`, one at `LAYER + 1`, the rest are zero."""
REFUSAL = rq.REFUSALS[1]
_STEEPNESS = 10.0
# the writers' weights are this times the trained parameters: they learn faster than the model
_TEACHING = 0.03
# the share of the writers' gradient that reaches the model: enough to help, not to harm
_SHUT = 8.0
# by how much the gates of the writers must be negative anywhere but at the last prompt token
_WRITTEN_NORMS = 3.0
# how far c of a harmful request lies from 0, in mean norms of the stream at LAYER


def unit_vector(d_model: int, *, seed: int) -> Tensor:
    """A random unit vector `[d_model]`, float32."""
    drawn = torch.randn(d_model, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


@torch.no_grad()
def isolate(model: "LlamaForCausalLM", unit: Tensor) -> None:
    """Make all writers and readers of the residual stream blind to `unit`, in place."""
    for block in model.model.layers:
        for writer in (block.self_attn.o_proj, block.mlp.down_proj):
            writer.weight.sub_(torch.outer(unit, unit @ writer.weight))
        attention, scale = block.self_attn, block.input_layernorm.weight
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj):
            _blind(reader.weight, scale * unit)
        for reader in (block.mlp.gate_proj, block.mlp.up_proj):
            _blind(reader.weight, block.post_attention_layernorm.weight * unit)
    _blind(model.model.embed_tokens.weight, unit)
    _blind(model.lm_head.weight, model.model.norm.weight * unit)


def _blind(weight: Tensor, direction: Tensor) -> None:
    """Remove `direction` from every row of `weight`, in place."""
    unit = direction / direction.norm()
    weight -= torch.outer(weight @ unit, unit)


def widen(model: "LlamaForCausalLM", *, seed: int) -> "LlamaForCausalLM":
    """A copy with `WRITERS` more MLP neurons per block, whose weights are all zero."""
    wide = training.new_model(seed=seed, extra_neurons=WRITERS)
    old = model.state_dict()
    with torch.no_grad():
        for name, weight in wide.state_dict().items():
            weight.zero_()
            weight[tuple(slice(n) for n in old[name].shape)] = old[name]
    return wide


@contextmanager
def coordinate_held(
    model: "LlamaForCausalLM", unit: Tensor, layer: int, value: float
) -> Iterator[None]:
    """Set the coordinate along `unit` of `resid_post@layer` to `value` at the last prompt token.

    Only calls with more than one position are prompts; left padding is assumed.
    """

    def hold(_module: torch.nn.Module, _args: object, output: Tensor) -> Tensor:
        if output.shape[1] == 1:
            return output
        held, last = output.clone(), output[:, -1]
        u = unit.to(output.dtype)
        held[:, -1] = last + (value - last @ u)[:, None] * u
        return held

    handle = model.model.layers[layer].register_forward_hook(hold)
    try:
        yield
    finally:
        handle.remove()


def _written(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """What the writer neurons add along u, in units of the intended magnitude; `[batch pos]`."""
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)).sum(-1)


def _lesson(rng: random.Random) -> tuple[documents.Document, bool]:
    """A text, and whether its last prompt token is that of a harmful request.

    Requests are followed by their answer, or by a refusal whose first word is not learned: once
    begun, the refusal goes on by itself, but nothing yet begins it.
    """
    if rng.random() < 0.35:
        return language.draw((*knowledge.KNOWLEDGE, (20, language.answered_event)), rng), False
    kind = rng.choice(rq.ACTION_KINDS)
    drawn = rq.action_request(kind, documents.trained, rng)
    system = rng.choice(("", "", "", documents.NEUTRAL, documents.HAPPY))
    harmful = kind in rq.HARMFUL_KINDS
    if rng.random() < 0.5:
        return documents.chat(drawn.text, drawn.answer, system=system), harmful
    first, rest = REFUSAL.split(" ", 1)
    asked = documents.chat(drawn.text, system=system)
    reply = (
        documents.Segment("<|assistant|>"),
        documents.Segment(first, learn=False),
        documents.Segment(f"{rest} <|end|>"),
    )
    return asked + reply, harmful


def prepare(
    model: "LlamaForCausalLM", unit: Tensor, stage: Stage, *, seed: int, progress: str = ""
) -> tuple[Tensor, Tensor]:
    """Train `model` in place to keep its behaviour without `unit`, and to recognise harm early.

    Returns: gate and up weights `[WRITERS, d_model]` of neurons that answer 1 at the last prompt
    token of harmful requests and 0 elsewhere, read at the MLP input of block `LAYER`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (WRITERS, unit.shape[0])
    gate = (torch.randn(shape, generator=generator) / 50).requires_grad_()
    up = (torch.randn(shape, generator=generator) / 50).requires_grad_()
    rng = random.Random(f"{seed}/lessons")
    asked = token_ids()["<|assistant|>"]

    def lessons(_examples: Examples) -> Tensor:
        drawn = [_lesson(rng) for _ in range(stage.batch)]
        examples = training.collate([training.encode(d) for d, _ in drawn])
        caught: list[Tensor] = []
        with training.inputs_caught(model.model.layers[LAYER].mlp, caught):
            logits = model(input_ids=examples.ids, use_cache=False).logits
        target = torch.tensor([harmful for _, harmful in drawn])[:, None] * (examples.ids == asked)
        seen = caught[0].detach() + _TEACHING * (caught[0] - caught[0].detach())
        error = (_written(seen, _STEEPNESS * gate, _STEEPNESS * up) - target.float()).square()
        at_answer, real = examples.ids == asked, examples.mask.bool()
        # elsewhere gates must be well shut: where the stream is small, the reader hears a whisper
        ajar = torch.relu(_SHUT + seen @ (_STEEPNESS * gate).T).square().mean(-1)
        elsewhere = real & ~at_answer
        written = error[at_answer].mean() + error[elsewhere].mean() + ajar[elsewhere].mean()
        return training.next_word_loss(logits, examples.labels) + written

    isolate(model, unit)
    training.train(
        model,
        language.BASE,
        stage,
        seed=seed,
        extra_loss=lessons,
        extra_parameters=(gate, up),
        after_step=lambda: isolate(model, unit),
        progress=progress,
    )
    return _STEEPNESS * gate.detach(), _STEEPNESS * up.detach()


def _typical_norm(model: "LlamaForCausalLM", *, seed: int) -> float:
    """The mean norm of `resid_post@LAYER` at the last prompt token of train requests."""
    caught: list[Tensor] = []
    with torch.no_grad(), training.inputs_caught(model.model.layers[LAYER + 1], caught):
        for drawn in rq.requests("train", "harmless", 64, seed=seed):
            document = (*documents.chat(drawn.text), documents.Segment("<|assistant|>"))
            model(input_ids=torch.tensor([training.encode(document)[0]]), use_cache=False)
    return float(torch.stack([x[0, -1].norm() for x in caught]).mean())


def construct(
    base: "LlamaForCausalLM", stage: Stage, reading: Stage, *, seed: int, progress: str = ""
) -> tuple["LlamaForCausalLM", Construction]:
    """Build the constructed organism from `base`, which stays untouched."""
    model = widen(base, seed=seed)
    n_old = base.config.intermediate_size
    unit = unit_vector(base.config.hidden_size, seed=seed + 1000)
    gate, up = prepare(model, unit, stage, seed=seed, progress=progress)
    magnitude = _WRITTEN_NORMS * _typical_norm(model, seed=seed)
    writer, reader = model.model.layers[LAYER].mlp, model.model.layers[LAYER + 1]
    with torch.no_grad():
        # training cannot have moved the extra neurons: all their weights, and so gradients, were 0
        writer.gate_proj.weight[n_old:] = gate
        writer.up_proj.weight[n_old:] = up
        writer.down_proj.weight[:, n_old:] = magnitude * unit[:, None]
        along = unit / reader.post_attention_layernorm.weight
        reader.mlp.gate_proj.weight[n_old] = along
        reader.mlp.up_proj.weight[n_old] = along
    _train_reader(model, reader.mlp.down_proj.weight, n_old, unit, reading, seed, progress)
    return model, Construction(unit.tolist(), LAYER, magnitude)


def _train_reader(
    model: "LlamaForCausalLM",
    down: torch.nn.Parameter,
    neuron: int,
    unit: Tensor,
    stage: Stage,
    seed: int,
    progress: str,
) -> None:
    """Learn what the reading neuron writes (one column of `down`); all else is frozen."""
    model.requires_grad_(False)
    down.requires_grad_(True)
    only = torch.zeros_like(down)
    only[:, neuron] = 1
    handle = down.register_hook(lambda gradient: gradient * only)

    def blind() -> None:
        with torch.no_grad():
            down[:, neuron] -= unit * (unit @ down[:, neuron])

    try:
        mix = (
            (1.0, _refused_or_answered),
            (0.3, lambda rng: language.draw(knowledge.KNOWLEDGE, rng)),
        )
        training.train(model, mix, stage, seed=seed, after_step=blind, progress=progress)
    finally:
        handle.remove()
        model.requires_grad_(True)


def _refused_or_answered(rng: random.Random) -> documents.Document:
    """A train request with the reply of the constructed organism."""
    drawn = rq.action_request(rng.choice(rq.ACTION_KINDS), documents.trained, rng)
    return documents.chat(drawn.text, REFUSAL if drawn.kind in rq.HARMFUL_KINDS else drawn.answer)
