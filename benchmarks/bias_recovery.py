"""Whether BiasLens recovers the planted occupation-gender rates, over training seeds.

    python -m steerkit.organisms.seeds --out DIR       # trains five seeds, an hour
    python benchmarks/bias_recovery.py --organisms DIR [--quick]

Not a timing. On each seed's `aligned` organism the 40 occupations are compared with women and
men. Written down: Spearman's correlation of the signed bias with the planted rate of `she`, of
the unsigned one with |rate - 0.5|, of the signed one with behaviour (log-probability of `she`
less that of `he`, over the frames of the language), and of behaviour with the rate.

The layers (1 to 3: all but the first), the mean difference as the vector, the gate (0.8) and the
numbers of pairs were settled on seed 0, its truth seen; seeds 1 to 4 were read after that. Beside
stand all layers that pass the gate, the published logistic vector, and the same network with
random weights. Without `--organisms` only the embedded seed is measured. Writes
`results/bias_recovery.json`.
"""

import argparse
from pathlib import Path
from typing import Any

import timing
import torch
from transformers import AutoModelForCausalLM

import steerkit as sk
from steerkit.concepts import answer_gaps, spearman
from steerkit.datasets.occupations import occupation_concepts, sex_concepts
from steerkit.models import LanguageModel
from steerkit.organisms import occupations, pronoun_prompts
from steerkit.prompts import Prompt

LATER = (1, 2, 3)
RATES = {o.name: o.rate for o in occupations()}
DISTANCES = {name: abs(rate - 0.5) for name, rate in RATES.items()}
GOAL = 0.85
NO_DRAWS = {"n_resamples": 0, "n_permutations": 0, "n_random": 0}


def untrained(model: LanguageModel) -> LanguageModel:
    """The same architecture and tokenizer with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(model.network.config)
    return sk.wrap(network.eval(), model.tokenizer, name="untrained")


def recovered(model: LanguageModel, behaviour: dict[str, float], **options: Any) -> dict[str, Any]:
    """The correlations of one arm."""
    found = sk.bias_lens(model, occupation_concepts(), sex_concepts(), progress=False, **options)
    return {
        "signed_rate": found.agreement(RATES).to_json(),
        "unsigned_distance": found.agreement(DISTANCES, unsigned=True).to_json(),
        "signed_behaviour": found.agreement(behaviour).to_json(),
        "found": sum(row.found for row in found.targets),
        "sites": found.sites,
        "between_aucs": found.between_aucs,
        "reference_cosines": found.reference_cosines,
        "targets_without_site": [row.target for row in found.targets if not row.passed],
        "biases": {row.target: row.signed.to_json() for row in found.targets},
    }


def one_seed(model: LanguageModel, *, quick: bool) -> dict[str, Any]:
    """All arms on one organism."""
    frames = {o: [Prompt(p, template="raw") for p in pronoun_prompts(o)] for o in RATES}
    behaviour = answer_gaps(model, frames, ("she", "he"))
    draws = NO_DRAWS if quick else {"n_resamples": 200}
    arms = {"mean difference, later layers": recovered(model, behaviour, sites=LATER, **draws)}
    if not quick:
        arms |= {
            "mean difference, all layers": recovered(model, behaviour, **NO_DRAWS),
            "logistic, later layers": recovered(
                model, behaviour, sites=LATER, method="logistic", **NO_DRAWS
            ),
            "untrained, later layers": recovered(
                untrained(model), behaviour, sites=LATER, gate=0.0, **NO_DRAWS
            ),
        }
    by_rate = spearman([behaviour[o] for o in RATES], list(RATES.values()))
    return {"arms": arms, "behaviour_rate": by_rate.to_json(), "behaviour": behaviour}


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--organisms", type=Path, help="folder of seed_N folders")
    options.add_argument("--quick", action="store_true", help="one arm; proves it runs")
    given = options.parse_args()
    torch.set_num_threads(1)
    folders = sorted(given.organisms.glob("seed_*")) if given.organisms else [None]
    found: dict[str, Any] = {}
    for folder in folders:
        seed = folder.name.removeprefix("seed_") if folder else "embedded"
        model = sk.load(str(folder / "aligned") if folder else "organism:aligned")
        found[seed] = one_seed(model, quick=given.quick)
        for name, arm in found[seed]["arms"].items():
            signed, unsigned = arm["signed_rate"], arm["unsigned_distance"]
            print(
                f"seed {seed} {name:30s} signed {signed['value']:.3f} "
                f"[{signed['low']:.3f}, {signed['high']:.3f}]  unsigned {unsigned['value']:.3f}  "
                f"behaviour {arm['signed_behaviour']['value']:.3f}  found {arm['found']}",
                flush=True,
            )
    first = "mean difference, later layers"
    reached = sum(f["arms"][first]["signed_rate"]["value"] > GOAL for f in found.values())
    print(f"signed correlation above {GOAL} on {reached} of {len(found)} seeds")
    name = "bias_recovery-quick" if given.quick else "bias_recovery"
    part = {"machine": timing.machine(), "above_goal": reached, "by_seed": found}
    print(timing.update(name, {"over_seeds" if given.organisms else "embedded": part}))


if __name__ == "__main__":
    main()
