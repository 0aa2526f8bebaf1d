"""The trade-off of steering: what it gains on one behaviour, and what it costs elsewhere.

The claim under test (arXiv:2401.16332) is about shapes: near zero the behaviour moves linearly
with strength, and helpfulness is lost with its square, so that small strengths pay. Exponents
are fitted, not assumed. A random direction of the same norm should lose helpfulness in the
same way, and should not move the behaviour.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError, MethodError, PromptError
from steerkit.interventions.add import Add
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.scoring import TOKEN_BUDGET, answer_log_probs_by_slot
from steerkit.searches.measure import measure
from steerkit.searches.nulls import NullDraws, Shape, random_directions
from steerkit.searches.objectives import LogOdds, Objective, Scores, as_is
from steerkit.searches.states import states
from steerkit.searches.tradeoff_fits import CurveFits, fit_curve, predicted
from steerkit.searches.tradeoff_levels import LevelFit, fit_level
from steerkit.statistics import Estimate, Floats, cluster_mean, percentiles

STRENGTHS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
Measure = Literal["probability", "log_prob", "correct"]
UNITS: Mapping[str, str] = {
    "probability": "probability",
    "log_prob": "nats/token",
    "correct": "fraction",
}


@dataclass(frozen=True)
class OwnAnswer:
    """How well a prompt's own right answer is still predicted, teacher-forced.

    Attributes:
        measure: `log_prob`: mean log-probability a token, nats; `probability`: its
            exponential, the geometric mean over tokens; `correct`: whether the model prefers
            the answer to the prompt's `others`, summed log-probabilities, 1 or 0.
        others: prompt text -> wrong answers, for `correct`.
        token_budget: padded tokens a batch.
    """

    measure: Measure = "probability"
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    token_budget: int = TOKEN_BUDGET
    name: str = "own_answer"

    @property
    def unit(self) -> str:
        """Of the measure."""
        return UNITS[self.measure]

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """One scored answer a prompt, or as many as there are to choose from.

        Raises:
            MethodError: an unknown measure, a prompt without an answer, or without others.
        """
        if self.measure not in UNITS:
            raise MethodError(f"no measure named '{self.measure}'; there are {', '.join(UNITS)}")
        bare = [p for p in prompts if not p.answer]
        if bare:
            raise MethodError(
                f"{len(bare)} of {len(prompts)} prompts have no right answer to score, such as "
                f"{bare[0].text[:40]!r}; give prompts an `answer`"
            )
        asked = [
            (i, p.with_answer(a))
            for i, p in enumerate(prompts)
            for a in (p.answer, *(self._others(p) if self.measure == "correct" else ()))
        ]
        items = model.tokenize([p for _, p in asked])
        found = answer_log_probs_by_slot(
            model, items, as_is(model, slots), token_budget=self.token_budget
        )
        if self.measure == "correct":
            sums = np.array([[float(x.sum()) for x in row] for row in found])
            owner = np.array([i for i, _ in asked])
            best = [
                [float(row[owner == i].argmax() == 0) for i in range(len(prompts))] for row in sums
            ]
            return Scores(np.array(best))
        means = np.array([[float(x.mean()) for x in row] for row in found])
        return Scores(np.exp(means) if self.measure == "probability" else means)

    def _others(self, prompt: Prompt) -> tuple[str, ...]:
        others = self.others.get(prompt.text, ())
        if not others:
            raise MethodError(
                f"no other answers to choose from for the prompt {prompt.text[:40]!r}; give "
                "`others`, or measure the 'probability'"
            )
        return others


@dataclass(frozen=True)
class Balance:
    """P(positive answer) - P(negative answer), renormalised over the two; from -1 to 1.

    That is tanh of half their log-odds. The theory's curve is one of this level.
    """

    odds: LogOdds
    name: str = "balance"
    unit: str = "probability"

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """From the log-odds."""
        return Scores(np.tanh(self.odds.score(model, prompts, slots).values / 2))


@dataclass(frozen=True)
class Tradeoff:
    """Gain of a behaviour and loss of helpfulness with strength.

    Attributes:
        strengths: ascending, 0 among them, in multiples of the direction's scale.
        behaviour: level of the behaviour at each.
        helpfulness: level of helpfulness at each.
        behaviour_unit: of the behaviour.
        helpfulness_unit: of helpfulness.
        gain: fits to the change of the behaviour (the power keeps the strength's sign).
        loss: fits to the loss of helpfulness (the power is even in the strength).
        tanh: the theory's curve of the behaviour, where its level lies between -1 and 1.
        hill: the theory's curve of helpfulness, where its level lies between 0 and 1.
        optimum: strength > 0 of the largest gain less `exchange` times the loss, by the power
            forms, within the strengths both were fitted on; with an interval over both sets
            of items. NaN where no positive strength was measured.
        at_edge: share of resamples whose optimum is the largest of those strengths.
        exchange: units of gain that a unit of loss counts for.
        random_loss: the loss of random directions of equal norm, averaged over them by item.
        random_slope: |slope near zero| of the behaviour beside that of random directions.
        direction: what was added.
        positions: at which tokens.
    """

    strengths: tuple[float, ...]
    behaviour: tuple[Estimate, ...]
    helpfulness: tuple[Estimate, ...]
    behaviour_unit: str
    helpfulness_unit: str
    gain: CurveFits
    loss: CurveFits
    tanh: LevelFit | None
    hill: LevelFit | None
    optimum: Estimate
    at_edge: float
    exchange: float
    random_loss: CurveFits | None
    random_slope: NullDraws | None
    direction: str
    positions: str

    def table(self) -> str:
        """Every fitted form as a markdown table."""
        lines = ["| curve | form | parameters | AICc | excess error | |", "|" + "---|" * 6]
        curves = [("gain", self.gain), ("loss", self.loss)]
        if self.random_loss:
            curves.append(("loss, random", self.random_loss))
        for name, curve in curves:
            for f in curve.fits:
                values = ", ".join(f"{k} = {e}" for k, e in f.parameters.items())
                mark = "chosen" if f.form == curve.chosen else ""
                excess = f"{f.excess:.2g} ± {f.excess_se:.2g}"
                lines.append(f"| {name} | {f.form} | {values} | {f.aicc:.1f} | {excess} | {mark} |")
        for level in (self.tanh, self.hill):
            if level:
                values = ", ".join(f"{k} = {e}" for k, e in level.parameters.items())
                lines.append(f"| level | {level.form} | {values} | | R² {level.r2:.3f} | |")
        return "\n".join(lines)

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        lines = [
            f"{self.direction}, strengths of size up to {self.gain.near:g} and "
            f"{self.loss.near:g} fitted:",
            f"gain ({self.behaviour_unit}) ~ |x|^k, k = {self.gain.exponent}; "
            f"{self.gain.chosen} chosen",
            f"loss ({self.helpfulness_unit}) ~ |x|^k, k = {self.loss.exponent}; "
            f"{self.loss.chosen} chosen",
        ]
        if self.random_loss and self.random_slope:
            n = self.random_slope.null
            lines.append(
                f"random directions of equal norm: loss k = {self.random_loss.exponent}; |slope| "
                f"of the gain {self.random_slope.observed:.3g} against at most {n.maximum:.3g} of "
                f"{n.n} (p = {n.p:.3g})"
            )
        edge = f", at the edge in {self.at_edge:.0%} of resamples" if self.at_edge else ""
        lines.append(f"best strength at an exchange of {self.exchange:g}: {self.optimum}{edge}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        shown = ("gain", "loss", "tanh", "hill", "optimum", "random_loss", "random_slope")
        return {
            **{k: v for k, v in self.__dict__.items() if k not in shown},
            "strengths": list(self.strengths),
            "behaviour": [e.to_json() for e in self.behaviour],
            "helpfulness": [e.to_json() for e in self.helpfulness],
            **{k: v.to_json() if (v := getattr(self, k)) else None for k in shown},
        }

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        import html

        heads, _, *rows = (line.strip("|").split("|") for line in self.table().splitlines())
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
        text = "<br>".join(html.escape(line) for line in self.summary().splitlines())
        return f"<b>Trade-off</b><br>{text}<table><tr>{head}</tr>{body}</table>"


def tradeoff(
    model: Model,
    direction: Direction,
    behaviour_prompts: Sequence[Prompt | str],
    helpful_prompts: Sequence[Prompt | str],
    *,
    behaviour: Objective,
    helpfulness: Objective | None = None,
    strengths: Sequence[float] = STRENGTHS,
    positions: Positions | str = "all",
    near: float | tuple[float, float] | None = None,
    exchange: float = 1.0,
    n_random: int = 9,
    shape: Shape = "isotropic",
    n_resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Tradeoff:
    """Measure gain and loss over a grid of strengths, item by item, and fit their shapes.

    Use a direction that was extracted on other prompts than these.

    Args:
        model: plain or steered.
        direction: added at its site, in multiples of its scale.
        behaviour_prompts: on which the behaviour is measured.
        helpful_prompts: harmless ones, with right answers where `helpfulness` is the default.
        behaviour: larger means more of what the direction points to, such as `LogOdds` or
            `Balance` of two answers.
        helpfulness: larger is better; by default the probability of each prompt's own answer.
        strengths: 0 is put in.
        positions: the tokens to steer.
        near: fit powers only up to this strength, for both or (gain, loss); by default all.
        exchange: what a unit of lost helpfulness counts for, in units of gain.
        n_random: random directions of equal norm; 0 for none.
        shape: how they are drawn.
        n_resamples: of groups of items.
        seed: of resamples, folds and random directions.
        progress: show a bar on stderr.

    Raises:
        PromptError: no prompts on one side.
        InterventionError: strengths that are not finite.
        MethodError: too few strengths near zero, or items of a single group.

    Source: arXiv:2401.16332.
    """
    direction.check(model.info)
    x = np.array(sorted({0.0, *(float(s) for s in strengths)}))
    if not np.isfinite(x).all():
        raise InterventionError(f"strengths are finite numbers; got {list(strengths)}")
    sides = [[Prompt.of(p) for p in side] for side in (behaviour_prompts, helpful_prompts)]
    if not all(sides):
        raise PromptError(
            f"a trade-off needs prompts of both kinds; got {len(sides[0])} for the behaviour and "
            f"{len(sides[1])} for helpfulness"
        )
    groups = [[p.group or f"prompt{i}" for i, p in enumerate(side)] for side in sides]
    objectives = (behaviour, helpfulness or OwnAnswer())
    drawn: list[Direction] = []
    if n_random:
        h = states(model, model.tokenize(sides[1]), [direction.site]).streams[direction.site]
        drawn = random_directions(
            direction, h.double(), h.double(), n_random, shape=shape, seed=seed + 1
        )

    from tqdm.auto import tqdm

    with tqdm(
        total=2 * (len(x) - 1) * (1 + len(drawn)), desc="trade-off", disable=not progress
    ) as bar:
        levels = [
            _levels(model, [direction, *drawn], x, target, side, positions, bar.update)
            for target, side in zip(objectives, sides, strict=True)
        ]
    at_zero = int(np.flatnonzero(x == 0)[0])
    gains, losses = (
        side * (level - level[:, at_zero : at_zero + 1])
        for side, level in zip((1.0, -1.0), levels, strict=True)
    )
    limits = near if isinstance(near, tuple) else (near, near)
    common: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    gain = fit_curve(
        x, gains[0], groups[0], parity="odd", near=limits[0], unit=behaviour.unit, **common
    )
    loss = fit_curve(
        x, losses[0], groups[1], parity="even", near=limits[1], unit=objectives[1].unit, **common
    )
    random_loss = slope = None
    if drawn:
        random_loss = fit_curve(
            x,
            losses[1:].mean(0),
            groups[1],
            parity="even",
            near=limits[1],
            unit=objectives[1].unit,
            **common,
        )
        slopes = [abs(_slope(x, g, gain.near)) for g in gains]
        slope = NullDraws(f"{shape} directions, |slope|", slopes[0], tuple(slopes[1:]))
    most = min(float(x.max()), gain.near, loss.near)
    best, edge = _optimum(gain, loss, most, exchange, len(set(groups[0])))
    return Tradeoff(
        strengths=tuple(x.tolist()),
        behaviour=_means(levels[0][0], groups[0], behaviour.unit, seed),
        helpfulness=_means(levels[1][0], groups[1], objectives[1].unit, seed),
        behaviour_unit=behaviour.unit,
        helpfulness_unit=objectives[1].unit,
        gain=gain,
        loss=loss,
        tanh=_level(x, levels[0][0], groups[0], "tanh", seed),
        hill=_level(x, levels[1][0], groups[1], "hill", seed),
        optimum=best,
        at_edge=edge,
        exchange=exchange,
        random_loss=random_loss,
        random_slope=slope,
        direction=str(direction),
        positions=str(Positions.of(positions)),
    )


def _levels(
    model: Model,
    directions: Sequence[Direction],
    x: Floats,
    objective: Objective,
    prompts: Sequence[Prompt],
    positions: Positions | str,
    advance: Callable[[int], object],
) -> Floats:
    """The objective, `[direction strength item]`."""
    live = [float(s) for s in x if s]
    adds = [Add(d, strength=s, positions=positions) for d in directions for s in live]
    found = measure(model, adds, objective, prompts, advance=advance).values
    plain = objective.score(model, prompts).values[0]
    out = np.empty((len(directions), len(x), len(prompts)))
    out[:, x == 0] = plain
    out[:, x != 0] = found.reshape(len(directions), len(live), -1)
    return out


def _means(values: Floats, groups: Sequence[str], unit: str, seed: int) -> tuple[Estimate, ...]:
    return tuple(cluster_mean(row, groups, seed=seed, unit=unit) for row in values)


def _level(
    x: Floats, values: Floats, groups: Sequence[str], form: Literal["tanh", "hill"], seed: int
) -> LevelFit | None:
    """The theory's curve, where the level is one that it speaks of."""
    low = -1.0 if form == "tanh" else 0.0
    whole = values[:, ~np.isnan(values).any(0)]
    if whole.size == 0 or whole.min() < low or whole.max() > 1:
        return None
    return fit_level(x, values, groups, form, seed=seed)


def _slope(x: Floats, change: Floats, near: float) -> float:
    """Least-squares slope through zero of the mean change, near zero."""
    close = np.abs(x) <= near
    mean = np.nanmean(change, axis=1)
    return float(x[close] @ mean[close] / (x[close] @ x[close]))


def _optimum(
    gain: CurveFits, loss: CurveFits, most: float, exchange: float, n_groups: int
) -> tuple[Estimate, float]:
    """The strength of the largest net gain, and how often that is `most`."""
    nan = float("nan")
    if most <= 0:
        return Estimate(nan, nan, nan, n_groups, "strength"), 0.0
    grid = np.linspace(0, most, 401)

    def best(a: Sequence[float], b: Sequence[float]) -> float:
        net = predicted("power", a, grid, "odd") - exchange * predicted("power", b, grid, "even")
        return float(grid[int(net.argmax())])

    draws = np.array([best(a, b) for a, b in zip(gain.draws, loss.draws, strict=True)])
    value = best(
        *[[p.value for p in side.fit("power").parameters.values()] for side in (gain, loss)]
    )
    low, high = percentiles(draws, n_groups)
    return Estimate(value, low, high, n_groups, "strength"), float((draws >= most).mean())
