"""The README's tables of measured ratios and of regrets, from the committed results.

python benchmarks/summary.py
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

STEP, STEPS = "decode step (d512, 8 layers, batch 8)", "small decode step (d64, 8 layers, batch 1)"
SEVEN = "add, all layers, 7 programs in the batch/add, all layers"
LIBRARY = "unsteered, transformers StaticCache and torch.compile"
SERVING = "continuous batching"
PROBES = "columns of one product"
SAELENS = "SAELens CacheActivationsRunner"
STREAMED = "feature_statistics, streamed"
VLLM, ADD, GATED = "vLLM (d2048)", "add, all layers", "gated at every token, all layers"
MIXED = "add, all layers, a program for each request"
ENGINES = "plugin absent, mean of two engines"

SHOWN: tuple[tuple[str, str, str, str], ...] = (
    ("capture", "large_batch", "steerkit last, all layers", "last token of all layers, time"),
    ("capture", "large_batch", "steerkit mean, all layers", "prompt mean of all layers, time"),
    ("capture", "large_batch", "steerkit last, middle layer", "last token, middle layer, time"),
    ("capture", "small_batch", "steerkit last, all layers", "the same on 8 tokens, time"),
    ("capture", "peak_memory", "steerkit last, all layers", "last token of all layers, memory"),
    ("capture", "mixed_lengths", "random batches of 16", "random batches, mixed lengths, time"),
    ("capture", "to_disk", "SAELens CacheActivationsRunner", "SAELens, one layer to disk, time"),
    ("eager", "large_prefill_add_all", "steerkit", "eager add, all layers (d512, 8x128), time"),
    ("eager", "large_decode_add_all", "steerkit", "eager add, all layers, decoding (d512), time"),
    ("eager", "small_decode_add_all", "steerkit", "eager add, all layers, decoding (d64), time"),
    ("decode", "d512_B8", "add, all layers", f"{STEP}: add, all layers, time"),
    ("decode", "d512_B8", "ablate, all layers", f"{STEP}: ablate, all layers, time"),
    ("decode", "d512_B8", "gate at every token, all layers", f"{STEP}: gated add, time"),
    ("decode", "d512_B8", "gate on the prompt, all layers", f"{STEP}: add under a latch, time"),
    ("decode", "d512_B8", "4 SAE features, one layer", f"{STEP}: 4 SAE features, time"),
    ("decode", "d512_B8", "3 adds, all layers/add, all layers", f"{STEP}: 3 adds, time"),
    ("decode", "d512_B8", SEVEN, f"{STEP}: 7 programs, time"),
    ("decode", "d64_B1", "add, all layers", f"{STEPS}: add, all layers, time"),
    ("decode", "d64_B1", "gate at every token, all layers", f"{STEPS}: gated add, time"),
    ("decode", "d64_B1", LIBRARY, f"{STEPS}: transformers' own, time"),
    ("norm_fused", "2048x4096", "add", "norm with a program fused in (2048x4096): add, time"),
    ("norm_fused", "2048x4096", "gated add", "the same: gated add, time"),
    ("sweep", "prompt_8", "run_slots", "8 layers x 4 strengths in one pass, 8 tokens, time"),
    ("sweep", "prompt_32", "run_slots", "the same, 32 tokens, time"),
    ("sweep", "prompt_128", "run_slots", "the same, 128 tokens, time"),
    ("sweep", "decode", "all candidates at once", "the same, 16 tokens decoded, time"),
    ("sweep", "organism_6_layers", "run_slots", "6 layers x 4 strengths, 16 requests, time"),
    ("sweep", "search", "all candidates at once", "every candidate of the demo's search, time"),
    ("probes", "25_fits_n512_d512", PROBES, "25 probe fits, n 512, d 512, time"),
    ("probes", "32_concepts_n512_d512", PROBES, "probes of 32 concepts, n 512, d 512, time"),
    ("probes", "25_fits_n512_d2048", PROBES, "25 probe fits, n 512, d 2048, time"),
    ("probes", "32_concepts_n512_d2048", PROBES, "probes of 32 concepts, n 512, d 2048, time"),
    ("sae_statistics", "time_25000", STREAMED, "SAE feature statistics, streamed, time"),
    ("sae_clamp", "F16384_d512_T256", "SetFeatures, 4 features", "4 of 16,384 SAE features, time"),
    ("harvest", "rate", "steerkit worker", "a worker of a dataset's capture, time"),
    ("harvest", "workers", "two workers", "two workers of a thread, time"),
    ("harvest", "saelens", SAELENS, "SAELens, a dataset's tokens to disk, time"),
    ("harvest", "read", "SAELens' Arrow route, in order", "SAELens reading a store in order, time"),
    ("harvest", "read", "SAELens' Arrow route, mixed", "SAELens reading a store mixed, time"),
    ("harvest", "moments", "dataset_moments", "sums of a dataset, time"),
    ("harvest", "memory", "1,000,000 tokens", "a worker's peak memory, 1,000,000 tokens"),
    ("suite", "together_64_organism", "in one batch", "model and steered model in one batch, time"),
    ("serve", "large", "steerkit, mixed programs", f"{SERVING} (d512), mixed programs, time"),
    ("serve", "large", "steerkit, mixed conditions", f"{SERVING} (d512), mixed conditions, time"),
    ("serve", "small", "steerkit, mixed programs", f"{SERVING} (d64), mixed programs, time"),
    ("vllm_throughput", "eager_decode", "plugin unused", f"{VLLM}, decoding: plugin unused, time"),
    ("vllm_throughput", "eager_decode", f"{ADD}/{ENGINES}", f"{VLLM}, decoding: {ADD}, time"),
    ("vllm_throughput", "eager_decode", f"{MIXED}/{ENGINES}", "the same: 8 programs, time"),
    ("vllm_throughput", "eager_decode", f"{GATED}/{ENGINES}", "the same: gated add, time"),
    ("vllm_throughput", "eager_prefill", f"{ADD}/{ENGINES}", f"{VLLM}, prompts: {ADD}, time"),
    ("vllm_throughput", "compiled_decode", f"{ADD}/{ENGINES}", f"{VLLM}, compiled: {ADD}, time"),
    ("vllm_throughput", "compiled_decode", f"{GATED}/{ENGINES}", "the same: gated add, time"),
)  # fmt: skip
"""(result file, part, arm or arm/base, what it is called in the README)."""


def rows() -> list[str]:
    """Markdown rows: what, against what, ratio with its interval, verdict, machine, date."""
    out = [
        "| measured | against | ratio [95%] | goal | machine | date |",
        "|---|---|---|---|---|---|",
    ]
    for file, part, shown, name in SHOWN:
        path = RESULTS / f"{file}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8")).get(part)
        if found is None:
            continue
        arm, _, against = shown.partition("/")
        row = next(
            r for r in found["rows"] if r["arm"] == arm and against in ("", r.get("base", ""))
        )
        base = row.get("base") or found["rows"][0]["arm"]
        machine = found.get("machine") or {}
        out.append(
            f"| {name} | {base} | {_ratio(row)} | {_goal(row)} | "
            f"{machine['cores']} cores, {machine['cpu']} | {machine['date'][:10]} |"
        )
    return out


CRITERIA = (
    "causal sweep", "silhouette", "agreement", "fisher", "gap", "js", "auc", "js_repo (rms)",
    "last layer", "middle layer", "selection rule (Arditi et al.)",
)  # fmt: skip
"""Of all criteria, those that the README shows."""


def regrets() -> list[str]:
    """Markdown rows: what a criterion's choice of layer costs, in points of right answers."""
    path = RESULTS / "criteria_regret.json"
    found = json.loads(path.read_text(encoding="utf-8"))["over_seeds"]["rows"]
    rows = {row["criterion"]: row for row in found}
    out = ["| chosen by | mean | worst | misleads most with |", "|---|---|---|---|"]
    for name in CRITERIA:
        row = rows[name]
        if row["mean"] is None:
            out.append(f"| {name} | chooses nothing on {row['no_choice']} of 5 seeds | | |")
            continue
        there = row.get("misleads_most") or "(measured against the best of everything)"
        out.append(f"| {name} | {row['mean']:.1f} | {row['worst']:.1f} | {there} |")
    return out


def _ratio(row: dict[str, Any]) -> str:
    found = row.get("ratio") or row[f"{row.get('verdict_clock', 'wall')}_ratio"]
    digits = 3 if found["median"] > 0.1 else 5
    median, low, high = (f"{found[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def _goal(row: dict[str, Any]) -> str:
    for key, sign in (("goal_at_most", "≤"), ("goal_at_least", "≥")):
        if key in row:
            return f"{sign} {row[key]:.3g}: {row['verdict']}"
    return ""


if __name__ == "__main__":
    print("\n".join([*rows(), "", *regrets()]))
