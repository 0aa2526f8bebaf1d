"""A direction trained through the frozen model: what to add so that some answers are preferred.

Adam moves one vector, never a weight, until the model that has it added prefers each pair's chosen
answer (see `objective`). A vector that is optimised finds what changes the output, whether or not
the model itself writes anything there: it is an intervention first, and a concept only where it
agrees with directions that were read. It also fits its pairs, so everything that is reported comes
from pairs of other groups.

Source: Cao et al. 2024, bi-directional preference optimisation (arXiv:2406.00045); the loss with
one sign is that of Rafailov et al. 2023 (arXiv:2305.18290).
"""

from collections.abc import Iterable, Sequence
from importlib.metadata import version

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.effect import HeldOutEffect
from steerkit.errors import MethodError, PromptError
from steerkit.gradients.fitting import Recipe, fit_vector
from steerkit.gradients.methods import METHODS, ModelMethod
from steerkit.gradients.objective import margins
from steerkit.gradients.preferences import Pairs, PreferenceLike
from steerkit.gradients.states import mean_states
from steerkit.prompts import sketch
from steerkit.protocols import Model
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats, Null, cluster_mean, null


def train_direction(
    model: Model,
    preferences: Iterable[PreferenceLike],
    site: Site | str | int,
    *,
    held_out: Iterable[PreferenceLike] | None = None,
    positions: Positions | str | int | Sequence[int] = "last_prompt",
    bidirectional: bool = True,
    beta: float = 0.1,
    norm_limit: float = 0.5,
    step: float = 0.1,
    epochs: int = 30,
    batch_size: int = 16,
    patience: int = 5,
    validation: float = 0.2,
    n_random: int = 99,
    concept: str = "preference",
    token_budget: int = 4096,
    seed: int = 0,
) -> Direction:
    """Train a vector, added at a site, to prefer the chosen answers; weights stay as they are.

    The direction's `scale` is the norm of the trained vector, so strength 1 adds what was
    trained; `negative_mean` is where the prompts project by themselves and `positive_mean`
    where the vector puts them. Its `effects` hold, on held-out pairs, the log-probability
    margin log p(chosen) - log p(rejected) and the share of pairs with a positive one, beside
    the plain model, the mean difference of the answers' own streams at equal norm, and random
    vectors of equal norm. `polarity` is the sign of the change of the margin. The training
    curve is in `provenance["training"]`.

    Use it where it was trained: `sk.Add(direction, positions=direction.pooling)`. Where the norm
    limit is large, or the vector acts at every token, training finds vectors that write the
    chosen answer's words themselves, and generated text breaks: look at some.

    Intervals are over held-out groups, for this vector; they do not train again. To see how
    much the training itself varies, train with other seeds.

    Args:
        model: plain or steered by `with_`; its parameters need take no gradients.
        preferences: `Preference`s or (prompt, chosen, rejected).
        site: where the vector is added, such as `resid_post@14`.
        held_out: other pairs to measure on, best of other words and templates; by default the
            groups of about 30% of the preferences.
        positions: the tokens it is added at, in training and in measuring; no mask.
        bidirectional: whether the negative vector has to do the opposite, pairs drawn either
            way at random.
        beta: how steeply log-probability ratios count.
        norm_limit: of the vector, as a multiple of the median norm of the stream's mean state
            at the chosen tokens of training prompts.
        step: norm of a full step of Adam, as a fraction of the norm limit.
        epochs: at most.
        batch_size: pairs a step.
        patience: epochs without a better validation loss before training stops.
        validation: share of the training pairs, in whole groups, that stops it early.
        n_random: random vectors of each kind, isotropic and shaped by the covariance.
        concept: what the direction stands for.
        token_budget: padded tokens of a batch.
        seed: of splits, the order of pairs, their signs and the random vectors.

    Raises:
        PromptError: too few groups, answers that are empty or the same, pairs that are held
            out and trained on.
        MethodError: settings out of range, a position rule that misses a prompt.
        DirectionError: no vector helps on the validation pairs.
        SiteError: a site that the model lacks.
    """
    where, rule = Site.parse(site), Positions.of(positions)
    _check(rule, beta, norm_limit, step, epochs, batch_size, patience, validation, n_random)
    pairs = Pairs.of(model, preferences)
    if held_out is None:
        tested, pairs = pairs.split(0.3, seed=seed)
    else:
        tested = Pairs.of(model, held_out)
        _check_apart(pairs, tested)
    stopping, training = pairs.split(validation, seed=seed + 1)
    states = mean_states(model, training.items, [where], rule, token_budget=token_budget)[:, 0]
    typical = float(states.norm(dim=1).median())
    how = Recipe(
        beta, bidirectional, norm_limit * typical, step, epochs, batch_size, patience,
        token_budget, seed,
    )  # fmt: skip
    vector, curve, best = fit_vector(model, training, stopping, where, rule, how)
    size = float(vector.norm())
    unit = vector / size
    effects = _effects(
        model, tested, vector, where, rule,
        _difference(model, training, where, size, token_budget),
        _random(states, size, n_random, seed), n_random, token_budget,
    )  # fmt: skip
    middle = float((states @ unit).mean())
    gained = effects[0].effect.value - effects[0].beside["plain model"].value
    return Direction(
        unit=unit.to(torch.float32),
        scale=size,
        site=where,
        method="trained",
        concept=concept,
        positive_mean=middle + size,
        negative_mean=middle,
        model=model.info,
        pooling=str(rule),
        polarity=int(np.sign(gained)),
        provenance={
            "kind": "needs the model",
            "objective": "bi-directional preference" if bidirectional else "preference",
            "beta": beta,
            "norm_limit": norm_limit,
            "typical_norm": typical,
            "step": step,
            "batch_size": batch_size,
            "patience": patience,
            "training": [epoch.to_json() for epoch in curve],
            "best_epoch": best,
            "n_pairs": {
                "training": len(training), "validation": len(stopping), "held_out": len(tested)
            },
            "n_random": n_random,
            "seed": seed,
            "fitted_on": list(sketch((*training.prompts, *stopping.prompts))),
            "steering": list(getattr(model, "steering", ())),
            "versions": {name: version(name) for name in ("steerkit", "torch", "numpy")},
            "estimates": METHODS["trained"].estimates,
        },
        effects=effects,
    )  # fmt: skip


