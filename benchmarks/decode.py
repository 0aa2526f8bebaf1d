"""What steering costs in a compiled decode step: against the same network compiled without it.

    python benchmarks/decode.py [--quick] [--threads 2] [--repeats 41] [--clock wall] [--parts ...]

Random Llama-style models (float32 on a CPU), a static cache, full graphs by Inductor. A round
times a number of decode steps of every arm, in rotated order, in one process. The baseline is
the network's untouched graph, which holds no program and runs in the same loop; beside it the
network as transformers and torch.compile run it, which steerkit has no part in. Logits of every
arm are compared with the eager path's before anything is timed. Writes `results/decode.json`.
On a GPU `--path cuda_graph` replays the steps as CUDA graphs.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import timing
import torch
from directions import along

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.compiled import Capacity, CompiledModel
from steerkit.direction import Direction
from steerkit.interventions import SetFeatures, When
from steerkit.protocols import Intervention

VOCAB, PROMPT, LENGTH = 2000, 16, 256
GATE_GOAL = ADD_GOAL = SAE_GOAL = 1.03
SEVERAL_GOAL, DISTINCT_GOAL = 1 / 0.98, 1 / 0.97
"""Of the time, where the goal is 0.98 and 0.97 of the throughput."""
HOST_GOAL_US = 50.0
BASE = "unsteered, untouched graph"
LIBRARY = "unsteered, transformers StaticCache and torch.compile"
Arm = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """One model and batch, and how many steps a round takes."""

    hidden: int
    layers: int
    heads: int
    rows: int
    steps: int


SHAPES = {"d64_B1": Shape(64, 8, 4, 1, 192), "d512_B8": Shape(512, 8, 8, 8, 12)}
QUICK = {"d64_B1": Shape(64, 2, 4, 1, 4), "d512_B8": Shape(128, 2, 8, 2, 2)}


def network(shape: Shape, device: str) -> Any:
    """The random model under test."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    made = LlamaForCausalLM(config).eval()
    return made.to(device, torch.bfloat16) if device == "cuda" else made


def direction(model: Any, layer: int, seed: int) -> Direction:
    """A random direction about as long as a tenth of the stream."""
    generator = torch.Generator().manual_seed(1000 * seed + layer)
    return along(model, layer, torch.randn(model.info.d_model, generator=generator), 0.1)


