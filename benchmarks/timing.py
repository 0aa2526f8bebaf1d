"""Timing that can be trusted: arms in rotated order, paired ratios, intervals, verdicts.

Shared by the scripts beside it. A bound is *met* when the upper end of the 95% interval of
the paired median ratio meets it, *not met* when the lower end misses it, and otherwise *not
resolved*. The A/A row, the baseline against itself, shows what the machine's noise does.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

PACKAGES = ("torch", "transformers", "transformer-lens", "sae-lens", "nnsight", "numpy")
RESULTS = Path(__file__).resolve().parent / "results"

Times = Mapping[str, Mapping[str, Sequence[float]]]
"""`{"wall": {arm: seconds of each round}, "cpu": ...}`; `cpu` counts all threads."""


def measure(
    arms: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 2
) -> dict[str, dict[str, list[float]]]:
    """Run every arm once a round, in an order that rotates from round to round."""
    names = list(arms)
    out: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in names} for clock in ("wall", "cpu")
    }
    for round_ in range(-warmup, repeats):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            wall, cpu = time.perf_counter(), time.process_time()
            kept = arms[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            del kept
            if round_ >= 0:
                out["wall"][name].append(wall)
                out["cpu"][name].append(cpu)
    return out


def repeated(function: Callable[[], Any], calls: int) -> None:
    """One round of an arm whose single call is too short to be timed, or meets cold caches."""
    for _ in range(calls):
        function()


def ratio(
    times: Sequence[float], base: Sequence[float], *, seed: int = 0, draws: int = 4000
) -> dict[str, float]:
    """Median over rounds of time / base of the same round, with its bootstrap 95% interval."""
    pairs = np.asarray(times) / np.asarray(base)
    picks = np.random.default_rng(seed).integers(0, len(pairs), (draws, len(pairs)))
    low, high = np.quantile(np.median(pairs[picks], axis=1), [0.025, 0.975])
    return {"median": float(np.median(pairs)), "low": float(low), "high": float(high)}


def verdict(interval: Mapping[str, float], goal: float, *, at_most: bool = True) -> str:
    """`met`, `not met` or `not resolved`."""
    low, high = interval["low"], interval["high"]
    if not at_most:
        low, high, goal = -high, -low, -goal
    return "met" if high <= goal else "not met" if low > goal else "not resolved"


def rows(
    times: Times,
    base: str,
    *,
    goals: Mapping[str, float] | None = None,
    clock: str = "wall",
    notes: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """One row an arm: seconds, ratio to the base by both clocks, verdict by the one named."""
    out = []
    for name, seconds in times["wall"].items():
        row: dict[str, Any] = {
            "arm": name,
            "median_s": float(np.median(seconds)),
            "p20_s": float(np.quantile(seconds, 0.2)),
            "p80_s": float(np.quantile(seconds, 0.8)),
            "repeats": len(seconds),
            "base": base,
            "wall_ratio": ratio(seconds, times["wall"][base]),
            "cpu_ratio": ratio(times["cpu"][name], times["cpu"][base]),
        }
        if goals and name in goals:
            row["goal_at_most"] = goals[name]
            row["verdict"], row["verdict_clock"] = (
                verdict(row[f"{clock}_ratio"], goals[name]),
                clock,
            )
        if notes and name in notes:
            row["note"] = notes[name]
        out.append(row)
    return out


def machine() -> dict[str, Any]:
    """Hardware, versions and load, for the head of every result."""
    cpu = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((li for li in info.read_text().splitlines() if li.startswith("model name")), "")
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu.partition(":")[2].strip() or platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": versions,
    }


def hold_peak() -> tuple[int, int]:
    """Forget the peak so far; returns (resident bytes, anonymous bytes) now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS"), _status("RssAnon")


def peak() -> int:
    """Largest resident size since `hold_peak`, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def update(name: str, parts: Mapping[str, Any]) -> Path:
    """Put these parts into `results/NAME.json`, beside those measured before."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **parts}, indent=1) + "\n")
    return path


def show(title: str, table: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a plain table."""
    print(f"\n{title}", flush=True)
    for row in table:
        if "ratio" in row:
            r = row["ratio"]
            print(
                f"  {row['arm']:46s} {row['median_mib']:8.1f} MiB   x{r['median']:.3f} "
                f"[{r['low']:.3f}, {r['high']:.3f}]   {row.get('verdict', '')}"
            )
            continue
        if "wall_ratio" not in row:
            print(f"  {row['arm']:46s} {row.get('note', row)}")
            continue
        w, c = row["wall_ratio"], row["cpu_ratio"]
        print(
            f"  {row['arm']:46s} {1e3 * row['median_s']:9.1f} ms   wall x{w['median']:.3f} "
            f"[{w['low']:.3f}, {w['high']:.3f}]   cpu x{c['median']:.3f} "
            f"[{c['low']:.3f}, {c['high']:.3f}]   {row.get('verdict', '')}"
        )
