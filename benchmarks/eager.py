"""What an intervention by eager hooks costs: against a raw hook, and against other toolkits.

    python benchmarks/eager.py [--quick] [--threads 1] [--repeats 41] [--clock cpu] [--parts ...]

Adding a vector to the outputs of one block or of all of them, or ablating one there, at every
token, in one forward pass and in greedy decoding, on two random Llama-style models: one so
small that only overhead counts, one of width 512 in batches of 8. The raw hook does the same
arithmetic on the same vectors and nothing else, installed and removed around the call as ours
are; the baseline of all is the model with nothing installed. Outputs are compared between arms
before anything is timed. Peers are measured beside ours in rounds of their own; one that is
not installed, cannot run or returns something else becomes a note. `pip install
"steerkit[benchmarks]"` installs those that can live beside our other requirements; repeng and
steering-vectors ask for older releases of numpy and transformers, but run beside ours with
`pip install --no-deps repeng gguf steering-vectors`. Writes `results/eager.json`.
"""

import argparse
import importlib.metadata
import os
import warnings
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import timing
import torch
from directions import along
from steering_peers import PEERS, Case, raw_hook, unsteered

import steerkit as sk
from steerkit.batch import Batch, Tokenized

LAYERS, NEW_TOKENS = 8, 48
RAW_GOAL, PEER_GOAL = 1.02, 1.0
OURS, RAW, NOTHING = "steerkit", "raw hook", "unsteered"


class Shape(NamedTuple):
    """A model and what runs on it."""

    d_model: int
    heads: int
    vocab: int
    rows: int
    prefill: int
    """Tokens of a row in one forward pass."""
    prompt: int
    """Tokens of a row that decoding begins with."""


SHAPES = {"small": Shape(64, 4, 500, 1, 128, 16), "large": Shape(512, 8, 2000, 8, 128, 16)}
PARTS = {
    f"{shape}_{phase}_{op}_{where}": (shape, phase, op, where)
    for shape, phase, op, where in product(
        SHAPES, ("prefill", "decode"), ("add", "ablate"), ("one", "all")
    )
}
DISTRIBUTIONS = ("repeng", "steering-vectors", "pyvene", "nnsight", "transformer-lens")


def network(shape: Shape) -> Any:
    """A random Llama that never ends an answer of its own accord."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        intermediate_size=4 * shape.d_model,
        num_hidden_layers=LAYERS,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def build(part: str, new_tokens: int) -> tuple[Case, Callable[[], torch.Tensor]]:
    """What a part compares, and our arm of it."""
    name, phase, op, where = PARTS[part]
    shape = SHAPES[name]
    net = network(shape)
    draw = torch.Generator().manual_seed(1)
    width = shape.prompt if phase == "decode" else shape.prefill
    ids = torch.randint(3, shape.vocab, (shape.rows, width), generator=draw)
    model = sk.wrap(net)
    directions = []
    for layer in range(LAYERS) if where == "all" else (LAYERS // 2,):
        vector = torch.randn(shape.d_model, generator=draw)
        directions.append(along(model, layer, vector, 0.5 * shape.d_model**0.5))
    kind = sk.Add if op == "add" else sk.Ablate
    view = model.with_(*(kind(direction) for direction in directions))
    batch = Batch.collate([Tokenized(tuple(row)) for row in ids.tolist()], pad_id=0)
    case = Case(
        net,
        {
            "input_ids": batch.tokens,
            "attention_mask": batch.mask.long(),
            "position_ids": batch.position_ids,
        },
        {d.site.layer: d.vector if op == "add" else d.unit for d in directions},
        op,
        new_tokens if phase == "decode" else 0,
    )

    def decode() -> torch.Tensor:
        # What `generate` does once it has tokenized.
        new = view.engine.complete(
            batch,
            view.table,
            [1] * len(batch),
            max_new_tokens=new_tokens,
            temperature=0.0,
            seed=0,
        )
        return torch.tensor(new)

    def forward() -> torch.Tensor:
        logits = view.run(batch).logits
        assert logits is not None
        return logits

    return case, decode if case.tokens else forward


def difference(got: torch.Tensor, want: torch.Tensor) -> str:
    """How an arm's logits or tokens differ from what they should be; empty where they do not."""
    if got.shape != want.shape:
        return f"returns {tuple(got.shape)}, not {tuple(want.shape)}"
    if not want.is_floating_point():
        wrong = int((got != want).sum())
        return f"{wrong} of {want.numel()} tokens differ from the raw hook's" if wrong else ""
    error = float((got - want).norm() / want.norm())
    return "" if error < 1e-4 else f"logits differ from the raw hook's by {error:.2g}"


