"""A sweep of 8 layers x 4 strengths on one prompt, against a loop of forward passes.

    python benchmarks/sweep.py [--quick] [--threads 1] [--repeats 15] [--parts prompt_8 ...]

Random Llama-style models (float32), one addition a candidate. The base runs the 32 candidates
one after the other, each with a plain forward hook of a few lines; `run_slots` runs them in
one pass, each from the layer where it first acts; `batched rows` runs 32 full rows. All give the
logits of the last token, equal to 1e-6 of their size. Decoding compares greedy answers of 16
tokens: one candidate after the other through the library's own `generate`, and all at once.
`organism` is the same sweep on the embedded organism (4 layers) with 16 of its own prompts, and
on a random 6-layer model as wide. `search` measures every candidate of the demo, answers and
KL, one after the other and all at once. Writes `results/sweep.json`.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import timing
import torch
from directions import along
from torch import Tensor

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.searches.measure import measure, measure_damage

LOOP, AGAIN = "loop of forward passes", "loop of forward passes, again (A/A)"
GOALS = {8: 1 / 5, 32: 1 / 3.5, 128: 1 / 2.2}
DECODE_GOAL = 1 / 6
STRENGTHS = (-2.0, -1.0, 1.0, 2.0)
VOCAB = 2048
NEW = 16
Arm = Callable[[], Any]


def network(layers: int, hidden: int) -> Any:
    """A random model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        # Answers never end early, so that every arm decodes as many tokens.
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def candidates(model: Any, strengths: Sequence[float]) -> list[tuple[int, Tensor, sk.Add]]:
    """(layer, what is added, the same as an intervention) of every candidate."""
    found = []
    for layer in range(model.info.n_layers):
        generator = torch.Generator().manual_seed(layer)
        direction = along(model, layer, torch.randn(model.info.d_model, generator=generator), 0.5)
        for strength in strengths:
            add = sk.Add(direction, strength=strength)
            found.append((layer, strength * direction.scale * direction.unit, add))
    return found


@contextmanager
def hooked(net: Any, layer: int, vector: Tensor) -> Any:
    """What a careful person writes by hand."""

    def add(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vector, *output[1:])
        return output + vector

    handle = net.model.layers[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def prompt_arms(model: Any, batch: Batch, strengths: Sequence[float]) -> dict[str, Arm]:
    """Last-token logits `[candidate * row vocab]` in every way."""
    net, tried = model.network, candidates(model, strengths)
    inputs = {
        "input_ids": batch.tokens,
        "attention_mask": batch.mask.long(),
        "position_ids": batch.position_ids,
    }
    view = model.with_rows(*[(add,) for _, _, add in tried])
    slots = list(range(1, len(tried) + 1))
    each = [slot for slot in slots for _ in range(len(batch))]
    whole = batch.repeated(len(slots))

    def loop() -> Tensor:
        out = []
        with torch.no_grad():
            for layer, vector, _ in tried:
                with hooked(net, layer, vector):
                    out.append(net(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1])
        return torch.cat(out)

    return {
        LOOP: loop,
        AGAIN: loop,
        "steerkit, one view after the other": lambda: torch.cat(
            [model.with_(add).run(batch, logits="last").logits[:, -1] for _, _, add in tried]
        ),
        "batched rows": lambda: view.run(whole, slots=each, logits="last").logits[:, -1],
        "run_slots": lambda: view.run_slots(batch, slots, logits="last").logits[:, -1],
    }


def same(arms: dict[str, Arm], limit: float = 1e-6) -> float:
    """The largest difference from the loop, relative to the logits' size; too large is an error."""
    expected = arms[LOOP]().double()
    worst = 0.0
    for name, arm in arms.items():
        found = arm().double()
        gap = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
        if not gap <= limit:
            raise SystemExit(f"{name} differs from the loop by {gap:.2e}")
        worst = max(worst, gap)
    return worst


def prompt_part(length: int, given: argparse.Namespace) -> dict[str, Any]:
    """One prompt of some length."""
    layers, hidden = (2, 64) if given.quick else (8, 256)
    model = sk.wrap(network(layers, hidden))
    tokens = torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(1))
    batch = Batch.collate([Tokenized(tuple(tokens.tolist()))], pad_id=0)
    arms = prompt_arms(model, batch, STRENGTHS)
    return timed(
        arms, given, goals={"run_slots": GOALS[length]}, gap=same(arms), shape=[layers, hidden]
    )


