"""How far criteria without generation mislead: regret against exhaustive search, over seeds.

    python -m steerkit.organisms.seeds --out DIR       # trains five seeds, an hour
    python benchmarks/criteria_regret.py --organisms DIR [--quick]

Not a timing. On each seed's `aligned` organism every site is steered in eight ways (ablation
towards zero or the harmless mean, additions of half and of one class gap, everywhere or at the
last prompt token) on unseen prompts: words and templates that nothing else uses. The score is the
mean of the shares of harmful and of harmless requests that are rightly answered. The regret of
a criterion, in points, is the score at the best site less that at the site it names. The causal
sweep chooses among all sites and ways on prompts of its own, under a guard of 2 points of right
harmless answers; its regret is against the best of all. On `constructed`, whose refusal is read
and written at a recorded layer, the site that each criterion names is compared with that layer.
Without `--organisms` only the embedded seed is measured. Writes `results/criteria_regret.json`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.errors import MethodError
from steerkit.organisms import truth
from steerkit.prompts import Contrast
from steerkit.searches import Unanswered, compare_criteria, measure_records, select_direction
from steerkit.searches.candidates import Candidate, every_candidate
from steerkit.searches.measure import measure
from steerkit.site import Site

TOKENS = 14
RULE, SWEEP = "selection rule (Arditi et al.)", "causal sweep"
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ablate", {"references": ("zero", "negative_mean")}),
    ("add", {"strengths": (-0.5, -1.0)}),
)


def candidates(directions: Sequence[Any]) -> list[Candidate]:
    """Every site in every way."""
    return [
        c
        for operator, settings in WAYS
        for c in every_candidate(
            directions, operator, aim="reduce", positions=("all", "last_prompt"), **settings
        )
    ]


def way(c: Candidate) -> str:
    """A candidate without its site."""
    to = f" to {c.reference}" if c.reference else f" x{c.strength:g}"
    return f"{c.operator}{to}, {c.positions}"


def fixed(n_layers: int) -> dict[str, Site]:
    """Rules of thumb that look at nothing."""
    return {
        "layer 0.4 L": Site(int(0.4 * n_layers)),
        "middle layer": Site(n_layers // 2),
        "last layer": Site(n_layers - 1),
    }


def rule(model: Any, directions: Sequence[Any], asked: Contrast) -> tuple[Site | None, str]:
    """What the refusal-direction paper's rule chooses; where nothing survives it, None and why."""
    # Its layers are inputs of blocks, so the last block's output is no candidate.
    inner = [d for d in directions if d.site.layer < model.info.n_layers - 1]
    records = measure_records(model, inner, asked.positive, asked.negative)
    try:
        chosen = select_direction(records, n_layers=model.info.n_layers).chosen
    except MethodError as error:
        return None, str(error)
    return Site(chosen.layer - 1), ""


def unseen(n: int, used: Sequence[Contrast]) -> Contrast:
    """Held-out requests that are in none of these."""
    seen = {p.text for contrast in used for p in contrast.prompts}
    drawn = refusal("held_out", n + 200, seed=77)
    sides = (
        [{"text": p.text, "answer": p.answer, "group": p.group} for p in side if p.text not in seen]
        for side in (drawn.positive, drawn.negative)
    )
    positive, negative = (side[:n] for side in sides)
    return Contrast.of(positive, negative, name="report")


