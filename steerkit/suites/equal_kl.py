"""Random directions that spend the KL of a steering: what so much damage does by itself.

Two steerings compare at equal KL only. The controls are the steering's own programs, at its own
sites, tokens and conditions, along random directions, each at the strength at which it spends as
much on harmless requests as the steering does. Strengths are found on one part of the requests;
what is spent, and everything else, is reported on prompts of the other part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions, Tokenized
from steerkit.direction import Direction
from steerkit.errors import SteerkitError
from steerkit.program import Group, Opcode, Program
from steerkit.prompts import Contrast, Prompt, groups_of
from steerkit.protocols import Completion, Model
from steerkit.scoring import kl_per_token, with_own_answers
from steerkit.searches import calibrate
from steerkit.searches.calibration.setup import parts
from steerkit.searches.measure import Side, spread
from steerkit.searches.nulls import Resized
from steerkit.searches.states import States, states
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats, cluster_mean, group_bootstrap
from steerkit.suites.subject import Subject

DRAWS = 19
"""Random directions: the smallest p that they can give is a twentieth."""
SPARE = 5
"""Further ones, for those that spend the budget at no strength."""
PROMPTS = 64
"""Harmless requests that are measured, at most: half to find strengths on, half to report on."""
NOTHING = 1e-6
"""Nats a token below which a steering spends nothing that could be matched (float32 rounding)."""
TOLERANCE = 0.05
"""Relative error of what is spent on the prompts that strengths are found on."""


@dataclass(frozen=True, eq=False)
class EqualKL:
    """A steering beside random directions that spend as much.

    Attributes:
        budget: nats a token of KL(plain || steered), on the requests that strengths are found on.
        found_on: those requests.
        reported_on: other ones, of other groups.
        spent: by the steering, on the reported requests: mean over requests.
        spent_p95: 95th percentile over all answer tokens there.
        controls: views along random directions, of those that can spend the budget.
        controls_spent: by each of them, on the reported requests.
        unreached: random directions that spend the budget at no strength.
        why: why there are no controls; empty where there are.
    """

    budget: float
    found_on: Side
    reported_on: Side
    spent: Estimate
    spent_p95: Estimate
    controls: tuple[Model, ...] = ()
    controls_spent: tuple[Estimate, ...] = ()
    unreached: int = 0
    why: str = ""

    @property
    def sentence(self) -> str:
        """What was matched, how well, or why not."""
        if not self.controls:
            return f"Not compared at equal KL: {self.why}."
        low, high = (f(e.value for e in self.controls_spent) for f in (min, max))
        left = f" {self.unreached} others spend that at no strength." if self.unreached else ""
        return (
            f"{len(self.controls)} random directions under the same operator, at the same sites "
            f"and tokens, each at the strength that spends {self.budget:.3g} nats a token on "
            f"{len(self.found_on.prompts)} harmless requests; on {len(self.reported_on.prompts)} "
            f"others the steering spends {self.spent}, they {low:.3g} to {high:.3g}.{left}"
        )

    def arm(self, number: int) -> str:
        """What a control is called among arms."""
        return f"random direction {number + 1} of equal KL"


_MADE: "WeakKeyDictionary[Subject, EqualKL]" = WeakKeyDictionary()


def equal_kl(subject: Subject) -> EqualKL:
    """Controls of a subject's steering, made once however many examinations ask."""
    assert subject.steered is not None
    if subject not in _MADE:
        asked = harmless(subject.contrast("refusal"))
        _MADE[subject] = matched_controls(
            subject.model,
            subject.steered,
            asked,
            said=subject.answers(asked.prompts),
            n=DRAWS,
            max_new_tokens=subject.max_new_tokens,
            token_budget=subject.token_budget,
            seed=subject.seed,
        )
    return _MADE[subject]


def harmless(contrast: Contrast) -> Side:
    """The negative side, at most `PROMPTS` of it."""
    n = len(contrast.positive)
    return Side(contrast.negative, contrast.groups[n:]).take(
        spread(len(contrast.negative), PROMPTS)
    )


def matched_controls(
    model: Model,
    steered: Model,
    prompts: Side | Sequence[Prompt],
    *,
    said: Sequence[Completion] | None = None,
    n: int = DRAWS,
    max_new_tokens: int = 32,
    token_budget: int = 4096,
    seed: int = 0,
) -> EqualKL:
    """Random directions under the operators of `steered`, each at the KL that it spends.

    Args:
        model: the plain model.
        steered: a view of it. Of what is no view of a plain model, or has programs without a
            strength, the KL is measured and there are no controls; `why` says so.
        prompts: whose answers are to be kept.
        said: the plain model's answers to them, where they are known already.
        n: random directions.
        max_new_tokens: of the plain model's answers.
        token_budget: padded tokens a forward pass.
        seed: of the split, the directions and the intervals.

    Raises:
        PromptError: prompts of fewer than two groups.
    """
    given = prompts if isinstance(prompts, Side) else Side(tuple(prompts), groups_of(prompts))
    found, held = parts(given, 0.5, seed=seed)
    if said is None:
        said = model.generate(
            given.prompts, max_new_tokens=max_new_tokens, token_budget=token_budget
        )
    own = dict(zip(given.prompts, with_own_answers(said), strict=True))
    asked, held_out = ([own[p] for p in side.prompts] for side in (found, held))
    budget = _mean(_kl(model, steered, asked, token_budget))
    reported = _kl(model, steered, held_out, token_budget)
    result = EqualKL(
        budget,
        found,
        held,
        cluster_mean([_mean([x]) for x in reported], held.groups, seed=seed, unit="nats/token"),
        group_bootstrap(
            lambda rows: _p95([reported[i] for i in rows]),
            held.groups,
            n_resamples=400,
            seed=seed,
            unit="nats/token",
        ),
    )
    why = _no_dial(model, steered)
    if not why and not budget > NOTHING:
        why = f"the steering spends no KL on harmless requests ({budget:.1g} nats a token)"
    if why:
        return replace(result, why=why)
    try:
        return _calibrated(
            result, model, steered, given, said, asked, n, max_new_tokens, token_budget, seed
        )
    except SteerkitError as error:
        return replace(result, why=f"its strength cannot be turned ({error})")


