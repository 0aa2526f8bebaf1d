"""`steer_by_shift`: does adding what moved take the first model's behaviour to the second's?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerkit.batch import Tokenized
from steerkit.captures import capture
from steerkit.comparisons.common import Prompts, provenance, read_prompts, require_one_tokenizer
from steerkit.comparisons.representation_shift_result import RepresentationShift
from steerkit.comparisons.shift_steering_result import KINDS, Kind, ShiftSteering
from steerkit.direction import Direction
from steerkit.errors import ActivationError, MethodError
from steerkit.interventions import Add
from steerkit.interventions.operator import PositionsLike
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Intervention, Model
from steerkit.scoring import TOKEN_BUDGET, kl_by_slot, with_own_answers
from steerkit.searches.nulls import Shape, random_directions
from steerkit.statistics import (
    Estimate,
    Floats,
    cluster_mean,
    grouped_folds,
    null,
    percentiles,
    row_draws,
)

Judge = Callable[[Prompt, str], float]
"""A prompt and an answer to it -> a value, NaN where it does not apply."""
Rows = NDArray[np.int64]
SHAPES: tuple[Shape, ...] = ("isotropic", "covariance")
ANSWERED = 4
"""Random draws whose answers are judged."""


@dataclass(frozen=True, eq=False)
class _Part:
    """Prompts that steering is measured on, with the second model's own answers."""

    prompts: tuple[Prompt, ...]
    items: tuple[Tokenized, ...]
    groups: tuple[str, ...]
    sides: tuple[int, ...]
    rows: Rows

    def concepts(self, shift: RepresentationShift) -> Rows:
        """The concept of each prompt at the site of a shift."""
        of = {row: c for c, rows in enumerate(shift.members) for row in rows}
        return np.array([of[int(row)] for row in self.rows])


def steer_by_shift(
    a: Model,
    b: Model,
    prompts: Prompts,
    shifts: Sequence[RepresentationShift],
    *,
    positions: Sequence[PositionsLike] = ("last_prompt", "all"),
    judges: Mapping[str, Judge] | None = None,
    n_random: int = 39,
    at_most: int = 100,
    max_new_tokens: int = 32,
    seed: int = 0,
    token_budget: int = TOKEN_BUDGET,
) -> ShiftSteering:
    """Add shift vectors to the model before, and see how much nearer the model after it comes.

    Near is KL(after || before, steered) per token of the model after's own answers. Each prompt
    gets the shift of its concept, or all get the global one. Shifts were fitted on one half of
    the groups. Half of the other half chooses site, tokens and which of the two; on what is left
    the choice is measured beside random vectors of the same norms at the same tokens.

    Args:
        a: the model before, plain or a view of one slot.
        b: the model after.
        prompts: those that the shifts were taken on.
        shifts: of `representation_shifts`, one a site.
        positions: rules for the tokens that are steered, to choose from.
        judges: what answers are judged by, such as refusal (the target) or being right (which
            steering should leave alone); on either side of a contrast.
        n_random: random vectors, of each shape: isotropic, and as the states vary.
        at_most: prompts that choose, and that are reported on.
        max_new_tokens: of the answers.
        seed: of the split and of random vectors.
        token_budget: padded tokens a forward pass.

    Raises:
        ModelError: tokenizers that differ.
        MethodError: no shifts, shifts of other prompts, or none that moved anything.
        ActivationError: too few groups to choose on some and report on others.

    Source: arXiv:2501.03012 (steering by shift vectors); the held-out choice, the nulls of equal
    norm and the accuracy beside are this project's.
    """
    read, groups = read_prompts(prompts)
    moved = [s for s in shifts if not s.unchanged]
    if not moved:
        raise MethodError("no state moved at any site: there is no shift to steer by")
    if any(s.prompts != tuple(p.text for p in read) for s in moved):
        raise MethodError("these shifts were taken on other prompts; give the same ones")
    require_one_tokenizer(a, b, read)
    choose, report = _parts(a, b, prompts, read, groups, moved[0], at_most, max_new_tokens, seed)
    best: tuple[float, RepresentationShift, PositionsLike, Kind] | None = None
    tried: dict[str, dict[Kind, float]] = {}
    for shift in moved:
        for rule in positions:
            found = _nearness(a, b, choose, shift, rule, {}, token_budget)
            here = {k: _closed(found[k][0], found["plain"][0]) for k in KINDS}
            tried[f"{shift.site}, {rule}"] = here
            for kind in KINDS:
                if best is None or here[kind] > best[0]:
                    best = here[kind], shift, rule, kind
    assert best is not None
    _, shift, rule, kind = best
    assert shift.site is not None
    near = capture(a, report.prompts, sites=[shift.site], progress=False).at(shift.site)
    chance: dict[Shape, list[dict[int, Direction]]] = {s: [] for s in SHAPES}
    for shape in SHAPES:
        drawn = {
            c: random_directions(like, near, near, n_random, shape=shape, seed=seed + 1 + c)
            for c, like in _vectors(shift, kind).items()
        }
        chance[shape] = [{c: many[i] for c, many in drawn.items()} for i in range(n_random)]
    values = _nearness(a, b, report, shift, rule, chance, token_budget)
    plain = values["plain"][0]
    draws = row_draws(report.groups, seed=seed)
    return ShiftSteering(
        site=shift.site,
        positions=str(rule),
        kind=kind,
        closed={k: _interval(values[k][0], plain, draws, len(set(report.groups))) for k in KINDS},
        nulls={
            shape: null(
                f"{shape} random vectors of equal norm",
                _closed(values[kind][0], plain),
                [_closed(row, plain) for row in values[shape]],
            )
            for shape in SHAPES
        },
        kl={
            name: cluster_mean(values[name][0], report.groups, unit="nats per token", seed=seed)
            for name in ("plain", *KINDS)
        },
        behaviour=_behaviour(
            a, b, report, shift, rule, kind, chance["isotropic"], judges or {}, max_new_tokens,
            seed,
        ),
        tried=tried,
        n_choose=len(choose.prompts),
        n_report=len(report.prompts),
        provenance=provenance(a, b, n_random=n_random, seed=seed),
    )  # fmt: skip


