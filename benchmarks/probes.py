"""Many probes at once, as columns of one product, against scikit-learn one after another.

    python benchmarks/probes.py [--quick] [--threads 1] [--repeats 11]

512 rows of width 512 and 2,048 with a decaying spectrum and two offsets of massive activations,
in float32 as captures are. Two problems: 25 fits (5 penalties x 5 folds) of one concept, and one
fit of each of 32 concepts. The base centres the rows and calls scikit-learn's LogisticRegression
for each fit, at its own tolerance; ours is `column_probes.fit_rows`, its centring, axes and way
back included. Before anything is timed every objective of ours is checked, in float64, to be no
worse than scikit-learn's by more than a millionth. Writes `results/probes.json`.
"""

import argparse
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import timing
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from steerkit.extraction import column_probes
from steerkit.statistics import grouped_folds

BASE = "scikit-learn, centred"
OURS = "columns of one product"
PENALTIES = tuple(10.0**k for k in range(-4, 1))
WORSE = 1e-6
"""The relative excess of an objective that still counts as equal."""


class Problem(NamedTuple):
    """Fits that share their rows: labels, inverse penalty and row weights of each column."""

    name: str
    goal: float
    x: Tensor
    labels: Tensor
    c: Tensor
    weights: Tensor

    def excess(self, w: Tensor, b: Tensor, base: tuple[Tensor, Tensor]) -> Tensor:
        """How much worse each objective is than the base's, relative to it."""
        ours, theirs = self.objective(w, b), self.objective(*base)
        return (ours - theirs) / theirs

    def objective(self, w: Tensor, b: Tensor) -> Tensor:
        """Of each column, in float64."""
        w, b = w.double(), b.double()
        sign = 2 * self.labels.double() - 1
        losses = torch.nn.functional.softplus(-sign * (self.x.double() @ w + b))
        return (w**2).sum(0) / 2 + self.c * (self.weights * losses).sum(0)

    def ours(self) -> tuple[Tensor, Tensor]:
        """All columns at once."""
        whole = bool((self.weights == 1).all())
        weights = None if whole else self.weights.to(self.x.dtype)
        return column_probes.fit_rows(self.x, self.labels, self.c, weights=weights)

    def theirs(self) -> tuple[Tensor, Tensor]:
        """One column after another."""
        mean = self.x.mean(0)
        rows = (self.x - mean).numpy()
        w, b = [], []
        for k in range(self.labels.shape[1]):
            keep = self.weights[:, k].numpy() > 0
            probe = LogisticRegression(C=float(self.c[k]), max_iter=1000)
            probe.fit(rows[keep], self.labels[:, k].numpy()[keep])
            w.append(torch.from_numpy(probe.coef_[0]))
            b.append(float(probe.intercept_[0]))
        found = torch.stack(w, 1)
        return found, torch.tensor(b, dtype=torch.float64) - mean.double() @ found.double()


def problems(n: int, d: int, concepts: int) -> list[Problem]:
    """The same rows for both problems; labels are noisy linear functions of them."""
    draw = torch.Generator().manual_seed(0)
    spread = torch.arange(1, d + 1) ** -0.5
    x = torch.randn(n, d, generator=draw) * spread * (d / (spread**2).sum()) ** 0.5
    x = x @ torch.linalg.qr(torch.randn(d, d, generator=draw)).Q
    reads = torch.randn(d, concepts, generator=draw) / d**0.5
    labels = (x @ reads + 0.5 * torch.randn(n, concepts, generator=draw) > 0).long()
    x[:, :2] += 50
    folds = grouped_folds(labels[:, 0].numpy(), [f"prompt{i}" for i in range(n)])
    weights = torch.ones(n, len(folds) * len(PENALTIES), dtype=torch.float64)
    for number, (_, out) in enumerate(folds):
        weights[out, number :: len(folds)] = 0
    c = torch.tensor(PENALTIES, dtype=torch.float64).repeat_interleave(len(folds))
    every = labels[:, :1].repeat(1, len(c))
    middle = torch.full((concepts,), 1e-2, dtype=torch.float64)
    return [
        Problem(f"{len(c)} fits", 1 / 3, x, every, c, weights),
        Problem(
            f"{concepts} concepts",
            1 / 5,
            x,
            labels,
            middle,
            torch.ones(n, concepts, dtype=torch.float64),
        ),
    ]


def arms(problem: Problem) -> tuple[dict[str, Callable[[], Any]], float]:
    """Both ways of one problem, and the worst relative excess of our objectives."""
    excess = problem.excess(*problem.ours(), problem.theirs())
    worst = float(excess.max())
    if not worst <= WORSE:
        raise SystemExit(f"{problem.name}: an objective is worse by {worst:.1e} of it")
    return {BASE: problem.theirs, f"{BASE}, again (A/A)": problem.theirs, OURS: problem.ours}, worst


def main() -> None:
    """Check, time, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny and few; proves it runs")
    options.add_argument("--threads", type=int, default=1, help="of both sides")
    options.add_argument("--repeats", type=int, default=11)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    before = timing.machine()
    before["versions"]["scikit-learn"] = importlib.metadata.version("scikit-learn")
    parts = {}
    with threadpool_limits(limits=given.threads), torch.no_grad():
        for d in (32, 128) if given.quick else (512, 2048):
            n, concepts = (64, 4) if given.quick else (512, 32)
            for problem in problems(n, d, concepts):
                both, worst = arms(problem)
                times = timing.measure(both, repeats=2 if given.quick else given.repeats, warmup=1)
                note = f"worst relative excess of an objective: {worst:.1e}"
                table = timing.rows(times, BASE, goals={OURS: problem.goal}, notes={OURS: note})
                timing.show(f"{problem.name}, n {n}, d {d}; {note}", table)
                name = f"{problem.name.replace(' ', '_')}_n{n}_d{d}"
                parts[name] = {"machine": before, "rows": table}
    before["load_average_after"] = list(os.getloadavg())
    print(timing.update("probes-quick" if given.quick else "probes", parts))


if __name__ == "__main__":
    main()