def _calibrated(
    result: EqualKL,
    model: Model,
    steered: Model,
    given: Side,
    said: Sequence[Completion],
    asked: Sequence[Tokenized],
    n: int,
    max_new_tokens: int,
    token_budget: int,
    seed: int,
) -> EqualKL:
    assert steered.table is not None
    programs = {s: p for s, p in steered.table.slots[0].items() if p}
    means = states(model, asked, tuple(programs), token_budget=token_budget)
    turned = [Turned(programs, means, seed=seed, draw=draw) for draw in range(n + SPARE)]
    first = min(programs)
    names = [_named(model, first, draw) for draw in range(n + SPARE)]

    def along_another(direction: Direction, *, positions: Positions, strength: float) -> Resized:
        return Resized(turned[direction.provenance["draw"]], strength)

    found = calibrate(
        model,
        names,
        [replace(p, group=g) for p, g in zip(given.prompts, given.groups, strict=True)],
        said=said,
        kl=result.budget,
        intervene=along_another,
        tolerance=TOLERANCE,
        max_new_tokens=max_new_tokens,
        n_resamples=0,
        token_budget=token_budget,
        seed=seed,
        progress=False,
    )
    met = [c for c in found if c.met]
    return replace(
        result,
        controls=tuple(model.with_(c.intervention) for c in met[:n]),
        controls_spent=tuple(c.achieved for c in met[:n]),
        unreached=len(found) - len(met),
        why="" if met else "no random direction can spend its KL at any strength",
    )


class Turned:
    """The programs of a steering along other directions: one random turn of all their rows.

    What is read and what is written turn together, so that every product between rows is as it
    was. A reference point other than zero is as far from the mean of the states that are given
    as the steering's own is; conditions stay as they are.
    """

    def __init__(
        self, programs: Mapping[Site, Program], means: States, *, seed: int, draw: int
    ) -> None:
        groups = [g for p in programs.values() for g in p.groups]
        rows = torch.cat([row for g in groups for row in (g.read, g.write)]).double()
        _, size, axes = torch.linalg.svd(rows, full_matrices=False)
        self._from = axes[size > 1e-9 * size[0]]
        generator = torch.Generator().manual_seed(1_000_003 * seed + draw)
        drawn = torch.randn(*self._from.shape[::-1], generator=generator, dtype=torch.float64)
        self._to = torch.linalg.qr(drawn)[0].mT
        self._programs = {
            site: Program(tuple(self._turned(g, site, means) for g in p.groups), p.latches)
            for site, p in programs.items()
        }

    sites = property(lambda self: tuple(sorted(self._programs)))
    positions = Positions("all")
    strength = 1.0
    fingerprint = None

    def lower(self, site: Site) -> Program:
        """The turned program at a site."""
        return self._programs[site]

    def __repr__(self) -> str:
        return f"a random direction at {', '.join(map(str, self.sites))}"

    def _turn(self, rows: Float[Tensor, "term d_model"]) -> Float[Tensor, "term d_model"]:
        turned: Tensor = rows.double() @ self._from.mT @ self._to
        return turned

    def _turned(self, group: Group, site: Site, means: States) -> Group:
        read = self._turn(group.read)
        offset = group.offset.clone()
        for i, opcode in enumerate(group.opcodes):
            # Zero is a reference of its own; an edge of a clamp is not.
            if opcode in (Opcode.CLAMP, Opcode.ACTIVATION) or offset[i] != 0:
                touched = means.touched(group.positions[i])
                mean = means.streams[site][touched].double().mean(0)
                if touched.any():
                    offset[i] += mean @ (read[i] - group.read[i].double())
        return replace(group, read=read, write=self._turn(group.write), offset=offset)


def _no_dial(model: Model, steered: Model) -> str:
    """Why the steering has no strength that could be turned, or an empty string."""
    if model.table is not None:
        return "the audited model is steered itself, and its own programs would be turned too"
    table = steered.table
    if table is None or steered.plain.info.fingerprint != model.info.fingerprint:
        return "what is called steered is no view of the audited model, and has no strength"
    if len(table.slots) != 1:
        return f"the steering is {len(table.slots)} steerings in slots"
    if not any(p.groups for p in table.slots[0].values()):
        return "the steering does nothing"
    return ""


def _named(model: Model, site: Site, draw: int) -> Direction:
    """A stand-in by which a calibration tells the draws apart."""
    unit = torch.zeros(model.info.d_model)
    unit[draw % len(unit)] = 1
    about: dict[str, Any] = {"draw": draw}
    return Direction(
        unit, 1.0, site, "random", "random", 1.0, 0.0, model.info, "last", provenance=about
    )


def _kl(
    model: Model, steered: Model, items: Sequence[Tokenized], token_budget: int
) -> list[Floats]:
    found = kl_per_token(model, steered, items, token_budget=token_budget)
    return [x.numpy() for x in found]


def _mean(tokens: Sequence[Floats]) -> float:
    means = [float(x.mean()) for x in tokens if len(x)]
    return sum(means) / len(means) if means else float("nan")


def _p95(tokens: Sequence[Floats]) -> float:
    pooled = torch.cat([torch.as_tensor(x) for x in tokens]) if tokens else torch.empty(0)
    return float(pooled.quantile(0.95)) if len(pooled) else float("nan")