def _parts(
    a: Model,
    b: Model,
    prompts: Prompts,
    read: Sequence[Prompt],
    groups: Sequence[str],
    shift: RepresentationShift,
    at_most: int,
    max_new_tokens: int,
    seed: int,
) -> tuple[_Part, _Part]:
    """The scored half of the prompts in two, which share no group."""
    sides = [0] * len(read)
    if isinstance(prompts, Contrast):
        label = dict(zip(reversed(prompts.prompts), reversed(prompts.labels), strict=True))
        sides = [label[p] for p in read]
    scored = np.array(sorted(row for rows in shift.members for row in rows))
    held = [groups[i] for i in scored]
    if len(set(held)) < 4:
        raise ActivationError(
            f"steering by shifts needs 4 groups among the {len(scored)} prompts that shifts were "
            f"not fitted on, to choose on some and report on others; got {len(set(held))}"
        )
    found = []
    for part in grouped_folds([sides[i] for i in scored], held, n_folds=2, seed=seed + 1)[0]:
        rows = scored[part]
        rows = rows[:: -(-len(rows) // at_most)]
        asked = tuple(read[i] for i in rows)
        items = with_own_answers(b.generate(asked, max_new_tokens=max_new_tokens))
        found.append(
            _Part(
                asked, tuple(items), tuple(groups[i] for i in rows),
                tuple(sides[i] for i in rows), rows,
            )
        )  # fmt: skip
    return found[0], found[1]


def _vectors(shift: RepresentationShift, kind: Kind) -> dict[int, Direction]:
    """What each concept's prompts get; nothing where that is zero."""
    found: dict[int, Direction] = {}
    for c in range(len(shift.concepts)):
        vector = shift.shifts[c] if kind == "own" else shift.global_shift
        if np.linalg.norm(vector) > 0:
            found[c] = shift.direction(c if kind == "own" else None, beyond_global=False)
    return found


def _nearness(
    a: Model,
    b: Model,
    part: _Part,
    shift: RepresentationShift,
    rule: PositionsLike,
    chance: Mapping[Shape, Sequence[Mapping[int, Direction]]],
    token_budget: int,
) -> dict[str, Floats]:
    """KL(after || before, steered) of each prompt, mean over its tokens: `[draw prompt]` a name."""
    plans: list[tuple[str, Mapping[int, Direction]]] = [("plain", {})]
    plans += [(kind, _vectors(shift, kind)) for kind in KINDS]
    plans += [(shape, draw) for shape, many in chance.items() for draw in many]
    values = np.empty((len(plans), len(part.prompts)))
    concept = part.concepts(shift)
    for c in np.unique(concept):
        mine = np.flatnonzero(concept == c)
        rows = [_row(plan.get(int(c)), rule) for _, plan in plans]
        view = a.with_rows(*rows)
        items = [part.items[i] for i in mine]
        slots = range(1, len(rows) + 1)
        for s, found in enumerate(kl_by_slot(b, view, items, slots, token_budget=token_budget)):
            values[s, mine] = [float(kl.mean()) for kl in found]
    names = [name for name, _ in plans]
    return {
        name: values[[i for i, other in enumerate(names) if other == name]]
        for name in dict.fromkeys(names)
    }


def _row(direction: Direction | None, rule: PositionsLike) -> tuple[Intervention, ...]:
    return () if direction is None else (Add(direction, positions=rule),)


def _closed(steered: Floats, plain: Floats) -> float:
    """The fraction of the KL that steering takes away; negative where it adds some."""
    return float(1 - steered.mean() / plain.mean()) if plain.mean() > 0 else float("nan")


def _interval(steered: Floats, plain: Floats, draws: Floats, n: int) -> Estimate:
    """`_closed` with an interval; numerator and denominator are resampled together."""
    below = plain @ draws
    with np.errstate(invalid="ignore", divide="ignore"):
        many = 1 - (steered @ draws) / below
    many = many[np.isfinite(many)]
    low, high = percentiles(many, n) if len(many) else (float("nan"), float("nan"))
    return Estimate(_closed(steered, plain), low, high, n, "fraction of KL")


def _behaviour(
    a: Model,
    b: Model,
    part: _Part,
    shift: RepresentationShift,
    rule: PositionsLike,
    kind: Kind,
    chance: Sequence[Mapping[int, Direction]],
    judges: Mapping[str, Judge],
    max_new_tokens: int,
    seed: int,
) -> dict[str, dict[str, Estimate]]:
    """Judge -> arm -> rate; of either side of a contrast, `judge, positive` and so on."""
    if not judges:
        return {}
    plans = [{}, _vectors(shift, kind), *chance[:ANSWERED]]
    concept = part.concepts(shift)
    known = sorted({int(c) for c in concept})
    view = a.with_rows(*(_row(plan.get(c), rule) for plan in plans for c in known))
    n = len(part.prompts)
    slots = [1 + p * len(known) + known.index(int(c)) for p in range(len(plans)) for c in concept]
    said = view.generate(
        [p for _ in plans for p in part.prompts], max_new_tokens=max_new_tokens, slots=slots
    )
    after = b.generate(part.prompts, max_new_tokens=max_new_tokens)
    texts = {
        "before": [c.text for c in said[:n]],
        "before, steered": [c.text for c in said[n : 2 * n]],
        "before, random vectors": [c.text for c in said[2 * n :]],
        "after": [c.text for c in after],
    }
    sides = np.array(part.sides)
    named = {"": sides >= 0}
    if len(set(part.sides)) == 2:
        named = {", positive": sides == 1, ", negative": sides == 0}
    found: dict[str, dict[str, Estimate]] = {}
    for name, judge in judges.items():
        for side, here in named.items():
            where = np.flatnonzero(here)
            found[name + side] = {}
            for arm, answers in texts.items():
                many = len(answers) // n
                marks = [judge(part.prompts[i], answers[i + k * n]) for k in range(many)
                         for i in where]  # fmt: skip
                who = [part.groups[i] for _ in range(many) for i in where]
                found[name + side][arm] = cluster_mean(marks, who, unit="fraction", seed=seed)
    return found
