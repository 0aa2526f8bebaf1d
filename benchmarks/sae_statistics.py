"""Feature statistics of a million tokens in the memory of a batch, against encoding everything.

    python benchmarks/sae_statistics.py [--quick] [--threads 2] [--repeats 5]

`organism:aligned` writes the tokens' activations at the site of the shipped SAE while texts of
its own language stream by, drawn as they are needed. `feature_statistics` keeps sums; the naive
route captures every token, encodes all of them densely and reduces at the end, which is what
fits into memory at a tenth of the tokens. Memory: growth of the largest resident size, each
number of tokens in a process of its own. Both routes' numbers are compared before anything is
timed. Writes `results/sae_statistics.json`.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import timing
import torch

import steerkit as sk
from steerkit.organisms import language
from steerkit.prompts import Prompt
from steerkit.sae import Autoencoder, feature_statistics
from steerkit.sae.shipped import MODEL

STREAMED, NAIVE = "feature_statistics, streamed", "capture, encode all, reduce"
TOKENS = 1_000_000
PART = 100_000
TOKENS_A_TEXT = 24.0
"""About how many tokens a text has; the number that ran is counted."""


def texts(n_tokens: int, seed: int = 0) -> Iterator[Prompt]:
    """Texts of the language, drawn one at a time, of about so many tokens in all."""
    rng = random.Random(f"{seed}/stream")
    for _ in itertools.repeat(None, round(n_tokens / TOKENS_A_TEXT)):
        drawn = language.draw(rng.choice((language.BASE, language.ALIGNED)), rng)
        yield Prompt(" ".join(part.text for part in drawn), template="raw")


def streamed(model: Any, sae: Autoencoder, n: int) -> Any:
    """What is measured."""
    return feature_statistics(sae, model, texts(n))


def naive(model: Any, sae: Autoencoder, n: int) -> dict[str, Any]:
    """Everything captured, everything encoded, then reduced."""
    acts = sk.capture(
        model, list(texts(n)), sites=[sae.site], positions="all", exclude_bos=True, progress=False
    )
    x = acts.values[:, 0]
    features, rebuilt = sae.reconstruct(x)
    return {
        "rows": len(x),
        "active": (features > 0).sum(0),
        "total": features.sum(0, dtype=torch.float64),
        "maximum": features.amax(0),
        "error": float((x.double() - rebuilt.double()).square().sum()),
    }


def same(model: Any, sae: Autoencoder, n: int) -> None:
    """Raise unless both routes give the same numbers."""
    one, other = streamed(model, sae, n), naive(model, sae, n)
    # Batches differ, so activations differ by rounding, and with them who is just on.
    if one.rows != other["rows"] or int((one.active - other["active"]).abs().max()) > 2:
        raise SystemExit(f"{one.rows} rows against {other['rows']}: the routes differ")
    torch.testing.assert_close(one.total, other["total"], rtol=1e-3, atol=1.0)
    if abs(one.error / other["error"] - 1) > 1e-4:
        raise SystemExit(f"errors differ: {one.error} against {other['error']}")


def alone(route: str, n: int, threads: int) -> dict[str, Any]:
    """One route on so many tokens in a process of its own: rows, seconds, growth of the peak."""
    command = [sys.executable, __file__, "--one", route, str(n), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(route: str, n: int) -> None:
    """Run a route and print what it took; the first, small run is not counted."""
    model = sk.load(MODEL)
    sae = sk.load_sae("sae:organism", model=model)
    run = {"streamed": streamed, "naive": naive}[route]
    run(model, sae, 20_000)
    before, _ = timing.hold_peak()
    began = time.perf_counter()
    found = run(model, sae, n)
    seconds = time.perf_counter() - began
    rows = found["rows"] if route == "naive" else found.rows
    grown = (timing.peak() - before) / 2**20
    print(json.dumps({"rows": rows, "seconds": seconds, "grown_mib": grown}))


def main() -> None:
    """Compare, time, weigh, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="few tokens; proves it runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--one", nargs=2, metavar=("ROUTE", "TOKENS"), help=argparse.SUPPRESS)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        one(given.one[0], int(given.one[1]))
        return
    before = timing.machine()
    many, part = (20_000, 5_000) if given.quick else (TOKENS, PART)
    model = sk.load(MODEL)
    sae = sk.load_sae("sae:organism", model=model)
    same(model, sae, part // 5)
    weighed = [
        {"arm": f"{name}, {n:,} tokens", **alone(route, n, given.threads)}
        for name, route, n in (
            (STREAMED, "streamed", part),
            (STREAMED, "streamed", many),
            (NAIVE, "naive", part // 2),
            (NAIVE, "naive", part),
        )
    ]
    for row in weighed:
        row["tokens_a_second"] = row["rows"] / row["seconds"]
        print(
            f"  {row['arm']:46s} {row['rows']:9,} rows {row['tokens_a_second']:9,.0f} tokens/s "
            f"peak +{row['grown_mib']:.1f} MiB",
            flush=True,
        )
    n = part // 4
    arms: dict[str, Callable[[], Any]] = {
        NAIVE: lambda: naive(model, sae, n),
        f"{NAIVE}, again (A/A)": lambda: naive(model, sae, n),
        STREAMED: lambda: streamed(model, sae, n),
    }
    times = timing.measure(arms, repeats=2 if given.quick else given.repeats, warmup=1)
    table = timing.rows(times, NAIVE)
    timing.show(f"{n:,} tokens, {sae.d_sae} features", table)
    short, long = weighed[0]["grown_mib"], weighed[1]["grown_mib"]
    before["load_average_after"] = list(os.getloadavg())
    name = "sae_statistics-quick" if given.quick else "sae_statistics"
    parts = {
        "memory": {
            "machine": before,
            "rows": weighed,
            "growth_mib": long - short,
            "verdict": "flat" if long <= short + 8 else "grows",
        },
        f"time_{n}": {"machine": before, "rows": table},
    }
    print(timing.update(name, parts))


if __name__ == "__main__":
    main()
