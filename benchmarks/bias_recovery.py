"""Whether BiasLens recovers the planted occupation-gender rates, over training seeds.

    python -m steerkit.organisms.seeds --out DIR       # trains five seeds, an hour
    python benchmarks/bias_recovery.py --organisms DIR [--quick | --sae]

Not a timing. On each seed's `aligned` organism the 40 occupations are compared with women and
men. Written down: Spearman's correlation of the signed bias with the planted rate of `she`, of
the unsigned one with |rate - 0.5|, of the signed one with behaviour (log-probability of `she`
less that of `he`, over the frames of the language), and of behaviour with the rate.

The layers (1 to 3: all but the first), the mean difference as the vector, the gate (0.8) and the
numbers of pairs were settled on seed 0, its truth seen; seeds 1 to 4 were read after that. Beside
stand all layers that pass the gate, the published logistic vector, and the same network with
random weights. Without `--organisms` only the embedded seed is measured. Writes
`results/bias_recovery.json`.

`--sae` measures codes of sparse autoencoders instead, as published, beside plain CAVs: on each seed
one is trained at `resid_post@1` (the shipped recipe on fewer texts; the site of the shipped one).
The mean difference as the probe, p0 = 0.95 and the 64 neutral sentences (people of other
occupations) were settled on seed 0 with the shipped autoencoder; the logistic probe stands beside.
"""

import argparse
from pathlib import Path
from typing import Any

import timing
import torch
from transformers import AutoModelForCausalLM

import steerkit as sk
from steerkit.concepts import SaeCodes, answer_gaps, spearman
from steerkit.datasets.occupations import occupation_concepts, sex_concepts
from steerkit.models import LanguageModel
from steerkit.organisms import occupations, pronoun_prompts
from steerkit.prompts import Prompt
from steerkit.sae import evaluate_sae, train_sae
from steerkit.sae.shipped import D_SAE, LAYER, K, corpus

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


def recovered_from_codes(
    model: LanguageModel, behaviour: dict[str, float], autoencoder: Any, **options: Any
) -> dict[str, Any]:
    """The correlations of one representation by codes, and of plain CAVs at the same site."""
    references = sex_concepts()
    neutral = [p for contrast in references for p in contrast.negative][::12][:64]
    method = options.pop("method", "mean_difference")
    found = sk.bias_lens(
        model, occupation_concepts(), references, progress=False, method=method,
        represent=SaeCodes.of(model, autoencoder, neutral, **options), **NO_DRAWS,
    )  # fmt: skip
    assert found.ablation is not None
    return {
        "signed_rate": found.agreement(RATES).to_json(),
        "unsigned_distance": found.agreement(DISTANCES, unsigned=True).to_json(),
        "signed_behaviour": found.agreement(behaviour).to_json(),
        "plain_signed_rate": found.ablation.agreement(RATES).to_json(),
        "plain_signed_behaviour": found.ablation.agreement(behaviour).to_json(),
        "active_latents": [row.active[0] for row in found.targets],
        "exactly_zero_cosines": sum(0.0 in row.cosines[0] for row in found.targets),
        "reference_active": found.reference_active,
        "sites": found.sites,
    }


def one_seed_with_codes(model: LanguageModel, *, quick: bool) -> dict[str, Any]:
    """An autoencoder of this seed's own, and what its codes recover."""
    frames = {o: [Prompt(p, template="raw") for p in pronoun_prompts(o)] for o in RATES}
    behaviour = answer_gaps(model, frames, ("she", "he"))
    trained = train_sae(
        model, corpus(500 if quick else 6_000, seed=0), site=LAYER, d_sae=D_SAE, k=K,
        n_tokens=20_000 if quick else 400_000, progress=False,
    )  # fmt: skip
    arms = {"mean difference, perturbed": recovered_from_codes(model, behaviour, trained)}
    if not quick:
        arms |= {
            "mean difference, difference of codes": recovered_from_codes(
                model, behaviour, trained, variant="difference"
            ),
            "logistic, perturbed": recovered_from_codes(
                model, behaviour, trained, method="logistic"
            ),
        }
    quality = evaluate_sae(trained, model, corpus(300, seed=1))
    return {"arms": arms, "quality": quality.to_json(), "behaviour": behaviour}


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--organisms", type=Path, help="folder of seed_N folders")
    options.add_argument("--quick", action="store_true", help="one arm; proves it runs")
    options.add_argument("--sae", action="store_true", help="codes of autoencoders, not CAVs")
    given = options.parse_args()
    torch.set_num_threads(1)
    folders = sorted(given.organisms.glob("seed_*")) if given.organisms else [None]
    found: dict[str, Any] = {}
    for folder in folders:
        seed = folder.name.removeprefix("seed_") if folder else "embedded"
        model = sk.load(str(folder / "aligned") if folder else "organism:aligned")
        measure = one_seed_with_codes if given.sae else one_seed
        found[seed] = measure(model, quick=given.quick)
        for name, arm in found[seed]["arms"].items():
            signed, unsigned = arm["signed_rate"], arm["unsigned_distance"]
            print(
                f"seed {seed} {name:30s} signed {signed['value']:.3f} "
                f"[{signed['low']:.3f}, {signed['high']:.3f}]  unsigned {unsigned['value']:.3f}  "
                f"behaviour {arm['signed_behaviour']['value']:.3f}  "
                + (
                    f"plain {arm['plain_signed_rate']['value']:.3f}"
                    if given.sae
                    else f"found {arm['found']}"
                ),
                flush=True,
            )
    first = "mean difference, perturbed" if given.sae else "mean difference, later layers"
    reached = sum(f["arms"][first]["signed_rate"]["value"] > GOAL for f in found.values())
    print(f"signed correlation above {GOAL} on {reached} of {len(found)} seeds")
    name = "bias_recovery-quick" if given.quick else "bias_recovery"
    part = {"machine": timing.machine(), "above_goal": reached, "by_seed": found}
    place = "over_seeds" if given.organisms else "embedded"
    print(timing.update(name, {f"sae_{place}" if given.sae else place: part}))


if __name__ == "__main__":
    main()