def _difference(
    model: Model, pairs: Pairs, site: Site, size: float, token_budget: int
) -> Float[Tensor, "d_model"]:
    """The mean difference of the streams of chosen and rejected answers, as long as `size`."""
    generated = Positions("generated")
    states = mean_states(model, pairs.items, [site], generated, token_budget=token_budget)[:, 0]
    gap = states[0::2].mean(0) - states[1::2].mean(0)
    return gap * (size / max(float(gap.norm()), 1e-300))


def _random(states: Tensor, size: float, n: int, seed: int) -> Float[Tensor, "vector d_model"]:
    """`n` isotropic vectors, then `n` random mixtures of the states, all as long as `size`."""
    generator = torch.Generator().manual_seed(seed)
    wide, deep = states.shape[1], len(states)
    isotropic = torch.randn(n, wide, generator=generator, dtype=torch.float64)
    mixed = torch.randn(n, deep, generator=generator, dtype=torch.float64)
    both = torch.cat([isotropic, mixed @ (states - states.mean(0))])
    return both * (size / both.norm(dim=1, keepdim=True))


def _effects(
    model: Model,
    pairs: Pairs,
    vector: Tensor,
    site: Site,
    positions: Positions,
    difference: Tensor,
    random: Tensor,
    n_random: int,
    token_budget: int,
) -> tuple[HeldOutEffect, HeldOutEffect]:
    """Margin and accuracy on the pairs, of the vector and of what stands beside it."""
    known = torch.stack([torch.zeros_like(vector), vector, difference])
    every: Floats = margins(
        model, pairs, torch.cat([known, random]), site, positions, token_budget=token_budget
    ).numpy()

    def measured(quantity: str, values: Floats, unit: str) -> HeldOutEffect:
        def mean(row: Floats) -> Estimate:
            return cluster_mean(row, pairs.groups, unit=unit)

        means = values.mean(1)
        drawn = means[3:]
        nulls: tuple[Null, ...] = tuple(
            null(name, float(means[1]), part)
            for name, part in (
                ("random directions of equal norm", drawn[:n_random]),
                ("the same, shaped by the covariance", drawn[n_random:]),
            )
        )
        beside = {"plain model": mean(values[0]), "mean difference": mean(values[2])}
        return HeldOutEffect(quantity, mean(values[1]), nulls, beside)

    right = np.where(every == 0, 0.5, (np.sign(every) + 1) / 2)
    return (
        measured("margin of the chosen answer", every, "nats"),
        measured("chosen answer preferred", right, "fraction"),
    )


def _check_apart(pairs: Pairs, tested: Pairs) -> None:
    """Refuse held-out pairs that are trained on, or share a named group with those that are."""
    named = {p.prompt.group for p in pairs.preferences if p.prompt.group}
    shared = sorted(named & {p.prompt.group for p in tested.preferences})
    same = {*pairs.items} & {*tested.items}
    if shared or same:
        what = f"the group '{shared[0]}'" if shared else f"{len(same)} answers to the same prompt"
        raise PromptError(
            f"held-out preferences share {what} with those to train on; hold out other prompts"
        )


def _check(
    positions: Positions,
    beta: float,
    norm_limit: float,
    step: float,
    epochs: int,
    batch_size: int,
    patience: int,
    validation: float,
    n_random: int,
) -> None:
    if positions.rule == "mask":
        raise MethodError(
            "a position mask names rows, but training runs two answers a prompt in an order of its "
            "own; give a rule or indices"
        )
    positive = {"beta": beta, "norm_limit": norm_limit, "step": step}
    counts = {
        "epochs": epochs, "batch_size": batch_size, "patience": patience, "n_random": n_random
    }  # fmt: skip
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise MethodError(f"{name} is a finite number above 0; got {value}")
    for name, count in counts.items():
        if count < 1:
            raise MethodError(f"{name} is at least 1; got {count}")
    if not 0 < validation < 1:
        raise MethodError(
            f"validation is the share of pairs that stops training, between 0 and 1; got "
            f"{validation}"
        )


METHODS.register("trained")(
    ModelMethod(
        train_direction,
        "argmin over |v| <= limit of E[-log sigmoid(s beta (change of the preference margin "
        "when s v is added))]",
    )
)