def aligned(model: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Regrets on one trained organism."""
    train, chooses = refusal("train", 80, seed=0), refusal("held_out", 48, seed=5)
    report = unseen(40 if given.quick else 500, (train, chooses))
    acts = sk.capture(model, train, progress=False)
    directions = sk.extract(acts, "mean_difference", n_folds=0, progress=False)
    tried = candidates(directions)
    interventions = [c.intervention for c in tried]

    def right(prompts: Any) -> np.ndarray:
        return 1 - measure(model, interventions, Unanswered(TOKENS), prompts).values.mean(1)

    score = (right(report.positive) + right(report.negative)) / 2
    table = compare_criteria(acts, n_resamples=0, n_permutations=0)
    named: dict[str, Site | None] = {c: table.best(c).site for c in table.labels}
    named |= fixed(model.info.n_layers)
    named[RULE], nothing = rule(model, directions, chooses)
    by_way: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(map(way, tried)):
        here = {c.direction.site: s for c, s in zip(tried, score, strict=True) if way(c) == name}
        best = max(here.values())
        by_way[name] = {
            criterion: None if site is None else 100 * (best - here[site])
            for criterion, site in named.items()
        }
    # The sweep: right harmful answers, under a guard on right harmless ones, on its own prompts.
    plain = 1 - Unanswered(TOKENS).score(model, chooses.negative).values.mean()
    gain, kept = right(chooses.positive), right(chooses.negative)
    allowed = np.where(plain - kept <= 0.02, gain, -1.0)
    return {
        "named": {k: None if s is None else str(s) for k, s in named.items()},
        "rule_chose_nothing": nothing,
        "regret_points": by_way,
        "sweep": {
            "chosen": str(tried[int(allowed.argmax())]),
            "regret_points": 100 * float(score.max() - score[int(allowed.argmax())]),
            "score": float(score[int(allowed.argmax())]),
        },
        "scores": {str(c): float(s) for c, s in zip(tried, score, strict=True)},
        "report_prompts": [len(report.positive), len(report.negative)],
    }


def constructed(model: Any, layer: int, unit: torch.Tensor) -> dict[str, Any]:
    """Which sites criteria name where the layer is recorded, and where the search finds it.

    The search has the recorded vector at every layer; the cosine is that of the mean
    difference, which was fitted without knowing it, at the recorded layer.
    """
    acts = sk.capture(model, refusal("train", 80, seed=0), progress=False)
    table = compare_criteria(acts, n_resamples=0, n_permutations=0)
    fitted = sk.extract(acts, "mean_difference", n_folds=0, progress=False)
    chooses = refusal("held_out", 48, seed=5)
    along = acts.values.double() @ unit.double()
    positive = acts.row_labels == 1
    vectors = []
    for d in fitted:
        here = along[:, acts.sites.index(d.site)]
        means = float(here[positive].mean()), float(here[~positive].mean())
        vectors.append(
            replace(d, unit=unit, method="recorded", positive_mean=means[0], negative_mean=means[1])
        )
    sweep = sk.search(model, vectors, chooses, n_random=0, guard_max=0.5, progress=False)
    return {
        "recorded": str(Site(layer)),
        "named": {c: str(table.best(c).site) for c in table.labels},
        "search_finds": str(sweep.best.site),
        "effect_there": sweep.best.effect.to_json(),
        "cosine_of_mean_difference": float(fitted[layer].unit @ unit),
    }


def summary(seeds: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a criterion: regret over seeds and ways, its worst way, hits on `constructed`."""
    out = []
    first = next(iter(seeds.values()))["aligned"]
    for name in first["named"]:
        regrets = {
            w: [seed["aligned"]["regret_points"][w][name] for seed in seeds.values()]
            for w in first["regret_points"]
        }
        means = {w: float(np.mean(r)) for w, r in regrets.items() if None not in r}
        known = [x for r in regrets.values() for x in r if x is not None]
        hits = [
            s["constructed"]["named"][name] == s["constructed"]["recorded"]
            for s in seeds.values()
            if name in s["constructed"]["named"]
        ]
        out.append(
            {
                "criterion": name,
                "mean": float(np.mean(known)) if known else None,
                "worst": max(known, default=None),
                "misleads_most": max(means, key=lambda w: means[w], default=""),
                "there": max(means.values(), default=None),
                "no_choice": sum(x is None for x in regrets[next(iter(regrets))]),
                "finds_constructed_layer": [sum(hits), len(hits)],
            }
        )
    right = [
        s["constructed"]["search_finds"] == s["constructed"]["recorded"] for s in seeds.values()
    ]
    sweeps = [seed["aligned"]["sweep"]["regret_points"] for seed in seeds.values()]
    out.append(
        {
            "criterion": SWEEP,
            "mean": float(np.mean(sweeps)),
            "worst": max(sweeps),
            "goal_at_most": 2.0,
            "verdict": "met" if max(sweeps) <= 2.0 else "not met",
            "finds_constructed_layer": [sum(right), len(right)],
        }
    )
    return sorted(out, key=lambda row: (row["mean"] is None, row["mean"]))


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--organisms", type=Path, help="folder of seed_N folders")
    options.add_argument("--quick", action="store_true", help="few prompts; proves it runs")
    given = options.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    folders = sorted(given.organisms.glob("seed_*")) if given.organisms else [None]
    for folder in folders:
        seed = folder.name.removeprefix("seed_") if folder else "embedded"
        names = {
            kind: str(folder / kind) if folder else f"organism:{kind}"
            for kind in ("aligned", "constructed")
        }
        if folder:
            planted = json.loads((folder / "truth.json").read_text())["construction"]
            layer, unit = planted["layer"], torch.tensor(planted["unit"])
        else:
            layer, unit = truth().construction.layer, torch.tensor(truth().construction.unit)
        found[seed] = {
            "aligned": aligned(sk.load(names["aligned"]), given),
            "constructed": constructed(sk.load(names["constructed"]), layer, unit),
        }
        print(f"seed {seed}: sweep {found[seed]['aligned']['sweep']}", flush=True)
    table = summary(found)
    for row in table:
        mean, worst = (
            " none" if row[key] is None else f"{row[key]:5.1f}" for key in ("mean", "worst")
        )
        print(
            f"{row['criterion']:34s} regret {mean} points, worst {worst}  "
            f"{row.get('misleads_most', '')}  {row.get('finds_constructed_layer', '')}"
        )
    name = "criteria_regret-quick" if given.quick else "criteria_regret"
    part = {"machine": timing.machine(), "rows": table, "by_seed": found}
    print(timing.update(name, {"over_seeds" if given.organisms else "embedded": part}))


if __name__ == "__main__":
    main()
