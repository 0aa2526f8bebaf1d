"""Is this model being steered? A detector that knows some prompts, and what it cannot see.

Two looks. `paired`: on the prompts that it was fitted with, a model without sampling gives the
same states each time, so any deviation from the recorded ones beyond what batch shapes (and
the benign variants it was shown) explain is a change of the model. `unseen`: on any other
prompts, states that lie further from the clean ones than clean prompts' do: Mahalanobis
distance under a shrunk covariance, the norm, and the projections on directions that one has
reason to suspect. Both read what the network computes, so
that hooks, edited weights and a steered Hugging Face object look alike.

It cannot see a gate that stays shut on its prompts, positions or sites that do not reach the
tokens it reads, changes below its tolerance, and it cannot tell steering from a fine-tune that
it was not shown. Silence is not proof.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Tokenized
from steerkit.errors import ModelError
from steerkit.files import read_tensors, write_tensors
from steerkit.protocols import Model, ModelInfo
from steerkit.redteam.clean import Clean, fitted, raw_scores
from steerkit.redteam.finding import DetectorScores, Finding, finding
from steerkit.redteam.outside import can_read_outside, read_outside
from steerkit.redteam.places import POINTS, Asked, Known, known_prompts, place_names, read_states
from steerkit.scoring import TOKEN_BUDGET
from steerkit.site import Site
from steerkit.statistics import Floats

KIND = "detector"
Mode = Literal["paired", "unseen"]
RATE = 0.01
"""Share of clean prompts that may be flagged, by default."""
MARGIN = 4.0
"""Deviations this many times those of other batch shapes still count as rounding: other
machines and kernels round otherwise."""


@dataclass(frozen=True, eq=False)
class Detector:
    """What a clean model does on known prompts, and how far from it clean prompts stray.

    Attributes:
        info: the model that it was fitted on.
        known: the prompts, as tokens with answers.
        sites: where it looks, in forward order.
        states: `[prompt place d_model]`, the recorded states.
        logits: `[prompt point vocab]`, the recorded logits less their mean, or None.
        scale: root mean square deviation of benign runs at each place, relative.
        paired_calibration: the paired score of every benign run of every known prompt.
        raw_calibration: `[run place 3]`, distance, norm shift and projection shift of clean
            prompts that the fit had not seen, by cross-fitting over groups.
        margin: what the paired threshold is multiplied by.
        rate: share of clean prompts that may be flagged.
        suspected: site -> unit vectors whose projections are watched there.
        provenance: settings, and which benign variants were shown.
    """

    info: ModelInfo
    known: Known
    sites: tuple[Site, ...]
    states: Float[Tensor, "prompt place d_model"]
    logits: Tensor | None
    scale: Floats
    paired_calibration: Floats
    raw_calibration: Floats
    margin: float
    rate: float = RATE
    suspected: Mapping[Site, Float[Tensor, "k d_model"]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Names of the places of a paired score; those of an unseen one lack the output."""
        return place_names(self.sites, outputs=self.logits is not None)

    @cached_property
    def clean(self) -> tuple[Clean, ...]:
        """How clean states lie at each place, fitted on all known prompts."""
        return fitted(self.states, self.sites, self.suspected)

    @cached_property
    def _unseen_unit(self) -> tuple[Floats, Floats]:
        """Median and robust spread of each measure at each place."""
        median = np.median(self.raw_calibration, axis=0)
        spread = 1.4826 * np.median(np.abs(self.raw_calibration - median), axis=0)
        return median, np.maximum(spread, 1e-9)

    @cached_property
    def unseen_calibration(self) -> Floats:
        """Unseen scores of clean prompts at each place, `[run place]`."""
        return self._standardised(self.raw_calibration)

    def threshold(self, mode: Mode, *, answered: bool = True) -> tuple[float, int, int]:
        """(threshold, its rank, number of calibration scores) at the false positive rate.

        With too few calibration scores it is the largest of them, and the rate 1 / (1 + their
        number). At 1% that is so below 199: then a single odd prompt, such as one that ends
        in another token than all others, can blind the look at unseen prompts. The rate is for
        prompts of the kind that was fitted: other templates and words stray further, and are
        flagged more often.
        """
        if mode == "paired":
            scores, margin = self.paired_calibration, self.margin
        else:
            scores, margin = self.unseen_calibration[:, self._columns(answered)].max(1), 1.0
        rank = min(len(scores), int(np.ceil((len(scores) + 1) * (1 - self.rate))))
        return float(np.sort(scores)[rank - 1]) * margin, rank, len(scores)

    def score(self, model: Model, prompts: Asked | Known | None = None) -> DetectorScores:
        """Scores of a suspect, one a prompt and place.

        Args:
            model: the suspect, of the same shape; whatever steers it, this reads its network.
            prompts: other prompts than the known ones; where they have no answers, only the
                end of the prompt is looked at. By default the known ones, paired.

        Raises:
            ModelError: a model of another shape.
        """
        asked = None if prompts is None else known_prompts(model, prompts, answer=False)
        return self.score_slots(model, None, asked)[0]

    def score_slots(
        self,
        model: Model,
        slots: Sequence[int] | None,
        prompts: Known | None = None,
        *,
        token_budget: int = TOKEN_BUDGET,
    ) -> list[DetectorScores]:
        """`score` of every program of a view, in batches; without slots, of the model as it is."""
        self.check(model)
        mode: Mode = "paired" if prompts is None else "unseen"
        asked = self.known if prompts is None else prompts
        return [
            self._scores(mode, asked, states[i], None if logits is None else logits[i])
            for states, logits in self._read(model, mode, asked, slots, token_budget)
            for i in range(len(states))
        ]

    def judge(self, model: Model, prompts: Asked | Known | None = None) -> Finding:
        """Whether a suspect is being steered, where it first shows, and along what.

        Args:
            model: the suspect.
            prompts: as in `score`.

        Raises:
            ModelError: a model of another shape.
        """
        self.check(model)
        mode: Mode = "paired" if prompts is None else "unseen"
        asked = self.known if prompts is None else known_prompts(model, prompts, answer=False)
        states, logits = next(self._read(model, mode, asked, None, TOKEN_BUDGET))
        scores = self._scores(mode, asked, states[0], None if logits is None else logits[0])
        delta = states[0].double() - self.states.double() if mode == "paired" else None
        same = model.info.fingerprint == self.info.fingerprint
        dtypes = (self.info.dtype, model.info.dtype)
        return finding(scores, same_weights=same, dtypes=dtypes, delta=delta)

    def deviations(
        self, states: Float[Tensor, "prompt place d_model"], logits: Tensor | None
    ) -> Floats:
        """Relative distance from the recorded states (and logits), `[prompt place]`."""
        pairs = [(states, self.states)]
        if self.logits is not None and logits is not None:
            pairs.append((logits, self.logits))
        parts = [
            (
                (new.double() - old.double()).norm(dim=-1)
                / old.double().norm(dim=-1).clamp_min(1e-30)
            )
            for new, old in pairs
        ]
        return torch.cat(parts, 1).numpy()

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file. It holds prompts as token ids; keep it as private as them."""
        return write_tensors(
            Path(path),
            KIND,
            {
                "states": self.states,
                "scale": torch.tensor(self.scale),
                "paired_calibration": torch.tensor(self.paired_calibration),
                "raw_calibration": torch.tensor(self.raw_calibration),
                **({} if self.logits is None else {"logits": self.logits}),
                **{f"suspected.{site}": rows for site, rows in self.suspected.items()},
            },
            {
                "info": self.info.to_json(),
                "items": [[list(i.prompt), list(i.answer)] for i in self.known.items],
                "groups": list(self.known.groups),
                "sites": [str(s) for s in self.sites],
                "margin": self.margin,
                "rate": self.rate,
                "provenance": dict(self.provenance),
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "Detector":
        """Read what `save` wrote."""
        tensors, header = read_tensors(Path(path), KIND)
        items = tuple(Tokenized(tuple(p), tuple(a)) for p, a in header["items"])
        return cls(
            ModelInfo.from_json(header["info"]),
            Known(items, tuple(header["groups"])),
            tuple(Site.parse(s) for s in header["sites"]),
            tensors["states"],
            tensors.get("logits"),
            tensors["scale"].numpy(),
            tensors["paired_calibration"].numpy(),
            tensors["raw_calibration"].numpy(),
            float(header["margin"]),
            float(header["rate"]),
            {
                Site.parse(name.removeprefix("suspected.")): rows
                for name, rows in tensors.items()
                if name.startswith("suspected.")
            },
            header["provenance"],
        )

    def _read(
        self,
        model: Model,
        mode: Mode,
        asked: Known,
        slots: Sequence[int] | None,
        token_budget: int,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """States and logits of every slot; of a plain network as its callers see it."""
        outputs = mode == "paired" and self.logits is not None
        if slots is None and token_budget > 1 and can_read_outside(model, self.sites):
            states, logits = read_outside(model, asked.items, self.sites, outputs=outputs)
            yield states[None], None if logits is None else logits[None]
            return
        yield from read_states(
            model,
            asked.items,
            self.sites,
            slots=slots,
            outputs=outputs,
            token_budget=token_budget,
        )

    def _scores(
        self, mode: Mode, asked: Known, states: Tensor, logits: Tensor | None
    ) -> DetectorScores:
        """The scores of one slot."""
        limit, rank, n = self.threshold(mode, answered=asked.answered)
        if mode == "paired":
            # What lies within the tolerance is no deviation, so that it is all equal.
            values = np.maximum(self.deviations(states, logits) / self.scale, limit)
            names = self.places
        else:
            keep = self._columns(asked.answered)
            values = self._standardised(raw_scores(self.clean, states))[:, keep]
            names = place_names(self.sites, outputs=False)[keep]
        return DetectorScores(mode, names, values, limit, rank, n, asked.groups)

    def _standardised(self, raw: Floats) -> Floats:
        """The largest of all measures in robust standard deviations, `[prompt place]`."""
        median, spread = self._unseen_unit
        largest: Floats = ((raw - median) / spread).max(-1)
        return largest

    def _columns(self, answered: bool) -> Any:
        """Places that may be looked at: without answers, only the ends of prompts."""
        return slice(None) if answered else slice(None, None, len(POINTS))

    def check(self, model: Model) -> None:
        """Refuse a model of another shape.

        Raises:
            ModelError: it has other layers, width or vocabulary.
        """
        info = model.info
        ours, theirs = ((i.n_layers, i.d_model, i.d_vocab) for i in (self.info, info))
        if ours != theirs:
            raise ModelError(
                f"the detector was fitted on {self.info.name} (layers, width, vocabulary: {ours}), "
                f"which {info.name} {theirs} is not a variant of; fit one on a model of its shape"
            )

    def __repr__(self) -> str:
        _, _, n = self.threshold("unseen")
        return (
            f"Detector({self.info.name}, {len(self.known)} known prompts, {len(self.places)} "
            f"places, false positives from {max(self.rate, 1 / (1 + n)):.1%})"
        )
