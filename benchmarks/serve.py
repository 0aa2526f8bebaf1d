"""What steering costs under continuous batching, and what continuous batching gains.

    python benchmarks/serve.py [--quick] [--threads 2] [--repeats 15] [--device cpu] [--parts ...]

Requests with prompts of different lengths and answers of one length are served by Hugging
Face's `generate_batch` on a random Llama-style model: with nothing installed into it (the
baseline), through steerkit without a program, with one program for all requests, with a
program of its own for each (its own vectors at every layer, strength and position rule), and
with conditions decided on each prompt. All run in one process, in rotated order, with the same
configuration and without end tokens, so that each generates as much. In rounds of their own the
mixed requests are answered by `generate`: one after the other, and in padded batches. Answers
are compared with those of `generate` before anything is timed. Writes `results/serve.json`.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import timing
import torch
from directions import along

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.direction import Direction
from steerkit.interventions import When
from steerkit.serving import serve

CPU_GOAL, GPU_GOAL, SEQUENTIAL_GOAL = 1 / 0.97, 1 / 0.98, 1 / 5
NOTHING, PLAIN, ONE = "unsteered", "steerkit, no program", "steerkit, one program"
MIXED, GATED = "steerkit, mixed programs", "steerkit, mixed conditions"
SEQUENTIAL, PADDED = "generate, one after the other", "generate, padded batches"
RULES = ("all", "generated", "prompt", "all")


class Shape(NamedTuple):
    """A model and what is asked of it."""

    d_model: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    requests: int
    prompt: tuple[int, int]
    """Shortest and longest prompt."""
    new_tokens: int
    dtype: torch.dtype = torch.float32


SHAPES = {
    "small": Shape(64, 8, 4, 4, 500, 32, (8, 64), 32),
    "large": Shape(512, 8, 8, 8, 2000, 32, (8, 64), 32),
    "8b": Shape(4096, 32, 32, 8, 32000, 256, (64, 256), 64, torch.bfloat16),
}


def network(shape: Shape, device: str) -> Any:
    """A random Llama that never ends an answer of its own accord."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        intermediate_size=7 * shape.d_model // 2,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=1 / shape.d_model**0.5,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(device):
        torch.set_default_dtype(shape.dtype)
        try:
            return LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)


