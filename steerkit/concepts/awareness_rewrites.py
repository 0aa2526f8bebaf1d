"""Prompts rewritten to look more like deployment: what a held-out probe makes of the pick."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steerkit.captures import capture
from steerkit.concepts.awareness_elasticity import Elasticity, elasticity
from steerkit.concepts.awareness_result import AwarenessProbe
from steerkit.errors import MethodError, PromptError
from steerkit.lenses.tables import html_table, markdown
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.statistics import Estimate, Floats, cluster_mean

Behaviour = Callable[[Sequence[Prompt]], Sequence[float] | Floats]
"""Prompts -> one number each, such as whether the model refuses."""


@dataclass(frozen=True, eq=False)
class RewriteEffect:
    """What picking the most deploy-like of k rewrites does, told by a probe that did not pick.

    Changes are against the original, in standard deviations of the probe's calibration.

    Attributes:
        naive: of the picking probe's own score. The largest of k noisy numbers is large: this
            is what regresses, and nothing should be concluded from it.
        held_out: of the other probe's score, for the same picks.
        any_rewrite: of the other probe's score, for the mean rewrite.
        random_pick: the same for rewrites picked by random directions at the same site.
        excess: `held_out` less `random_pick`, item by item.
        cosine: of both probes' directions; NaN where they read different sites. The closer to
            1, the less the second probe is another opinion.
        behaviour: change of behaviour at the picks, if it was asked for.
        behaviour_any: the same at one rewrite an item that was drawn blindly.
        elasticity: change of behaviour over change of held-out score.
        picks: the chosen rewrite of each item.
        provenance: numbers and seeds.
    """

    naive: Estimate
    held_out: Estimate
    any_rewrite: Estimate
    random_pick: Estimate
    excess: Estimate
    cosine: float
    behaviour: Estimate | None
    behaviour_any: Estimate | None
    elasticity: Elasticity | None
    picks: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """The held-out change beside what any rewrite does."""
        lines = [
            f"picked rewrites: held-out score {self.held_out} (the picking probe says "
            f"{self.naive}, which is biased); any rewrite {self.any_rewrite}, picked by random "
            f"directions {self.random_pick}; excess {self.excess}"
        ]
        if self.behaviour is not None:
            lines.append(
                f"behaviour {self.behaviour}, at blind rewrites {self.behaviour_any}; "
                f"elasticity {self.elasticity}"
            )
        return "\n".join(lines)

    def table(self) -> str:
        """All changes as a markdown table."""
        return markdown(*self._rows())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; `picks` holds prompts."""
        names = (
            "naive", "held_out", "any_rewrite", "random_pick", "excess", "behaviour",
            "behaviour_any", "elasticity",
        )  # fmt: skip
        return {
            **{n: getattr(self, n).to_json() if getattr(self, n) else None for n in names},
            "cosine": None if np.isnan(self.cosine) else self.cosine,
            "picks": list(self.picks),
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"RewriteEffect({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Rewrites towards deployment", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            ("score by the probe that picked (biased)", self.naive),
            ("score by the held-out probe", self.held_out),
            ("of any rewrite", self.any_rewrite),
            ("of picks by random directions", self.random_pick),
            ("excess over random picks", self.excess),
            ("behaviour", self.behaviour),
            ("behaviour at blind rewrites", self.behaviour_any),
            ("elasticity", self.elasticity),
        ]
        return ["change against the original", "value [95%]"], [
            [name, str(value)] for name, value in rows if value is not None
        ]


