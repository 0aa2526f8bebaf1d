"""How strong an attack has to be before a detector sees it: ROC against strength."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from steerkit.direction import Direction
from steerkit.errors import MethodError, SiteError
from steerkit.extraction.ranking import auc_columns, fold_auc
from steerkit.interventions import Ablate, Add, Rotate
from steerkit.protocols import Intervention, Model
from steerkit.redteam.detector import RATE, Detector
from steerkit.redteam.finding import BLIND, DetectorScores
from steerkit.redteam.places import POINTS, Asked, Known, known_prompts
from steerkit.redteam.result import fragment, markdown
from steerkit.searches.measure import views
from steerkit.searches.states import states
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats, cluster_mean

Family = Callable[[float], Intervention | Sequence[Intervention]]
"""Strength -> an intervention, or several draws of one."""
STRENGTHS = (1e-7, 1e-6, 1e-5, 1e-3, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
POINTS_OF_CURVE = 101


@dataclass(frozen=True, eq=False)
class PowerRow:
    """One attack at one strength under one look.

    Attributes:
        attack: its name; `none` is the clean model run once more.
        strength: as the attack counts it.
        size: mean |delta h| over mean |h| at its site, over all tokens.
        mode: `paired` or `unseen`.
        auc: attacked against clean prompts, over combined scores.
        rate: share of attacked prompts that are flagged.
        first: the first place where most prompts are above the threshold, or None.
        places: AUC at each place, in the order of `DetectionPower.places[mode]`.
        curve: false positive and true positive rates, `[2 point]`.
    """

    attack: str
    strength: float
    size: float
    mode: str
    auc: Estimate
    rate: Estimate
    first: str | None
    places: tuple[float, ...]
    curve: tuple[tuple[float, ...], tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "auc": self.auc.to_json(),
            "rate": self.rate.to_json(),
            "places": list(self.places),
            "curve": [list(axis) for axis in self.curve],
        }


@dataclass(frozen=True, eq=False)
class DetectionPower:
    """What a detector sees of which attack, from which strength on.

    Attributes:
        rows: by attack, look and strength; strength 0 first.
        false_positives: share of clean prompts flagged, by look.
        places: names of the places, by look.
        provenance: the model, the detector, how many prompts.
    """

    rows: tuple[PowerRow, ...]
    false_positives: Mapping[str, Estimate]
    places: Mapping[str, tuple[str, ...]]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def of(self, attack: str, mode: str) -> tuple[PowerRow, ...]:
        """The rows of one attack under one look, strength 0 first."""
        return tuple(r for r in self.rows if r.mode == mode and r.attack in (attack, "none"))

    @property
    def false_alarms(self) -> tuple[str, ...]:
        """Looks whose false positives are above the rate that was asked for, beyond chance."""
        rate = float(self.provenance.get("rate", RATE))
        return tuple(mode for mode, e in self.false_positives.items() if e.low > rate)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks."""
        return tuple(dict.fromkeys(r.attack for r in self.rows if r.attack != "none"))

    def weakest(self, attack: str, mode: str, *, rate: float = 0.9) -> PowerRow | None:
        """The weakest strength from which on at least `rate` of prompts are flagged."""
        found = None
        for row in reversed(self.of(attack, mode)):
            if row.rate.value < rate:
                break
            found = row
        return found

    def summary(self) -> str:
        """From which strength on each attack is seen, and what is not seen."""
        lines = []
        for attack in self.attacks:
            for mode in self.places:
                row = self.weakest(attack, mode)
                seen = (
                    f"nine of ten prompts flagged from strength {row.strength:g} on "
                    f"({row.size:.2%} of the stream's norm), first at {row.first}"
                    if row
                    else "nine of ten prompts are flagged at no strength tried"
                )
                lines.append(f"{attack}, {mode}: {seen}")
        rates = ", ".join(f"{e} {mode}" for mode, e in self.false_positives.items())
        lines.append(f"false positives: {rates}")
        lines += [
            f"the {mode} look flags clean prompts of this kind too often for its flags to count; "
            "fit on prompts of this kind too"
            for mode in self.false_alarms
        ]
        return "\n".join([*lines, BLIND])

    __str__ = summary

    def __repr__(self) -> str:
        return f"DetectionPower({self.summary()})"

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows of the table."""
        head = ("attack", "look", "strength", "size", "AUC", "flagged", "first seen at")
        return head, [
            (r.attack, r.mode, f"{r.strength:g}", f"{r.size:.2%}", str(r.auc), str(r.rate),
             r.first or "–")
            for r in self.rows
        ]  # fmt: skip

    def table(self) -> str:
        """Every attack, look and strength, as a markdown table."""
        return markdown(*self.cells())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, without prompts."""
        return {
            "kind": "detection_power",
            "rows": [r.to_json() for r in self.rows],
            "false_positives": {k: e.to_json() for k, e in self.false_positives.items()},
            "places": {k: list(v) for k, v in self.places.items()},
            "provenance": dict(self.provenance),
            "blind_to": BLIND,
        }

    def _repr_html_(self) -> str:
        return fragment(self.summary(), *self.cells())


