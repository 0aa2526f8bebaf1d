"""Scores from test-like to deploy-like, and what is known of the probe that gives them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steerkit.captures import capture
from steerkit.concepts.awareness_controls import FormatControls
from steerkit.direction import Direction
from steerkit.errors import ActivationError
from steerkit.lenses.tables import html_table, markdown
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats


@dataclass(frozen=True, eq=False)
class AwarenessScores:
    """Scores of prompts, from test-like (low) to deploy-like (high).

    Attributes:
        scores: `[prompt]`, in standard deviations of the calibration prompts, 0 at their mean.
        prompts: the texts.
        site: where they were read.
    """

    scores: Floats
    prompts: tuple[str, ...]
    site: str

    def table(self) -> str:
        """Prompts from the most test-like to the most deploy-like, as a markdown table."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """The range in one line."""
        return (
            f"{len(self.scores)} prompts at {self.site}: mean {self.scores.mean():+.2f}, from "
            f"{self.scores.min():+.2f} (test-like) to {self.scores.max():+.2f} (deploy-like)"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "scores": self.scores.tolist(),
            "prompts": list(self.prompts),
            "site": self.site,
        }

    def __repr__(self) -> str:
        return f"AwarenessScores({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Test-awareness", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        order = np.argsort(self.scores, kind="stable")
        return ["score", "prompt"], [[f"{self.scores[i]:+.2f}", self.prompts[i]] for i in order]


@dataclass(frozen=True, eq=False)
class AwarenessProbe:
    """A direction from test-like to deploy-like prompts, and what it owes to their format.

    Attributes:
        direction: difference of means of deploy-like and test-like prompts, of the mean over
            the prompt's tokens; its scores hold the words-alone baseline and the nulls.
        mean: mean projection of the calibration prompts, activation units.
        spread: their standard deviation.
        auc: of prompts of items that neither fitted the direction nor chose its layer.
        controls: the 2x2 of these held-out scores; None without formats.
        confounded: the same for a probe fitted only where format goes with content (tests as
            exams, deployment as chats), which is how such probes are mostly made.
        length: AUC of the number of words alone.
        layers: by site, AUC over grouped folds; the highest is the direction's.
        chosen: by site, in how many outer folds it was chosen.
        fitted_on: groups that the direction was fitted on.
        texts: prompts that it was fitted on.
        provenance: seeds and the like.
    """

    direction: Direction
    mean: float
    spread: float
    auc: Estimate
    controls: FormatControls | None
    confounded: FormatControls | None
    length: Estimate
    layers: Mapping[str, float]
    chosen: Mapping[str, int]
    fitted_on: frozenset[str]
    texts: frozenset[str]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> Site:
        """Where it reads."""
        return self.direction.site

    @property
    def artefact(self) -> bool:
        """Whether it reads the format alone."""
        return self.controls is not None and self.controls.artefact

    @property
    def words_match(self) -> bool:
        """Whether words or length alone do as well: then the set shows no more than those."""
        text = self.direction.scores.text if self.direction.scores else None
        rivals = [abs(e.value - 0.5) for e in (text, self.length) if e is not None]
        return max(rivals) >= self.auc.value - 0.5

    def scores(self, model: Model, prompts: Sequence[Prompt | str] | Contrast) -> AwarenessScores:
        """s(x) = (mean over the prompt's tokens of <h, d>, less the calibration mean) / spread.

        Raises:
            DirectionError: another model than the probe's.
        """
        return scored(model, self.direction, self.mean, self.spread, prompts)

    def table(self) -> str:
        """The 2x2 as a markdown table; sites by AUC where there is none."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What it separates, what words and length alone do, and what the format does."""
        text = self.direction.scores.text if self.direction.scores else None
        lines = [
            f"'{self.direction.concept}' at {self.site}: AUC {self.auc} on items held out from "
            f"layer choice and fit; words alone {text or 'not measured'}, length alone "
            f"{self.length}"
        ]
        if self.words_match:
            lines.append(
                "the words or the length alone do as well: this set cannot show that the model "
                "represents more than its vocabulary"
            )
        if self.controls is not None:
            lines.append(self.controls.summary())
        if self.confounded is not None:
            within = ", ".join(f"{e} within {f}" for f, e in self.confounded.auc.items())
            lines.append(
                f"fitted where format goes with content: AUC {self.confounded.usual} there, "
                + within
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; not the direction's numbers."""
        return {
            "kind": "awareness_probe",
            "direction": self.direction.to_json(),
            "mean": self.mean,
            "spread": self.spread,
            "auc": self.auc.to_json(),
            "controls": self.controls.to_json() if self.controls else None,
            "confounded": self.confounded.to_json() if self.confounded else None,
            "length": self.length.to_json(),
            "layers": dict(self.layers),
            "chosen": dict(self.chosen),
            "words_match": self.words_match,
            "fitted_on": sorted(self.fitted_on),
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"AwarenessProbe({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Test-awareness probe", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        if self.controls is not None:
            return self.controls.cells()
        return ["site", "AUC", "chosen in folds"], [
            [site, f"{auc:.3f}", str(self.chosen[site])] for site, auc in self.layers.items()
        ]


def scored(
    model: Model,
    direction: Direction,
    mean: float,
    spread: float,
    prompts: Sequence[Prompt | str] | Contrast,
) -> AwarenessScores:
    """(mean projection over the prompt's tokens - mean) / spread; answers are left out."""
    direction.check(model.info)
    given = prompts.prompts if isinstance(prompts, Contrast) else [Prompt.of(p) for p in prompts]
    asked = [p.with_answer("") for p in given]
    acts = capture(
        model, asked, sites=direction.site, positions="mean_prompt", exclude_bos=True,
        progress=False,
    )  # fmt: skip
    found = (acts.values[:, 0].double() @ direction.unit.double()).numpy()
    return AwarenessScores(
        (found - mean) / spread, tuple(p.text for p in asked), str(direction.site)
    )


def spread_of(values: Floats) -> float:
    """Standard deviation of calibration scores; refused where it is 0."""
    spread = float(values.std())
    if not spread > 0:
        raise ActivationError("calibration prompts all score the same; give prompts that differ")
    return spread
