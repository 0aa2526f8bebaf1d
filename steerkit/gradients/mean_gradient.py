"""The gradient direction: where to move a stream so that an output rises fastest, on average.

    u_l = E[grad_l m] / |E[grad_l m]|,    grad_l m = sum over the chosen tokens of dm / dh_l

To first order, adding c*u at those tokens of a prompt moves the metric m by c times the prompt's
own slope along u. It is local: where an output has saturated the slope is small and a large step
does more than it says; steer, or patch, to learn what.
"""

from collections.abc import Iterable, Sequence
from importlib.metadata import version

import numpy as np
import torch

from steerkit.batch import Positions
from steerkit.concepts.gradients import gradients
from steerkit.concepts.targets import Quantity, Target, prompt_groups, target_metric
from steerkit.direction import Direction, Directions
from steerkit.effect import HeldOutEffect
from steerkit.errors import DirectionError, MethodError
from steerkit.gradients.crossfit import CrossFit, folds_of
from steerkit.gradients.methods import METHODS, ModelMethod
from steerkit.gradients.states import mean_states
from steerkit.prompts import Prompt, sketch
from steerkit.protocols import Model
from steerkit.site import Site
from steerkit.statistics import Floats


def gradient_direction(
    model: Model,
    prompts: Sequence[Prompt | str],
    target: Target,
    *,
    sites: Iterable[Site | str | int] | Site | str | int | None = None,
    positions: Positions | str | int = "last_prompt",
    quantity: Quantity = "log_prob",
    groups: Sequence[str] | None = None,
    concept: str | None = None,
    n_folds: int = 5,
    n_permutations: int = 999,
    n_random: int = 999,
    n_resamples: int = 1000,
    token_budget: int = 4096,
    seed: int = 0,
) -> Directions:
    """The mean gradient of an output by the stream, normalised: one direction a site.

    All sites share one forward and one backward pass of each batch, and one forward pass more
    for the states. Each direction is fitted on all prompts; its `effects` hold what the mean
    gradient of other groups of prompts does to a prompt, to first order, beside random
    directions and gradients whose targets were turned round in random groups. `polarity` is
    the sign of that effect.

    Adding the direction raises the target. Its `scale` is two standard deviations of the
    prompts' projections (the gap between the means of two tight, equally large classes), with
    `positive_mean` and `negative_mean` one above and one below their mean: strength 1 is a
    step that prompts themselves span.

    Args:
        model: plain or steered (derivatives are taken after its interventions).
        prompts: whose output is asked about; their own answers are not used.
        target: an answer, of whose first token `quantity` is taken; two answers, for the
            difference of their logits; or a function `(logits [row d_vocab], prompt of each
            row) -> [row]`, differentiable.
        sites: `resid_post` of every layer by default.
        positions: tokens at which the vector is added in thought.
        quantity: `log_prob` or `logit` of a single answer.
        groups: what prompts belong together; by default their own `group`, else each alone.
        concept: what the direction stands for; the target's name by default.
        n_folds: of groups, for the held-out effect; 0 leaves it out.
        n_permutations: exchanges of targets.
        n_random: random directions of each kind.
        n_resamples: of groups, for the interval.
        token_budget: padded tokens of a batch.
        seed: of folds, exchanges, random directions and resamples.

    Raises:
        MethodError: no prompts, fewer than two groups, a target without gradient.
        DirectionError: a gradient that is zero on average.
        SiteError: a site that the model lacks.
    """
    given = [Prompt.of(p) for p in prompts]
    asked = [p.with_answer("") for p in given]
    own = prompt_groups(asked, groups)
    _check(len(asked), len({*own}), n_folds, min(n_permutations, n_random, n_resamples))
    rule, chosen = Positions.of(positions), _sites(model, sites)
    metric, name = target_metric(model, asked, target, quantity)
    slopes, values = gradients(model, asked, metric, chosen, rule, token_budget=token_budget)
    states = mean_states(model, asked, chosen, rule, token_budget=token_budget)
    folds = folds_of(own, n_folds, seed=seed) if n_folds else ()
    about = {
        "kind": "needs the model",
        "target": name,
        "target_mean": float(values.mean()),
        "fitted_on": list(sketch(given)),
        "n_prompts": len(asked),
        "n_groups": len({*own}),
        "n_folds": len(folds),
        "n_permutations": n_permutations,
        "n_random": n_random,
        "seed": seed,
        "steering": list(getattr(model, "steering", ())),
        "versions": {name: version(name) for name in ("steerkit", "torch", "numpy")},
        "estimates": METHODS["gradient"].estimates,
    }
    made = []
    for i, site in enumerate(chosen):
        x: Floats = states[:, i].numpy()
        mean = slopes[:, i].mean(0)
        if float(mean.norm()) == 0:
            raise DirectionError(
                f"the gradient of {name} at {site} is zero at {rule} on every prompt, or cancels: "
                "choose tokens that the output reads, or a site before it is decided"
            )
        unit = mean / mean.norm()
        projected = x @ unit.numpy()
        centre, half = float(projected.mean()), float(projected.std())
        fit = CrossFit(slopes[:, i].numpy(), own, folds, seed)
        effects = _effects(fit, name, 2 * half, x, n_permutations, n_random, n_resamples)
        made.append(
            Direction(
                unit=unit.to(torch.float32),
                scale=2 * half,
                site=site,
                method="gradient",
                concept=concept or name,
                positive_mean=centre + half,
                negative_mean=centre - half,
                model=model.info,
                pooling=str(rule),
                polarity=int(np.sign(effects[0].effect.value)) if effects else 0,
                provenance=about,
                effects=effects,
            )
        )
    return Directions(tuple(made))


def _effects(
    fit: CrossFit, name: str, scale: float, x: Floats, n_permutations: int, n_random: int, n: int
) -> tuple[HeldOutEffect, ...]:
    if not fit.folds:
        return ()
    return (
        HeldOutEffect(
            f"{name}, first order",
            fit.estimate(scale, "nats at strength 1", n_resamples=n),
            (
                fit.random(scale, n_random),
                fit.random(scale, n_random, x),
                fit.exchanged(scale, n_permutations),
            ),
        ),
    )


def _sites(
    model: Model, sites: Iterable[Site | str | int] | Site | str | int | None
) -> tuple[Site, ...]:
    if sites is None:
        return tuple(Site(layer) for layer in range(model.info.n_layers))
    listed = [sites] if isinstance(sites, Site | str | int) else list(sites)
    return tuple(dict.fromkeys(Site.parse(site) for site in listed))


def _check(n_prompts: int, n_groups: int, n_folds: int, draws: int) -> None:
    if not n_prompts:
        raise MethodError("there are no prompts to take gradients on; give at least two groups")
    if n_folds < 0 or n_folds == 1:
        raise MethodError(f"n_folds is 0 (no held-out effect) or at least 2; got {n_folds}")
    if n_folds and n_groups < 2:
        raise MethodError(
            f"{n_prompts} prompts in {n_groups} group leave none to hold out; give prompts of at "
            "least two groups, or n_folds=0"
        )
    if draws < 1:
        raise MethodError(f"numbers of draws are at least 1; got {draws}")


METHODS.register("gradient")(
    ModelMethod(gradient_direction, "E[dm/dh] / |E[dm/dh]|, the direction of steepest ascent")
)