def peers(case: Case, want: torch.Tensor) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Peers that do the same, and why others are missing."""
    arms: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    for name, peer in PEERS.items():
        try:
            arm = peer(case)
            wrong = difference(arm(), want)
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            wrong = f"{type(error).__name__}: {text[:200]}"
        if wrong:
            missing[name] = f"not timed: {wrong}"
        else:
            arms[name] = arm
    return arms, missing


def compare(part: str, given: argparse.Namespace) -> dict[str, Any]:
    """One part: ours against the raw hook, then ours against every peer."""
    new_tokens = 8 if given.quick else NEW_TOKENS
    case, ours = build(part, new_tokens)
    raw, bare = raw_hook(case), unsteered(case)
    want = raw()
    wrong = difference(ours(), want)
    if wrong:
        raise SystemExit(f"{part}: steerkit {wrong}")
    if not difference(bare(), want):
        raise SystemExit(f"{part}: the intervention changes nothing, so nothing is compared")
    others, missing = peers(case, want)
    arms = {RAW: raw, f"{RAW} again (A/A)": raw, OURS: ours, NOTHING: bare}
    # Long calls are less noisy, and cost more.
    repeats = given.repeats if part.startswith("small") else max(2, given.repeats // 3)
    times = timing.measure(arms, repeats=repeats, warmup=1 if given.quick else 3)
    table = timing.rows(times, RAW, goals={OURS: RAW_GOAL}, clock=given.clock)
    ours_row = next(row for row in table if row["arm"] == OURS)
    for clock in ("wall", "cpu"):
        ours_row[f"{clock}_ratio_to_unsteered"] = timing.ratio(
            times[clock][OURS], times[clock][NOTHING]
        )
    if others:
        beside = timing.measure({OURS: ours, **others}, repeats=given.peer_repeats, warmup=1)
        table += [peer_row(row, given.clock) for row in timing.rows(beside, OURS)[1:]]
    table += [{"arm": name, "note": why} for name, why in missing.items()]
    return {
        "batch": "x".join(map(str, case.inputs["input_ids"].shape)),
        "new_tokens": case.tokens,
        "rows": table,
    }


def peer_row(row: dict[str, Any], clock: str) -> dict[str, Any]:
    """A peer's time over ours, which should be above 1."""
    interval: Mapping[str, float] = row[f"{clock}_ratio"]
    return {
        **row,
        "goal_at_least": PEER_GOAL,
        "verdict": timing.verdict(interval, PEER_GOAL, at_most=False),
        "verdict_clock": clock,
    }


def installed() -> dict[str, str]:
    """Versions of the peers."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Run everything and write the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="few repeats; proves it runs")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument(
        "--repeats",
        type=int,
        default=41,
        help="against the raw hook",
    )
    options.add_argument("--peer-repeats", type=int, default=9)
    options.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="which clock decides; cpu (with --threads 1) where others share the machine",
    )
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = options.parse_args()
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    if given.quick:
        given.repeats, given.peer_repeats = 3, 2
    for part in given.parts:
        before = timing.machine()
        before["versions"] |= installed()
        found = compare(part, given)
        timing.show(part, found["rows"])
        before["load_average_after"] = list(os.getloadavg())
        name = "eager-quick" if given.quick else "eager"
        # Parts measured earlier stay: each carries the machine and load it was measured under.
        path = timing.update(name, {part: {"machine": before, **found}})
    print(path)


if __name__ == "__main__":
    main()