def attack_families(direction: Direction, *, n_random: int = 5, seed: int = 0) -> dict[str, Family]:
    """Addition, ablation and rotation along a direction, and addition of random ones.

    Random directions are added at the same norm. Ablation moves towards the negative class's
    mean by the fraction `strength`; rotation turns by `strength` x 90 degrees in the plane of
    the direction and a random one.
    """
    # Apart from `random_direction` of the same seed, which would draw the very same vector.
    generator = torch.Generator().manual_seed(seed + 7919)
    drawn = torch.randn(n_random + 1, direction.model.d_model, generator=generator)
    others = [
        replace(
            direction,
            unit=row / row.norm(),
            method="random",
            scores=None,
            polarity=0,
            calibrations=(),
        )
        for row in drawn
    ]
    return {
        "add": lambda c: Add(direction, strength=c),
        "ablate": lambda c: Ablate(direction, reference="negative_mean", strength=c),
        "rotate": lambda c: Rotate((direction, others[0]), by=90 * c),
        "add random": lambda c: [Add(d, strength=c) for d in others[1:]],
    }


def random_direction(detector: Detector, site: Site, *, seed: int = 0) -> Direction:
    """A random direction at a site, of the mean norm of the known prompts' last tokens there.

    Strengths then count in fractions of the stream's norm, for models that no direction is
    known of.

    Raises:
        SiteError: a site where the detector does not look.
    """
    if site not in detector.sites:
        raise SiteError(
            f"the detector does not look at {site}, but at {', '.join(map(str, detector.sites))}"
        )
    h = detector.states[:, len(POINTS) * detector.sites.index(site)].double()
    unit = torch.randn(h.shape[1], generator=torch.Generator().manual_seed(seed)).double()
    unit = unit / unit.norm()
    scale = float(h.norm(dim=1).mean())
    middle = float((h @ unit).mean())
    return Direction(
        unit=unit.float(),
        scale=scale,
        site=site,
        method="random",
        concept="nothing",
        positive_mean=middle + scale / 2,
        negative_mean=middle - scale / 2,
        model=detector.info,
        pooling="last",
    )