def rewrite_effect(
    model: Model,
    chooser: AwarenessProbe,
    judge: AwarenessProbe,
    rewrites: Mapping[str, Sequence[str | Prompt]],
    *,
    groups: Mapping[str, str] | None = None,
    behaviour: Behaviour | None = None,
    n_random: int = 99,
    n_resamples: int = 2000,
    seed: int = 0,
) -> RewriteEffect:
    """Pick the most deploy-like of k rewrites by one probe, and measure it by another.

    Args:
        model: plain or steered.
        chooser: picks.
        judge: measures; fitted on groups that the chooser never saw (`contrast.split(0.5)`).
        rewrites: text of an original -> its rewrites, two at least, that mean the same.
        groups: text of an original -> its group; each is its own by default.
        behaviour: prompts -> a number each; for the elasticity.
        n_random: random directions that pick as well.
        n_resamples: of groups.
        seed: of blind picks, random directions and intervals.

    Raises:
        MethodError: probes that were fitted on common groups.
        PromptError: no originals, or one with fewer than two rewrites.
        DirectionError: a probe of another model.
    """
    shared = chooser.fitted_on & judge.fitted_on
    if shared:
        raise MethodError(
            f"both probes were fitted on {len(shared)} common groups, such as "
            f"'{min(shared)}': what one picks the other must not have learned from; fit them on "
            "the halves of contrast.split(0.5)"
        )
    originals = list(rewrites)
    few = [text for text in originals if len(rewrites[text]) < 2 or isinstance(rewrites[text], str)]
    if len(originals) < 2 or few:
        raise PromptError(
            "give at least two originals with two rewrites each, as a list; "
            + (f"{few[0][:60]!r} has fewer" if few else f"got {len(originals)} originals")
        )
    chooser.direction.check(model.info)
    known = {t for t in originals if t in chooser.texts | judge.texts}
    if known:
        raise MethodError(
            f"{len(known)} originals are among the prompts that a probe was fitted on, such as "
            f"{min(known)[:60]!r}; measure on others"
        )
    texts = [Prompt.of(t) for t in originals]
    others = [Prompt.of(r) for t in originals for r in rewrites[t]]
    owner = np.repeat(np.arange(len(originals)), [len(rewrites[t]) for t in originals])
    names = [(groups or {}).get(t, f"item{i}") for i, t in enumerate(originals)]
    both = [*texts, *others]
    a, b = (p.scores(model, both).scores for p in (chooser, judge))
    n = len(originals)
    random = _random_scores(model, chooser, others, n_random, seed)
    change = changes(a[:n], a[n:], b[:n], b[n:], owner, random)
    blind = np.array(
        [np.random.default_rng((seed, i)).choice(np.flatnonzero(owner == i)) for i in range(n)]
    )
    acted = None
    if behaviour is not None:
        asked = [*texts, *(others[i] for i in change["pick"]), *(others[i] for i in blind)]
        acted = np.asarray(behaviour(asked), dtype=np.float64).reshape(3, n)

    def mean(values: Floats, unit: str = "standard deviations") -> Estimate:
        return cluster_mean(values, names, n_resamples=n_resamples, seed=seed, unit=unit)

    same = chooser.site == judge.site
    return RewriteEffect(
        naive=mean(change["naive"]),
        held_out=mean(change["held_out"]),
        any_rewrite=mean(change["any"]),
        random_pick=mean(change["random"]),
        excess=mean(change["held_out"] - change["random"]),
        cosine=float(chooser.direction.unit @ judge.direction.unit) if same else float("nan"),
        behaviour=mean(acted[1] - acted[0], "behaviour") if acted is not None else None,
        behaviour_any=mean(acted[2] - acted[0], "behaviour") if acted is not None else None,
        elasticity=(
            elasticity(acted[1] - acted[0], change["held_out"], names, n_resamples, seed)
            if acted is not None
            else None
        ),
        picks=tuple(others[i].text for i in change["pick"]),
        provenance={
            "items": n,
            "rewrites": len(others),
            "n_random": n_random,
            "chooser": str(chooser.site),
            "judge": str(judge.site),
            "seed": seed,
        },
    )


def changes(
    a: Floats,
    a_rewrites: Floats,
    b: Floats,
    b_rewrites: Floats,
    owner: NDArray[np.int64],
    random: Floats,
) -> dict[str, NDArray[Any]]:
    """Changes of score of every item, by who picks and who measures.

    Args:
        a: scores of the originals by the probe that picks, `[item]`.
        a_rewrites: of the rewrites, `[rewrite]`.
        b: of the originals by the probe that measures.
        b_rewrites: of the rewrites.
        owner: the item of each rewrite.
        random: scores of the rewrites by random directions, `[rewrite direction]`.
    """
    n = len(a)
    rows = [np.flatnonzero(owner == i) for i in range(n)]
    pick = np.array([r[np.argmax(a_rewrites[r])] for r in rows])
    drawn = [b_rewrites[r[np.argmax(random[r], axis=0)]].mean() for r in rows]
    mean = np.array([b_rewrites[r].mean() for r in rows])
    return {
        "pick": pick,
        "naive": a_rewrites[pick] - a,
        "held_out": b_rewrites[pick] - b,
        "any": mean - b,
        "random": (np.array(drawn) if random.shape[1] else mean) - b,
    }


def _random_scores(
    model: Model, probe: AwarenessProbe, prompts: Sequence[Prompt], n: int, seed: int
) -> Floats:
    """Mean projections of prompts on random directions at the probe's site, `[prompt n]`."""
    rows = capture(
        model, [p.with_answer("") for p in prompts], sites=probe.site, positions="mean_prompt",
        exclude_bos=True, progress=False,
    ).values[:, 0].double()  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    found: Floats = (
        rows @ torch.randn(rows.shape[1], n, generator=generator, dtype=torch.float64)
    ).numpy()
    return found
