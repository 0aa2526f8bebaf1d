"""All extraction methods over all layers of a wide capture that is mapped from disk.

    python benchmarks/extraction_scale.py [--quick] [--threads 2] [--permutations 19] [--sites 32]

2,000 prompts in 1,000 pairs, 32 sites, width 4,096 (1 GB), written to a temporary folder and
removed after: rows of decaying spectrum with two massive axes and a planted shift. `extract`
runs once with every method, 5 folds, and the nulls as given. Seconds of a method are those of
its fits in all folds and on all rows; what methods share (Gram matrix and principal axes, once
a fold) is its own row, and the rest is scores, random directions, text and reading. The peak is
the largest resident size beyond what was held before, mapped pages of the file included.
Writes `results/extraction_scale.json`.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timing
import torch
from torch import Tensor

from steerkit.activations import KIND, Activations
from steerkit.extraction import METHODS, Training, extract
from steerkit.extraction.methods import fit_columns
from steerkit.files import tensors_on_disk
from steerkit.prompts import Prompt
from steerkit.protocols import Extractor, ModelInfo
from steerkit.site import Site

GOAL_MINUTES = 10
SHARED = "shared: Gram matrix and axes"


class Timed:
    """A method that adds up its seconds, and apart from them those of what all share."""

    def __init__(self, name: str, method: Extractor, seconds: Counter[str]) -> None:
        self.name, self.method, self.seconds = name, method, seconds
        self.supervised, self.estimates = method.supervised, method.estimates

    def __call__(self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int) -> Tensor:
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(self, rows: Training, labels: Tensor, *, seed: int) -> Tensor:
        """All labellings, by the method's own fast path."""
        began = time.perf_counter()
        _ = rows.coordinates
        between = time.perf_counter()
        found = fit_columns(self.method, rows, labels, seed=seed)
        self.seconds[SHARED] += between - began
        self.seconds[self.name] += time.perf_counter() - between
        return found


def write(path: Path, n: int, sites: int, d: int) -> Activations:
    """A capture as `capture` leaves it on disk, a site at a time."""
    draw = torch.Generator().manual_seed(0)
    words = [f"{a} {b}" for a in ("red", "blue", "green", "old") for b in ("cat", "dog", "tree")]
    info = ModelInfo(
        "synthetic", "llama", sites, d, 50, 64, ("resid_post",), "float32", "cpu", "0" * 64
    )
    frame = Activations(
        values=torch.empty(n, sites, d, device="meta"),
        sites=tuple(Site(layer) for layer in range(sites)),
        prompts=tuple(Prompt(f"{words[i % len(words)]} {i % (n // 2)}") for i in range(n)),
        labels=(1,) * (n // 2) + (0,) * (n // 2),
        groups=tuple(f"pair{i % (n // 2)}" for i in range(n)),
        pooling="last",
        info=info,
        checked=True,
    )
    tensors, header = frame.to_file()
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    spread = torch.arange(1, d + 1) ** -0.3
    with tensors_on_disk(path, KIND, layout, header) as mapped:
        for name, tensor in tensors.items():
            if name != "values":
                mapped[name].copy_(tensor)
        for site in range(sites):
            x = torch.randn(n, d, generator=draw) * spread
            x[n // 2 :] += x[: n // 2] / 2
            x[: n // 2] += torch.randn(d, generator=draw) * spread * site / (4 * sites)
            x[:, :2] = 30 * x[:, :2] + 100
            mapped["values"][:, site] = x
    return Activations.load(path)


def main() -> None:
    """Write, extract, report, remove."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny and few; proves it runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--permutations", type=int, default=19)
    options.add_argument("--sites", type=int, default=32)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    n, sites, d = (60, 2, 96) if given.quick else (2000, given.sites, 4096)
    before = timing.machine()
    seconds: Counter[str] = Counter()
    names = METHODS.names()
    for name in names:
        METHODS.register(f"timed {name}")(Timed(name, METHODS[name], seconds))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        acts = write(Path(folder) / "activations.safetensors", n, sites, d)
        held, _ = timing.hold_peak()
        began = time.perf_counter()
        found = extract(
            acts,
            [f"timed {name}" for name in names],
            n_permutations=given.permutations,
            n_random=given.permutations,
        )
        whole = time.perf_counter() - began
        peak = timing.peak() - held
        del acts
    rest = whole - sum(seconds.values())
    rows: list[dict[str, Any]] = [
        {"arm": name, "seconds": seconds[name], "note": f"{seconds[name]:8.1f} s"}
        for name in (SHARED, *names)
    ]
    rows.append({"arm": "the rest", "seconds": rest, "note": f"{rest:8.1f} s"})
    head = {
        "prompts": n,
        "sites": sites,
        "d_model": d,
        "methods": list(names),
        "n_folds": 5,
        "n_permutations": given.permutations,
        "n_random": given.permutations,
        "seconds": whole,
        "peak_mib": peak / 2**20,
        "file_mib": n * sites * d * 4 / 2**20,
        "goal_at_most_seconds": GOAL_MINUTES * 60,
        "verdict": "met" if whole <= GOAL_MINUTES * 60 else "not met",
        "directions": len(found),
    }
    timing.show(
        f"{len(names)} methods, {sites} sites of width {d}, {n} prompts, "
        f"{given.permutations} permutations: {whole:.1f} s, peak {head['peak_mib']:.0f} MiB",
        rows,
    )
    before["load_average_after"] = list(os.getloadavg())
    name = f"n{n}_d{d}_sites{sites}"
    result = {name: {"machine": before, "head": head, "rows": rows}}
    print(timing.update("extraction_scale" + ("-quick" if given.quick else ""), result))


if __name__ == "__main__":
    main()
