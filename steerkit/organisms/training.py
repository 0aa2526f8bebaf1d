"""Next-word training of a small Llama on seeded documents; nothing global is left changed."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerkit.organisms import documents, language
from steerkit.organisms import vocabulary as v
from steerkit.organisms.tokenizer import token_ids

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

IGNORED = -100
"""The label of positions that are no prediction targets."""


@dataclass(frozen=True)
class Stage:
    """One training stage: how many steps, of how many documents, at which peak learning rate.

    `frozen` blocks, the first ones, stay as they are, and the embedding with them: what is then
    learned of some words holds for all that these blocks represent alike.
    """

    steps: int
    batch: int = 32
    rate: float = 2.5e-3
    decay: float = 0.05
    frozen: int = 0


@dataclass(frozen=True)
class Examples:
    """A right-padded batch: ids, labels (next-word targets, `IGNORED` elsewhere), mask."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed torch and ask for deterministic kernels inside; restore both afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def new_model(*, seed: int, extra_neurons: int = 0) -> "LlamaForCausalLM":
    """A freshly initialised organism: 4 blocks of width 96, about 0.6 M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = token_ids()
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=96,
        intermediate_size=288 + extra_neurons,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.05,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<|end|>"],
    )
    with deterministic(seed):
        return LlamaForCausalLM(config).float()


def encode(document: documents.Document) -> tuple[list[int], list[int]]:
    """Token ids and labels of a document; ids begin with `<bos>`."""
    known = token_ids()
    ids, labels = [known["<bos>"]], [IGNORED]
    for segment in document:
        new = [known[word] for word in v.words_in(segment.text)]
        ids += new
        labels += new if segment.learn else [IGNORED] * len(new)
    return ids, labels


def collate(documents: list[tuple[list[int], list[int]]]) -> Examples:
    """Right-pad encoded documents to the longest."""
    longest = max(len(ids) for ids, _ in documents)
    pad = token_ids()["<pad>"]
    ids = [i + [pad] * (longest - len(i)) for i, _ in documents]
    labels = [lab + [IGNORED] * (longest - len(lab)) for _, lab in documents]
    mask = [[1] * len(i) + [0] * (longest - len(i)) for i, _ in documents]
    return Examples(torch.tensor(ids), torch.tensor(labels), torch.tensor(mask))


def batches(mix: documents.Mix, stage: Stage, *, seed: int) -> Iterator[Examples]:
    """`stage.steps` batches of documents of similar length, in a seeded order."""
    rng = random.Random(f"{seed}/batches")
    made = 0
    while made < stage.steps:
        count = min(16, stage.steps - made)
        pool = [encode(language.draw(mix, rng)) for _ in range(count * stage.batch)]
        pool.sort(key=lambda pair: len(pair[0]))
        cut = [pool[i : i + stage.batch] for i in range(0, len(pool), stage.batch)]
        rng.shuffle(cut)
        yield from (collate(documents) for documents in cut)
        made += count


def next_word_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the positions whose label is not `IGNORED`."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


@contextmanager
def inputs_caught(module: torch.nn.Module, caught: list[Tensor]) -> Iterator[None]:
    """Append the module's input tensor to `caught` on every call inside."""

    def keep(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0])

    handle = module.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def train(
    model: "LlamaForCausalLM",
    mix: documents.Mix,
    stage: Stage,
    *,
    seed: int,
    extra_loss: Callable[[Examples], Tensor] | None = None,
    extra_parameters: tuple[Tensor, ...] = (),
    after_step: Callable[[], None] | None = None,
    progress: str = "",
) -> float:
    """Train `model` in place on a mix; returns the mean loss of the last tenth of steps, in nats.

    `extra_loss` is added on every batch, after its forward pass; `after_step` may project weights.
    `progress` names the bar on stderr, "" shows none.
    """
    from tqdm.auto import tqdm

    model.train()
    held = [model.model.embed_tokens, *model.model.layers[: stage.frozen]] if stage.frozen else []
    for module in held:
        module.requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": stage.decay},
        {"params": [p for p in weights if p.ndim == 1], "weight_decay": 0.0},
        {"params": list(extra_parameters), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], stage.rate, (0.9, 0.98), fused=True
    )
    losses: list[float] = []
    steps = tqdm(
        batches(mix, stage, seed=seed), progress, stage.steps, disable=not progress, mininterval=5
    )
    for step, examples in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * _schedule(step, stage.steps)
        # right padding needs no mask under causal attention: no real token sees a later one
        logits = model(input_ids=examples.ids, use_cache=False).logits
        loss = next_word_loss(logits, examples.labels)
        losses.append(loss.item())
        if extra_loss is not None:
            loss = loss + extra_loss(examples)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if after_step is not None:
            after_step()
        if progress and step % 50 == 0:
            steps.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    for module in held:
        module.requires_grad_(True)
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then linear decay to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 1 - 0.95 * (step - warm) / max(1, steps - warm)