def settings(shape: Shape, device: str) -> Any:
    """The same configuration for every arm: eager passes, the attention as it is."""
    from transformers import ContinuousBatchingConfig

    given: dict[str, Any] = {"max_batch_tokens": 2048}
    if device == "cpu":
        longest = shape.prompt[1] + shape.new_tokens
        given = {"max_batch_tokens": 256, "num_blocks": shape.requests * (longest // 32 + 2)}
    return ContinuousBatchingConfig(
        page_size=32,
        max_requests_per_batch=shape.requests,
        use_cuda_graph=False,
        use_async_batching=False,
        auto_switch_to_flash=False,
        **given,
    )


def bare(net: Any, items: Sequence[Tokenized], config: Any, new_tokens: int) -> Any:
    """Continuous batching by the library itself, nothing of ours involved."""
    from transformers import GenerationConfig

    generation = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    prompts = [list(item.prompt) for item in items]

    def run() -> list[tuple[int, ...]]:
        out = net.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=config
        )
        return [tuple(result.generated_tokens) for result in out.values()]

    return run


def views(model: Any, shape: Shape) -> dict[str, tuple[Any, list[int]]]:
    """What each arm steers by, and the slot of each request."""
    draw = torch.Generator().manual_seed(1)

    def direction(layer: int) -> Direction:
        vector = torch.randn(shape.d_model, generator=draw)
        return along(model, layer, vector, 0.1 * shape.d_model**0.5)

    def added(number: int) -> list[Any]:
        return [
            sk.Add(
                direction(layer),
                strength=1 + number % 3,
                positions=RULES[number % len(RULES)],
            )
            for layer in range(shape.layers)
        ]

    n = shape.requests
    programs = [added(number) for number in range(n)]
    condition = When(direction(0), above=0.0, on="last_prompt")
    gated = [[op.when(condition) if op.sites[0].layer else op for op in row] for row in programs]
    own = list(range(1, n + 1))
    return {
        PLAIN: (model, [0] * n),
        ONE: (model.with_(*added(0)), [1] * n),
        MIXED: (model.with_rows(*programs), own),
        GATED: (model.with_rows(*gated), own),
    }


def served(
    view: Any, slots: list[int], items: Sequence[Tokenized], config: Any, new_tokens: int
) -> Callable[[], list[tuple[int, ...]]]:
    """What `generate_batch` does once it has tokenized."""
    return lambda: serve(
        view.engine, items, view.table, slots, max_new_tokens=new_tokens, config=config
    )


def generated(
    view: Any, slots: list[int], items: Sequence[Tokenized], new_tokens: int, together: int
) -> Callable[[], list[tuple[int, ...]]]:
    """What `generate` does once it has tokenized, in batches of prompts of similar length."""
    order = sorted(range(len(items)), key=lambda i: -len(items[i]))
    groups = [order[i : i + together] for i in range(0, len(order), together)]

    def run() -> list[tuple[int, ...]]:
        answers: dict[int, tuple[int, ...]] = {}
        for group in groups:
            batch = Batch.collate(
                [items[i] for i in group], pad_id=0, rows=group, device=view.engine.device
            )
            new = view.engine.complete(
                batch,
                view.table,
                [slots[i] for i in group],
                max_new_tokens=new_tokens,
                temperature=0.0,
                seed=0,
            )
            answers.update(zip(group, new, strict=True))
        return [answers[i] for i in range(len(items))]

    return run


def check(
    arms: dict[str, Callable[[], Any]], alone: dict[str, Callable[[], Any]], half: bool
) -> dict[str, int]:
    """How many answers of each arm differ from those of `generate`, one after the other.

    Rounding differs between batch shapes, so a near tie may go either way, and what follows it.
    """
    found = {}
    for name, arm in arms.items():
        want = alone[name]()
        found[name] = sum(got != one for got, one in zip(arm(), want, strict=True))
        if not half and found[name] > len(want) // 8:
            raise SystemExit(f"'{name}': {found[name]} of {len(want)} answers differ")
    return found


def compare(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One part: every arm beside the baseline, then against `generate`."""
    shape = SHAPES[name]
    if given.quick:
        shape = shape._replace(requests=8, new_tokens=6)
    net = network(shape, given.device)
    draw = torch.Generator().manual_seed(2)
    low, high = shape.prompt
    lengths = torch.randint(low, high + 1, (shape.requests,), generator=draw).tolist()
    items = [
        Tokenized(tuple(torch.randint(3, shape.vocab, (n,), generator=draw).tolist()))
        for n in lengths
    ]
    config = settings(shape, given.device)
    model, new = sk.wrap(net), shape.new_tokens
    steered = views(model, shape)
    ours = {arm: served(*view, items, config, new) for arm, view in steered.items()}
    alone = {arm: generated(*view, items, new, 1) for arm, view in steered.items()}
    nothing = bare(net, items, config, new)
    if nothing() != ours[PLAIN]():
        raise SystemExit("continuous batching through steerkit, without a program, differs")
    if ours[MIXED]() == ours[PLAIN]():
        raise SystemExit("the programs change nothing, so nothing is compared")
    differing = check(ours, alone, shape.dtype != torch.float32)
    goal = CPU_GOAL if given.device == "cpu" else GPU_GOAL
    arms = {NOTHING: nothing, f"{NOTHING} again (A/A)": nothing, **ours}
    times = timing.measure(arms, repeats=given.repeats, warmup=1)
    goals = dict.fromkeys((ONE, MIXED, GATED), goal)
    table = timing.rows(times, NOTHING, goals=goals, clock=given.clock)
    against = {
        SEQUENTIAL: alone[MIXED],
        PADDED: generated(*steered[MIXED], items, new, 8),
        MIXED: ours[MIXED],
    }
    beside = timing.measure(against, repeats=given.sequential_repeats, warmup=1)
    wanted = {MIXED: SEQUENTIAL_GOAL} if given.device != "cpu" else {}
    return {
        "requests": shape.requests,
        "prompt_tokens": sum(lengths),
        "new_tokens": new,
        "shape": [shape.d_model, shape.layers],
        "answers_that_differ_from_generate": differing,
        "rows": table,
        "against_generate": timing.rows(beside, SEQUENTIAL, goals=wanted, clock=given.clock),
    }


def main() -> None:
    """Run everything and write the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="few requests; proves it runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--sequential-repeats", type=int, default=5)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="which clock decides; cpu (with --threads 1) where others share the machine",
    )
    options.add_argument("--parts", nargs="+", choices=SHAPES)
    given = options.parse_args()
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    if given.quick:
        given.repeats, given.sequential_repeats = 3, 2
    for part in given.parts or (["small", "large"] if given.device == "cpu" else ["8b"]):
        before = timing.machine()
        found = compare(part, given)
        timing.show(f"{part}: continuous batching", found["rows"])
        timing.show(f"{part}: against generate", found["against_generate"])
        before["load_average_after"] = list(os.getloadavg())
        name = "serve-quick" if given.quick else "serve"
        # Parts measured earlier stay: each carries the machine and load it was measured under.
        path = timing.update(name, {part: {"machine": before, **found}})
    print(path)


if __name__ == "__main__":
    main()