def programs(model: Any) -> dict[str, list[list[Intervention]]]:
    """The interventions of each arm, one list a slot."""
    layers, d_model = range(model.info.n_layers), model.info.d_model

    def each(make: Callable[[Direction], Intervention], seed: int = 0) -> list[Intervention]:
        return [make(direction(model, layer, seed)) for layer in layers]

    def gated(on: Any) -> list[Intervention]:
        # Open at every token, so that all of the work is done.
        return each(lambda d: sk.Add(d).when(When(direction(model, 0, 9), above=-1.0, on=on)))

    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2, 4, d_model, generator=generator, dtype=torch.float64) / d_model**0.5
    features = SetFeatures(
        encoder=rows[0],
        bias=torch.ones(4).double(),
        decoder=rows[1],
        target=1.0,
        sites=[model.info.n_layers // 2],
    )
    several = [one for seed in range(3) for one in each(sk.Add, seed)]
    ablations = [one for seed in range(3) for one in each(sk.Ablate, seed)]
    return {
        "add": [each(sk.Add, seed) for seed in range(8)],
        "3 adds": [several],
        "ablate": [each(sk.Ablate)],
        "3 ablations": [ablations],
        "gate at every token": [gated("token")],
        "gate on the prompt": [gated("last_prompt")],
        "4 SAE features, one layer": [[features]],
    }


def prompts(shape: Shape, device: str) -> Batch:
    """Random prompts of one length."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCAB, (shape.rows, PROMPT), generator=generator)
    items = [Tokenized(tuple(row.tolist())) for row in ids]
    return Batch.collate(items, pad_id=0, device=device)


def compiled(
    model: Any,
    given: Sequence[Sequence[Intervention]],
    shape: Shape,
    path: str,
    length: int = LENGTH,
) -> Any:
    """A compiled model with just the room for these programs, and its view of them."""
    view = model.with_rows(*given)
    room = Capacity.of(view.table, rows=shape.rows, length=length, chunk=PROMPT)
    return view.compile(room, path=path)


def steps_of(view: CompiledModel, batch: Batch, slots: Sequence[int], shape: Shape) -> Arm:
    """An arm: the same decode steps again and again, greedy tokens fed back."""
    engine = view.engine
    held = [engine.slots.of(view.table)[slot] for slot in slots]
    requests = engine.requests

    def arm() -> torch.Tensor:
        steered = engine.slots.steered(held)
        # As `decoding` leaves them after the prompt, without running it again.
        requests.position.fill_(PROMPT)
        requests.column.fill_(PROMPT)
        requests.prompt_len.fill_(PROMPT)
        requests.move(held)
        requests.registers.fill_(1)
        tokens = batch.tokens[:, -1:]
        with engine.turn():
            for _ in range(shape.steps):
                out = engine.run_step("token", tokens, steered)
                tokens = out[:, -1].argmax(-1, keepdim=True)
        return out

    return arm


def library_steps(net: Any, batch: Batch, shape: Shape) -> Arm:
    """The network as transformers and torch.compile run it."""
    from transformers import StaticCache

    cache = StaticCache(config=net.config, max_cache_len=LENGTH)
    mask = torch.ones(shape.rows, LENGTH, dtype=torch.long, device=batch.tokens.device)

    @torch.no_grad()
    def forward(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        out = net(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits

    positions = torch.arange(PROMPT, device=mask.device).expand(shape.rows, -1)
    forward(batch.tokens, positions)
    step = torch.compile(forward, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def arm() -> torch.Tensor:
        for layer in cache.layers:
            layer.cumulative_length.fill_(PROMPT)
        place = torch.full((shape.rows, 1), PROMPT, device=mask.device)
        tokens = batch.tokens[:, -1:]
        for _ in range(shape.steps):
            out = step(tokens, place)
            tokens = out[:, -1].argmax(-1, keepdim=True)
            place += 1
        return out

    return arm


def check(name: str, view: CompiledModel, batch: Batch, slots: Sequence[int]) -> None:
    """The prompt and one decode step give what the eager path gives."""
    n = len(batch)
    with view.decoding(batch, slots=slots, room=1) as steps:
        token = steps.logits.argmax(-1)
        found = steps.step(token).float()
    items = [
        Tokenized(tuple(row), (int(new),))
        for row, new in zip(batch.tokens.tolist(), token, strict=True)
    ]
    longer = Batch.collate(items, pad_id=0, device=batch.tokens.device)
    eager = view.eager.run(longer, slots=slots, logits="last").logits
    plain = view.eager.plain.run(longer, logits="last").logits
    assert eager is not None and plain is not None
    wanted, without = eager[:, -1], plain[:, -1]
    bound = 1e-4 if wanted.dtype == torch.float32 and batch.tokens.device.type == "cpu" else 5e-2
    error = float((found - wanted).norm() / wanted.norm())
    moved = float((wanted - without).norm() / without.norm())
    if error > bound or (any(slots) and moved < 10 * error) or len(found) != n:
        raise SystemExit(f"{name}: {error:.1e} from the eager path, which moved by {moved:.1e}")


def shape_part(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """All arms of one shape."""
    shape = (QUICK if given.quick else SHAPES)[name]
    net = network(shape, given.device)
    model, batch = sk.wrap(net), prompts(shape, given.device)
    every = programs(model)
    ones = [1] * shape.rows
    arms: dict[str, Arm] = {LIBRARY: library_steps(net, batch, shape)}
    views: dict[str, CompiledModel] = {}
    for label, slots in every.items():
        if label == "3 adds":
            # Constants are summed on the host: the same table and the same graph.
            views[label] = views["add"].edited(*slots[0], slot=8)
            views["add"] = views[label]
            arms[f"{label}, all layers"] = steps_of(views[label], batch, [8] * shape.rows, shape)
            check(label, views[label], batch, [8] * shape.rows)
            continue
        views[label] = view = compiled(model, slots, shape, given.path)
        check(label, view, batch, ones)
        where = "" if "layer" in label else ", all layers"
        arms[f"{label}{where}"] = steps_of(view, batch, ones, shape)
        if label == "add":
            check(label, view, batch, [0] * shape.rows)
            untouched = steps_of(view, batch, [0] * shape.rows, shape)
            arms = {BASE: untouched, f"{BASE}, again (A/A)": untouched, **arms}
    if shape.rows > 1:
        distinct = [1 + row % 7 for row in range(shape.rows)]
        check("distinct", views["add"], batch, distinct)
        arms[f"add, all layers, {len(set(distinct))} programs in the batch"] = steps_of(
            views["add"], batch, distinct, shape
        )
    for arm in arms.values():
        arm()
    graphs = {label: view.receipt.graphs for label, view in views.items()}
    times = timing.measure(arms, repeats=given.repeats, warmup=1 if given.quick else 3)
    goals = {
        "add, all layers": ADD_GOAL,
        "ablate, all layers": ADD_GOAL,
        "gate at every token, all layers": GATE_GOAL,
        "gate on the prompt, all layers": GATE_GOAL,
        "4 SAE features, one layer": SAE_GOAL,
    }
    table = timing.rows(times, BASE, goals=goals, clock=given.clock)
    beside = {
        "3 adds, all layers": ("add, all layers", SEVERAL_GOAL),
        "3 ablations, all layers": ("ablate, all layers", SEVERAL_GOAL),
        f"add, all layers, {min(shape.rows, 7)} programs in the batch": (
            "add, all layers",
            DISTINCT_GOAL,
        ),
    }
    for arm_name, (base, goal) in beside.items():
        if arm_name in arms:
            pair = {
                clock: {base: found[base], arm_name: found[arm_name]}
                for clock, found in times.items()
            }
            table += timing.rows(pair, base, goals={arm_name: goal}, clock=given.clock)[1:]
    again = {label: view.receipt.graphs for label, view in views.items()}
    if again != graphs:
        raise SystemExit(f"graphs were made while timing: {graphs} became {again}")
    return {
        "model": f"d{shape.hidden} L{shape.layers} B{shape.rows}",
        "path": given.path,
        "steps_a_round": shape.steps,
        "graphs": graphs,
        "rows": table,
    }


def hot_swap(given: argparse.Namespace) -> dict[str, Any]:
    """Host time of edits, and how many graphs they made."""
    from torch._dynamo.utils import counters

    shape = (QUICK if given.quick else SHAPES)["d64_B1"]
    model = sk.wrap(network(shape, given.device))
    every = programs(model)
    edits = 100 if given.quick else 1000
    view = compiled(model, every["add"], shape, given.path, PROMPT + edits)
    batch = prompts(shape, given.device)
    lowered = [direction(model, 0, seed) for seed in range(50)]
    engine, before = view.engine, view.receipt.graphs
    counters.clear()
    seconds: dict[str, list[float]] = {name: [] for name in ("strength", "slot", "vector", "view")}
    tables = [view._lowered([sk.Add(d)], False) for d in lowered]
    slot = engine.slots.of(view.table)[1]
    with view.decoding(batch, slots=[1] * shape.rows, room=edits) as steps:
        place, column = engine.requests.position.clone(), engine.requests.column.clone()
        for i in range(edits):
            start = time.perf_counter()
            view.set_strength(1 + i / edits)
            marks = [time.perf_counter()]
            steps.move([1 + i % 8] * shape.rows)
            marks.append(time.perf_counter())
            engine.slots.write(slot, tables[i % 50])
            marks.append(time.perf_counter())
            view = view.edited(sk.Add(lowered[i % 50], i / edits), slot=2)
            marks.append(time.perf_counter())
            for name, a, b in zip(seconds, [start, *marks], marks, strict=False):
                seconds[name].append(b - a)
            engine.requests.position.copy_(place)
            engine.requests.column.copy_(column)
            steps.step([5] * shape.rows)
    made = view.receipt.graphs - before
    if made or counters["graph_break"]:
        raise SystemExit(f"{made} graphs were made by edits, breaks: {counters['graph_break']}")
    words = {
        "strength": "set_strength",
        "slot": "move rows to another slot",
        "vector": "write a program that is lowered already, one layer",
        "view": "edited(Add(...)): lower and write, one layer",
    }
    rows = []
    for name, times in seconds.items():
        micros = 1e6 * statistics.median(times)
        row: dict[str, Any] = {"arm": words[name], "median_us": micros}
        row["p80_us"] = 1e6 * sorted(times)[int(0.8 * len(times))]
        if name != "view":
            row["goal_at_most_us"] = HOST_GOAL_US
            row["verdict"] = "met" if row["p80_us"] <= HOST_GOAL_US else "not resolved"
            if micros > HOST_GOAL_US:
                row["verdict"] = "not met"
        row["note"] = f"{micros:.1f} us (80%: {row['p80_us']:.1f})  {row.get('verdict', '')}"
        rows.append(row)
    return {"edits": 4 * edits, "graphs_made": made, "graph_breaks": 0, "rows": rows}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "d64_B1": lambda given: shape_part("d64_B1", given),
    "d512_B8": lambda given: shape_part("d512_B8", given),
    "hot_swap": hot_swap,
}


def main() -> None:
    """Run everything and write the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny and few; proves it runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=41)
    options.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="which clock decides; cpu (with --threads 1) where others share the machine",
    )
    options.add_argument("--path", choices=("compiled", "cuda_graph"), default="compiled")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = options.parse_args()
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(given.threads)
    given.repeats = 2 if given.quick else max(7, given.repeats)
    name = "decode" if given.device == "cpu" else f"decode-{given.device}-{given.path}"
    result: dict[str, Any] = {}
    for part in given.parts:
        before, start = timing.machine(), time.perf_counter()
        found = PARTS[part](given)
        timing.show(part, found["rows"])
        before["load_average_after"] = list(os.getloadavg())
        seconds = round(time.perf_counter() - start)
        result[part] = {"machine": before, "seconds": seconds, **found}
        # Parts measured earlier stay: each carries the machine and load it was measured under.
        print(timing.update(f"{name}-quick" if given.quick else name, result))


if __name__ == "__main__":
    main()
