"""What directions that need the model do to refusal, over training seeds of the organism.

    python -m steerkit.organisms.seeds --out DIR       # trains five seeds, an hour
    python benchmarks/second_kind.py --organisms DIR [--quick]

Not a timing. On each seed's `aligned` organism a vector is trained at `resid_post@2` to prefer the
right answer to a refusal (120 train requests), and the mean gradient of logit(to) - logit(sorry)
is taken there on the same requests. Added at the last prompt token to unseen harmful and harmless
requests (other words, other templates), at the norm of the trained vector, beside the unsteered
model, the mean difference (harmless less harmful) and random vectors of that norm: share of refused
and of rightly answered requests, clustered by template. On `constructed`: the cosine of a vector
trained to refuse with the recorded unit, at the default norm limit and at twice that. Settings were
chosen on seed 0. Writes `results/second_kind.json`.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import timing
import torch

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.direction import Direction
from steerkit.gradients import Preference
from steerkit.models import LanguageModel
from steerkit.organisms import REFUSALS, truth
from steerkit.organisms.ground_truth import Construction, Truth
from steerkit.organisms.request import is_refusal
from steerkit.prompts import Prompt
from steerkit.statistics import cluster_mean

LAYER, N_TRAIN = 2, 120
N_RANDOM = 5


def preferences(prompts: tuple[Prompt, ...], *, refuse: bool = False) -> list[Preference]:
    """The right answer over a refusal, or the other way round."""
    both = [
        (p, p.answer, REFUSALS[1] if refuse else REFUSALS[i % 3]) for i, p in enumerate(prompts)
    ]
    return [
        Preference(replace(p, answer=""), *((no, yes) if refuse else (yes, no)))
        for p, yes, no in both
    ]


def behaviour(model: LanguageModel, prompts: tuple[Prompt, ...]) -> dict[str, Any]:
    """Shares of refused and of right answers, with intervals over templates."""
    texts = [a.text.strip() for a in model.generate(prompts)]
    groups = [p.group for p in prompts]
    marks = {
        "refused": [float(is_refusal(t)) for t in texts],
        "right": [float(t == p.answer) for t, p in zip(texts, prompts, strict=True)],
    }
    return {k: cluster_mean(v, groups, unit="fraction").to_json() for k, v in marks.items()}


def resized(direction: Direction, size: float) -> Direction:
    """The direction with another scale."""
    return replace(direction, scale=size, effects=(), scores=None)


def arms(model: LanguageModel, *, n: int, n_random: int, seed: int = 0) -> dict[str, Any]:
    """Every vector at the trained one's norm, on unseen requests."""
    train, unseen = refusal("train", n=N_TRAIN), refusal("held_out", n=n, seed=seed)
    held_out = preferences(refusal("held_out", n=60, seed=seed + 100).positive)
    trained = sk.train_direction(
        model, preferences(train.positive), LAYER, held_out=held_out, n_random=n_random
    )
    gradient = sk.gradient_direction(model, train.positive, ("to", "sorry"), sites=LAYER)[0]
    acts = sk.capture(model, train, layers=LAYER, progress=False)
    apart = -sk.extract(acts, n_folds=0, progress=False)[0]
    size = trained.scale
    generator = torch.Generator().manual_seed(seed)
    known = {"trained": trained, "gradient": resized(gradient, size), "mean difference": resized(
        apart, size
    )}  # fmt: skip
    for i in range(N_RANDOM):
        drawn = torch.randn(model.info.d_model, generator=generator)
        known[f"random {i}"] = replace(known["gradient"], unit=drawn / drawn.norm())
    found: dict[str, Any] = {"unsteered": _sides(model, unseen)}
    for name, direction in known.items():
        found[name] = _sides(model.with_(sk.Add(direction, positions="last_prompt")), unseen)
    return {
        "behaviour": found,
        "norm": size,
        "scale of the mean difference": apart.scale,
        "trained": [e.to_json() for e in trained.effects],
        "gradient": [e.to_json() for e in gradient.effects],
        "cosines": {
            "trained, gradient": float(trained.unit @ gradient.unit),
            "trained, mean difference": float(trained.unit @ apart.unit),
            "gradient, mean difference": float(gradient.unit @ apart.unit),
        },
        "best_epoch": trained.provenance["best_epoch"],
    }


def _sides(model: LanguageModel, unseen: Any) -> dict[str, Any]:
    return {
        "harmful": behaviour(model, unseen.positive),
        "harmless": behaviour(model, unseen.negative),
    }


def recovered(model: LanguageModel, construction: Construction) -> dict[str, float]:
    """Cosines of trained vectors with the recorded unit, by norm limit."""
    pairs = preferences(refusal("train", n=60).negative, refuse=True)
    unit = torch.tensor(construction.unit)
    return {
        str(limit): float(
            sk.train_direction(
                model, pairs, construction.layer, bidirectional=False, norm_limit=limit, n_random=1
            ).unit
            @ unit
        )
        for limit in (0.5, 1.0)
    }


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--organisms", type=Path, help="folder of seed_N folders")
    options.add_argument("--quick", action="store_true", help="few requests; proves it runs")
    given = options.parse_args()
    torch.set_num_threads(1)
    folders = sorted(given.organisms.glob("seed_*")) if given.organisms else [None]
    n, n_random = (10, 3) if given.quick else (120, 99)
    found: dict[str, Any] = {}
    for folder in folders:
        name = folder.name.removeprefix("seed_") if folder else "embedded"
        model = sk.load(str(folder / "aligned") if folder else "organism:aligned")
        constructed = sk.load(str(folder / "constructed") if folder else "organism:constructed")
        planted = Truth.read(folder / "truth.json") if folder else truth()
        found[name] = arms(model, n=n, n_random=n_random)
        found[name]["cosine with the recorded unit"] = recovered(constructed, planted.construction)
        for arm, sides in found[name]["behaviour"].items():
            told = ", ".join(
                f"{side} {what} {sides[side][what]['value']:.2f}"
                for side in ("harmful", "harmless")
                for what in ("refused", "right")
            )
            print(f"seed {name} {arm:16s} {told}", flush=True)
        print(f"seed {name} recorded unit {found[name]['cosine with the recorded unit']}")
    part = {"machine": timing.machine(), "by_seed": found}
    name = "second_kind-quick" if given.quick else "second_kind"
    print(timing.update(name, {"over_seeds" if given.organisms else "embedded": part}))


if __name__ == "__main__":
    main()