def detection_power(
    model: Model,
    detector: Detector,
    attacks: Mapping[str, Family],
    prompts: Asked | Known,
    *,
    strengths: Sequence[float] = STRENGTHS,
    max_new_tokens: int = 16,
    seed: int = 0,
) -> DetectionPower:
    """ROC of a detector against strength, on its known prompts and on others.

    Clean prompts run once more, one at a time instead of in batches, so that rounding is
    among the negatives; strength 0 is the clean model in batches against that.

    Args:
        model: the clean model.
        detector: fitted on it.
        attacks: name -> strength -> intervention(s); see `attack_families`.
        prompts: none that the detector was fitted on, best of other templates.
        strengths: positive, ascending.
        max_new_tokens: of the clean model's answers.
        seed: of intervals.

    Raises:
        MethodError: no strengths, or prompts that the detector was fitted on.
    """
    doses = sorted({float(s) for s in strengths})
    if not doses or doses[0] <= 0 or not attacks:
        raise MethodError(f"give attacks and positive strengths; got {list(strengths)}")
    others = known_prompts(model, prompts, max_new_tokens=max_new_tokens)
    shared = {i.prompt for i in others.items} & {i.prompt for i in detector.known.items}
    if shared:
        raise MethodError(
            f"{len(shared)} of {len(others)} prompts are among those the detector was fitted on; "
            "give others, so that false positives are honest"
        )
    cells = [
        (name, c, one) for name, make in attacks.items() for c in doses for one in _all(make(c))
    ]
    sizes = _sizes(model, others, [one for *_, one in cells])
    plain = model.plain
    rows: list[PowerRow] = []
    false: dict[str, Estimate] = {}
    places: dict[str, tuple[str, ...]] = {}
    for mode, asked in (("paired", None), ("unseen", others)):
        (clean,) = detector.score_slots(plain, None, asked, token_budget=1)
        (again,) = detector.score_slots(plain, None, asked)
        found: list[DetectorScores] = []
        for view, slots in views(plain, [one for *_, one in cells]):
            found += detector.score_slots(view, slots, asked)
        false[mode], places[mode] = clean.rate, clean.places
        rows.append(_row("none", 0.0, 0.0, clean, [again], seed))
        for name in attacks:
            for c in doses:
                at = [i for i, (n, dose, _) in enumerate(cells) if (n, dose) == (name, c)]
                size = float(np.mean([sizes[i] for i in at]))
                rows.append(_row(name, c, size, clean, [found[i] for i in at], seed))
    return DetectionPower(
        tuple(rows),
        false,
        places,
        {
            "model": model.info.to_json(),
            "known": len(detector.known),
            "others": len(others),
            "rate": detector.rate,
            "detector": dict(detector.provenance),
            "seed": seed,
        },
    )


def _all(made: Intervention | Sequence[Intervention]) -> list[Intervention]:
    return list(made) if isinstance(made, Sequence) else [made]


def _sizes(model: Model, asked: Known, interventions: Sequence[Intervention]) -> list[float]:
    """Mean |delta h| over mean |h| of each, at its own first site."""
    sites = sorted({site for one in interventions for site in one.sites})
    met = states(model.plain, asked.items, sites)
    norms = {site: float(met.streams[site].norm(dim=-1).mean()) for site in sites}
    return [met.size(one) / norms[one.sites[0]] for one in interventions]


def _row(
    attack: str,
    strength: float,
    size: float,
    clean: DetectorScores,
    attacked: Sequence[DetectorScores],
    seed: int,
) -> PowerRow:
    """Clean prompts against attacked ones; several draws are pooled, with the same groups."""
    groups = [*clean.groups, *(g for s in attacked for g in s.groups)]
    labels = np.array([0] * len(clean.groups) + [1] * (len(groups) - len(clean.groups)))
    combined = np.concatenate([clean.combined, *(s.combined for s in attacked)])
    each = np.concatenate([clean.values, *(s.values for s in attacked)])
    fold = np.zeros(len(labels), dtype=np.int64)
    lit = np.mean([s.lit for s in attacked], axis=0)
    over = np.flatnonzero(lit > 0.5)
    return PowerRow(
        attack,
        strength,
        size,
        clean.mode,
        fold_auc(combined, labels, fold, groups, seed=seed),
        cluster_mean(
            np.concatenate([s.flagged for s in attacked]),
            [g for s in attacked for g in s.groups],
            unit="fraction",
        ),
        clean.places[over[0]] if len(over) else None,
        tuple(auc_columns(each, labels)[0].tolist()),
        roc(combined, labels),
    )


def roc(scores: Floats, labels: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """False and true positive rates over all thresholds, from (0, 0) to (1, 1).

    >>> roc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    ((0.0, 0.0, 0.5, 0.5, 1.0), (0.0, 0.5, 0.5, 1.0, 1.0))
    """
    y = np.asarray(labels).astype(bool)
    cuts = np.unique(scores)[::-1]
    if len(cuts) > POINTS_OF_CURVE:
        cuts = np.quantile(scores, np.linspace(1, 0, POINTS_OF_CURVE), method="higher")
    false = [0.0, *(float((scores[~y] >= c).mean()) for c in cuts)]
    true = [0.0, *(float((scores[y] >= c).mean()) for c in cuts)]
    return tuple(false), tuple(true)