def decode_part(given: argparse.Namespace) -> dict[str, Any]:
    """16 greedy tokens of every candidate after a prompt of 32."""
    layers, hidden = (2, 64) if given.quick else (8, 256)
    model = sk.wrap(network(layers, hidden), tokenizer=None)
    net, tried = model.network, candidates(model, STRENGTHS)
    tokens = torch.randint(3, VOCAB, (32,), generator=torch.Generator().manual_seed(1))
    batch = Batch.collate([Tokenized(tuple(tokens.tolist()))], pad_id=0)
    view = model.with_rows(*[(add,) for _, _, add in tried])
    whole, slots = batch.repeated(len(tried)), list(range(1, len(tried) + 1))

    def loop() -> list[tuple[int, ...]]:
        out = []
        with torch.no_grad():
            for layer, vector, _ in tried:
                with hooked(net, layer, vector):
                    said = net.generate(
                        input_ids=batch.tokens,
                        attention_mask=batch.mask.long(),
                        max_new_tokens=NEW,
                        do_sample=False,
                        pad_token_id=0,
                        disable_compile=True,
                    )
                out.append(tuple(said[0, batch.width :].tolist()))
        return out

    def rows() -> list[tuple[int, ...]]:
        return model.engine.complete(
            whole, view.table, slots, max_new_tokens=NEW, temperature=0.0, seed=0
        )

    arms: dict[str, Arm] = {LOOP: loop, AGAIN: loop, "all candidates at once": rows}
    equal = sum(a == b for a, b in zip(loop(), rows(), strict=True)) / len(tried)
    part = timed(
        arms, given, goals={"all candidates at once": DECODE_GOAL}, gap=None, shape=[layers, hidden]
    )
    return {**part, "equal_answers": equal}


def organism_part(given: argparse.Namespace, *, layers: int = 0) -> dict[str, Any]:
    """16 harmful requests on the embedded organism; with `layers`, on a random one as wide."""
    from steerkit.datasets import refusal

    model = sk.load("organism:aligned")
    batch = model.encode(refusal("held_out", 2 if given.quick else 16, seed=0).positive)
    if layers:
        model = sk.wrap(network(layers, model.info.d_model))
    arms = prompt_arms(model, batch, STRENGTHS)
    shape = [model.info.n_layers, model.info.d_model]
    return timed(arms, given, goals={}, gap=same(arms), shape=shape)


def search_part(given: argparse.Namespace) -> dict[str, Any]:
    """All candidates of the demo: right answers and KL, one after the other or at once."""
    from steerkit.datasets import refusal
    from steerkit.searches.candidates import every_candidate
    from steerkit.searches.guards import KLGuard
    from steerkit.searches.objectives import Unanswered

    model = sk.load("organism:aligned")
    train, held_out = refusal("train", 48, seed=0), refusal("held_out", 24, seed=0)
    acts = sk.capture(model, train, progress=False)
    found = sk.extract(
        acts, ["mean_difference", "lda"], n_permutations=1, n_random=1, progress=False
    )
    tried = every_candidate(
        found, ["ablate", "add"], aim="reduce", positions=("all", "last_prompt")
    )[:: 12 if given.quick else 1]
    asked = held_out.positive
    guard = KLGuard.on(
        model, held_out.negative, held_out.groups[len(asked) :], limit=0.1, max_new_tokens=14
    )
    objective = Unanswered(14)

    def some(interventions: Sequence[Any]) -> list[tuple[float, float]]:
        scores = measure(model, interventions, objective, asked).values.mean(1)
        kl = measure_damage(model, interventions, guard)
        return [(float(s), k.mean.value) for s, k in zip(scores, kl, strict=True)]

    def loop() -> list[tuple[float, float]]:
        return [some([one.intervention])[0] for one in tried]

    def together() -> list[tuple[float, float]]:
        return some([one.intervention for one in tried])

    apart = max(
        max(abs(a[0] - b[0]), abs(a[1] - b[1])) for a, b in zip(loop(), together(), strict=True)
    )
    arms: dict[str, Arm] = {LOOP: loop, AGAIN: loop, "all candidates at once": together}
    part = timed(
        arms, given, goals={}, gap=apart, shape=[model.info.n_layers, model.info.d_model], repeats=3
    )
    return {**part, "candidates": len(tried)}


def timed(
    arms: dict[str, Arm],
    given: argparse.Namespace,
    *,
    goals: dict[str, float],
    gap: float | None,
    shape: Sequence[int],
    repeats: int = 0,
) -> dict[str, Any]:
    """Measured arms as a part of the results."""
    before = timing.machine()
    rounds = 2 if given.quick else repeats or given.repeats
    with torch.no_grad():
        times = timing.measure(arms, repeats=rounds, warmup=1 if repeats else 2)
    table = timing.rows(times, LOOP, goals=goals)
    before["load_average_after"] = list(os.getloadavg())
    return {
        "machine": before,
        "layers_and_width": list(shape),
        "largest_difference": gap,
        "rows": table,
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    **{f"prompt_{n}": (lambda given, n=n: prompt_part(n, given)) for n in GOALS},
    "decode": decode_part,
    "organism": organism_part,
    "organism_6_layers": lambda given: organism_part(given, layers=6),
    "search": search_part,
}


def main() -> None:
    """Check, time, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny and few; proves it runs")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    name = "sweep-quick" if given.quick else "sweep"
    for part in given.parts:
        found = PARTS[part](given)
        timing.show(f"{part}, {given.threads} thread(s)", found["rows"])
        key = part if given.threads == 1 else f"{part}_{given.threads}_threads"
        path = timing.update(name, {key: found})
    print(path)


if __name__ == "__main__":
    main()
