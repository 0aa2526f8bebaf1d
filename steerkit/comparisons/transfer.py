"""`transfer_directions`: does one model's direction do in another what it does at home?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from steerkit.batch import Positions
from steerkit.comparisons.changes import mean_change, ratio_of_changes, sign_flips
from steerkit.comparisons.common import Prompts, read_prompts
from steerkit.comparisons.transfer_result import LEVEL, Cell, TransferMatrix
from steerkit.direction import Direction
from steerkit.errors import MethodError, ModelError, PromptError
from steerkit.interventions import Ablate, Add
from steerkit.interventions.operator import PositionsLike
from steerkit.prompts import Prompt
from steerkit.protocols import Intervention, Model
from steerkit.refusals import is_refusal
from steerkit.registry import suggest
from steerkit.scoring import answer_log_probs_by_slot, kl_by_slot, with_own_answers
from steerkit.searches.candidates import Candidate
from steerkit.searches.nulls import Shape, matched, random_directions
from steerkit.searches.states import states
from steerkit.statistics import Floats, cluster_mean, null

Operator = Literal["add", "ablate"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
Measure = Callable[[Model, Sequence[Prompt], Sequence[int]], Float[np.ndarray, "slot prompt"]]
"""A view, prompts and the slots to run them at -> one value a slot and prompt; slot 0 is plain."""


def answer_log_prob(view: Model, prompts: Sequence[Prompt], slots: Sequence[int]) -> Floats:
    """Mean log-probability of each prompt's own `answer`, nats per token.

    Raises:
        PromptError: a prompt without an answer.
    """
    bare = [i for i, p in enumerate(prompts) if not p.answer]
    if bare:
        raise PromptError(
            f"{len(bare)} prompts have no answer, first prompt {bare[0]}; give each the answer "
            "whose probability is to change, or measure=refused()"
        )
    found = answer_log_probs_by_slot(view, prompts, slots)
    return np.array([[float(values.mean()) for values in row] for row in found])


def refused(max_new_tokens: int = 24) -> Measure:
    """A measure: 1 where the greedy answer is a refusal, else 0."""

    def measure(view: Model, prompts: Sequence[Prompt], slots: Sequence[int]) -> Floats:
        asked = [p for _ in slots for p in prompts]
        said = view.generate(
            asked, max_new_tokens=max_new_tokens, slots=[s for s in slots for _ in prompts]
        )
        values = [float(is_refusal(c.text)) for c in said]
        return np.array(values).reshape(len(slots), len(prompts))

    return measure


def transfer_directions(
    models: Mapping[str, Model],
    directions: Mapping[str, Direction],
    prompts: Prompts,
    *,
    ablate_on: Prompts | None = None,
    operators: Sequence[Operator] = OPERATORS,
    measure: Measure | None = None,
    unit: str = "fraction refused",
    strength: float = 1.0,
    positions: PositionsLike = "all",
    reference: Literal["zero", "negative_mean", "positive_mean"] = "zero",
    n_random: int = 99,
    shape: Shape = "isotropic",
    max_new_tokens: int = 24,
    coherence: Callable[[str], float] | None = None,
    seed: int = 0,
) -> TransferMatrix:
    """Every direction in every model, added and ablated, beside random directions of equal size.

    The effect of adding is the rise of the measure, that of ablating its fall. Divided by what
    the model's own direction does, prompts resampled together, it says how much of a behaviour
    crosses over: 1 is as at home. A direction whose name is no model's (off-topic ones, a shared
    null) is a row like any other.

    Args:
        models: name -> plain model; all of one width and depth.
        directions: name -> direction; the one called as a model is that model's own.
        prompts: where directions are added, such as harmless requests; unseen by the directions.
        ablate_on: where they are ablated, such as harmful requests; `prompts` by default.
        operators: `add`, `ablate`, or both.
        measure: what should change, on a view and slots: `refused()` by default, or
            `answer_log_prob`.
        unit: of the measure.
        strength: of the addition, in multiples of each direction's scale.
        positions: the tokens steered.
        reference: what ablation moves the projection to.
        n_random: random directions, in each cell resized to the same mean |delta h|. Every cell
            has its p; the adjusted one compares with the largest effect that a random direction
            has in any cell of the operator.
        shape: of the random directions: `isotropic`, `covariance`, `covariance_orthogonal`.
        max_new_tokens: of the plain answers on which KL and sizes are measured.
        coherence: what is wrong with a steered answer, such as 1 where it loops; its mean is
            reported for each cell, or nothing without it.
        seed: of random directions and resampling.

    Raises:
        MethodError: an unknown operator.
        ModelError: models that are steered already.
        DirectionError: a direction of another width.
        SiteError: a direction at a layer that a model lacks.
        PromptError: no prompts, or one without the answer to measure.

    Source: transfer of misalignment directions: arXiv:2602.00298; nulls are this project's.
    """
    wrong = [o for o in operators if o not in OPERATORS]
    if wrong:
        raise MethodError(f"no operator named '{wrong[0]}'; {suggest(str(wrong[0]), OPERATORS)}")
    if not models or not directions:
        raise MethodError("a transfer matrix needs at least one model and one direction")
    steered = [name for name, model in models.items() if model.table is not None]
    if steered:
        raise ModelError(f"{steered[0]} is steered already; give model.plain")
    rule, measured = Positions.of(positions), measure or refused()
    cells: list[Cell] = []
    rows: dict[tuple[str, str, str], Floats] = {}
    draws: dict[str, list[Floats]] = {}
    groups_of: dict[str, tuple[str, ...]] = {}
    for operator in operators:
        asked, groups = read_prompts(
            prompts if operator == "add" or ablate_on is None else ablate_on
        )
        groups_of[operator] = groups
        sign = 1.0 if operator == "add" else -1.0
        for target, model in models.items():
            said = with_own_answers(model.generate(asked, max_new_tokens=max_new_tokens))
            met = states(model, said, sorted({d.site for d in directions.values()}))
            plain: Floats | None = None
            for source, direction in directions.items():
                direction.check(model.info, force=True)

                def make(d: Direction, of: Operator = operator) -> Intervention:
                    if of == "add":
                        return Add(d, strength=strength, positions=rule)
                    return Ablate(d, reference=reference, positions=rule)

                candidate = Candidate(
                    direction, operator, reference if operator == "ablate" else "", rule,
                    strength, make,
                )  # fmt: skip
                size = met.size(make(direction))
                here = met.at_last_prompt(direction.site)
                chance = random_directions(direction, here, here, n_random, shape=shape, seed=seed)
                tried = [make(direction), *matched(candidate, chance, size, met)]
                view = _rows(model, tried)
                if plain is None:
                    plain = measured(view, asked, [0])[0]
                values = sign * (measured(view, asked, range(1, len(tried) + 1)) - plain)
                broken = None
                if coherence is not None:
                    answered = view.generate(
                        asked, max_new_tokens=max_new_tokens, slots=[1] * len(asked)
                    )
                    faults = [float(coherence(c.text)) for c in answered]
                    broken = cluster_mean(faults, groups, unit="fraction", seed=seed)
                kl = torch.cat(kl_by_slot(model, view, said, [1])[0]).numpy()
                rows[operator, source, target] = values[0]
                effect = mean_change(values[0], groups, unit=f"change, {unit}", seed=seed)
                drawn = np.abs(values[1:].mean(1))
                draws.setdefault(operator, []).append(drawn)
                name = f"random directions ({shape}), absolute"
                cells.append(
                    Cell(
                        operator=operator,
                        source=source,
                        target=target,
                        effect=effect,
                        null=null(name, abs(effect.value), drawn),
                        prompts_p=sign_flips(values[0], groups, seed=seed),
                        adjusted_p=1.0,
                        normalised=None,
                        size=size,
                        kl=float(kl.mean()),
                        kl_p95=float(np.quantile(kl, 0.95)),
                        incoherent=broken,
                    )
                )
    home = {(c.operator, c.target): c for c in cells if c.source == c.target}
    finished = []
    for cell in cells:
        largest = np.max(draws[cell.operator], axis=0)
        ratio = None
        if (own := home.get((cell.operator, cell.target))) is not None:
            pair = (
                rows[cell.operator, cell.source, cell.target],
                rows[cell.operator, cell.target, cell.target],
            )
            told = own.null.p <= LEVEL
            ratio = ratio_of_changes(*pair, groups_of[cell.operator], told=told, seed=seed)
        finished.append(
            replace(
                cell,
                adjusted_p=null("", abs(cell.effect.value), largest).p,
                normalised=ratio,
            )
        )
    return TransferMatrix(
        cells=tuple(finished),
        sources=tuple(directions),
        targets=tuple(models),
        operators=tuple(operators),
        unit=unit,
        changes=rows,
        groups=groups_of,
        provenance={
            "models": {name: m.info.to_json() for name, m in models.items()},
            "directions": {name: d.to_json() for name, d in directions.items()},
            "strength": strength,
            "positions": str(rule),
            "reference": reference,
            "shape": shape,
            "n_random": n_random,
            "seed": seed,
            "n_prompts": {o: len(g) for o, g in groups_of.items()},
        },
    )


def _rows(model: Model, interventions: Sequence[Intervention]) -> Model:
    """A view with one intervention a slot, other models' directions allowed."""
    return model.with_rows(*((one,) for one in interventions), force=True)  # type: ignore[call-arg]
