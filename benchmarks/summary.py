"""The README's table of measured ratios, from the committed results.

python benchmarks/summary.py
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

SHOWN: tuple[tuple[str, str, str, str], ...] = (
    ("capture", "large_batch", "steerkit last, all layers", "last token of all layers, time"),
    ("capture", "large_batch", "steerkit mean, all layers", "prompt mean of all layers, time"),
    ("capture", "large_batch", "steerkit last, middle layer", "last token, middle layer, time"),
    ("capture", "small_batch", "steerkit last, all layers", "the same on 8 tokens, time"),
    ("capture", "peak_memory", "steerkit last, all layers", "last token of all layers, memory"),
    ("capture", "mixed_lengths", "random batches of 16", "random batches, mixed lengths, time"),
    ("capture", "to_disk", "SAELens CacheActivationsRunner", "SAELens, one layer to disk, time"),
)  # fmt: skip
"""(result file, part, arm, what it is called in the README)."""


def rows() -> list[str]:
    """Markdown rows: what, against what, ratio with its interval, verdict, machine, date."""
    out = [
        "| measured | against | ratio [95%] | goal | machine | date |",
        "|---|---|---|---|---|---|",
    ]
    for file, part, arm, name in SHOWN:
        path = RESULTS / f"{file}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8")).get(part)
        if found is None:
            continue
        row = next(r for r in found["rows"] if r["arm"] == arm)
        base = row.get("base") or found["rows"][0]["arm"]
        machine = found.get("machine") or {}
        out.append(
            f"| {name} | {base} | {_ratio(row)} | {_goal(row)} | "
            f"{machine['cores']} cores, {machine['cpu']} | {machine['date'][:10]} |"
        )
    return out


def _ratio(row: dict[str, Any]) -> str:
    found = row.get("ratio") or row[f"{row.get('verdict_clock', 'wall')}_ratio"]
    return f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _goal(row: dict[str, Any]) -> str:
    for key, sign in (("goal_at_most", "≤"), ("goal_at_least", "≥")):
        if key in row:
            return f"{sign} {row[key]:g}: {row['verdict']}"
    return ""


if __name__ == "__main__":
    print("\n".join(rows()))
