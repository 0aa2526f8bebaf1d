"""A direction in a stream: steering vector, concept activation vector, refusal direction."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.calibrated import CalibratedStrength
from steerkit.effect import HeldOutEffect
from steerkit.errors import DirectionError
from steerkit.files import read_tensors, write_tensors
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.statistics import Estimate, Null

KIND = "directions"


@dataclass(frozen=True)
class ProbeScores:
    """How well the projection separates held-out prompts, and what chance and text give.

    Attributes:
        auc: cross-validated AUC over folds grouped by pair; the direction is refitted in each.
        permutation: the same AUC with labels permuted within pairs.
        random: AUC of random directions (absolute distance from 0.5, put back above 0.5).
        text: TF-IDF + logistic regression on the same folds; None where prompts are not text.
        shaped: like `random`, for directions drawn with the covariance of the activations.
        family: like `permutation`, for the largest AUC over every site and method that was
            tried together: its p is corrected for the search.
    """

    auc: Estimate
    permutation: Null
    random: Null
    text: Estimate | None = None
    shaped: Null | None = None
    family: Null | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "auc": self.auc.to_json(),
            "permutation": self.permutation.to_json(),
            "random": self.random.to_json(),
            "text": self.text.to_json() if self.text else None,
            "shaped": self.shaped.to_json() if self.shaped else None,
            "family": self.family.to_json() if self.family else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ProbeScores":
        """The inverse of `to_json`."""
        return cls(
            Estimate(**data["auc"]),
            Null(**data["permutation"]),
            Null(**data["random"]),
            Estimate(**data["text"]) if data.get("text") else None,
            Null(**data["shaped"]) if data.get("shaped") else None,
            Null(**data["family"]) if data.get("family") else None,
        )


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit vector at a site, with what it takes to use it and to trust it.

    Attributes:
        unit: `[d_model]`, float32, norm 1, pointing to the positive class.
        scale: gap between the class means along `unit`, in activation units, > 0. Strengths
            are counted in multiples of it.
        site: where it was read.
        method: the extractor's name.
        concept: the contrast's name.
        positive_mean: mean projection of the positive class, in activation units.
        negative_mean: mean projection of the negative class.
        polarity: +1 if positives project higher than negatives on held-out folds, -1 if
            the direction disagrees out of sample, 0 if never checked.
        scores: held-out separation with its nulls, or None.
        model: the model it was taken from.
        pooling: which tokens it was read at.
        examples: prompts that project highest (first) and lowest, `(text, projection)`.
        tokens: tokens the unembedding reads towards (first) and away.
        provenance: prompt hash, seeds, versions.
        calibrations: strengths that were measured to do so much, by `calibrate`.
        effects: what adding it does to the output on held-out prompts, where that was measured
            while it was made (`gradient_direction`, `train_direction`).
    """

    unit: Float[Tensor, "d_model"]
    scale: float
    site: Site
    method: str
    concept: str
    positive_mean: float
    negative_mean: float
    model: ModelInfo
    pooling: str
    polarity: int = 0
    scores: ProbeScores | None = None
    examples: tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]] = ((), ())
    tokens: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibrations: tuple[CalibratedStrength, ...] = ()
    effects: tuple[HeldOutEffect, ...] = ()

    def __post_init__(self) -> None:
        unit = self.unit.detach().to("cpu", torch.float32)
        if unit.ndim != 1 or unit.shape[0] != self.model.d_model:
            raise DirectionError(
                f"a direction of {self.model.name} has shape ({self.model.d_model},); "
                f"got {tuple(unit.shape)}"
            )
        norm = float(unit.double().norm())
        if not 0.999 < norm < 1.001:
            raise DirectionError(
                f"the unit of the {self.method} direction at {self.site} has norm {norm:.4g}, "
                "expected 1; divide by the norm and put the size into `scale`"
            )
        if not self.scale > 0:
            raise DirectionError(
                f"the {self.method} direction at {self.site} has scale {self.scale}: the class "
                "means do not differ along it, or in the wrong order; there is nothing to steer by"
            )
        object.__setattr__(self, "unit", unit)

    @property
    def vector(self) -> Float[Tensor, "d_model"]:
        """The steering vector, scale x unit."""
        return self.unit * self.scale

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model it was taken from."""
        return self.model.fingerprint

    def check(self, info: ModelInfo, *, force: bool = False) -> None:
        """Refuse another model than the one it was taken from.

        `force=True` allows another model of the same width; the result is then yours to defend.
        """
        if info.d_model != self.model.d_model:
            raise DirectionError(
                f"this direction has width {self.model.d_model} ({self.model.name}); "
                f"{info.name} has {info.d_model}"
            )
        if info.fingerprint != self.model.fingerprint and not force:
            why = (
                f"the same weights under other processing ({self.model.processing} against "
                f"{info.processing})"
                if info.name == self.model.name and info.processing != self.model.processing
                else f"{self.model.name} ({self.model.fingerprint[:12]})"
            )
            raise DirectionError(
                f"this direction was taken on {why}, not on {info.name} "
                f"({info.fingerprint[:12]}); extract it again there, or pass force=True to "
                "study transfer"
            )

    def project(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead"]:
        """Projection on the unit, in activation units."""
        return x.to(torch.float32) @ self.unit.to(x.device)

    def at(self, site: Site | int | str) -> "Direction":
        """The same vector used at another site."""
        there = Site.parse(site)
        if there == self.site:
            return self
        return replace(self, site=there, calibrations=(), effects=())

    def __neg__(self) -> "Direction":
        high, low = (tuple((t, -p) for t, p in side) for side in self.examples)
        opposite = self.concept.removeprefix("not ")
        return replace(
            self,
            unit=-self.unit,
            positive_mean=-self.negative_mean,
            negative_mean=-self.positive_mean,
            concept=opposite if opposite != self.concept else f"not {self.concept}",
            examples=(low, high),
            tokens=(self.tokens[1], self.tokens[0]),
            calibrations=(),
            effects=(),
        )

    def __str__(self) -> str:
        return f"{self.method} {self.site}"

    def __repr__(self) -> str:
        auc = f", AUC {self.scores.auc}" if self.scores else ""
        return (
            f"Direction('{self.concept}', {self.method}, {self.site}, scale {self.scale:.3g}{auc})"
        )

    def _repr_html_(self) -> str:
        from steerkit.cards import direction_card

        return direction_card(self)

    def to_json(self) -> dict[str, Any]:
        """Everything but the unit, which files keep as a tensor."""
        return {
            "scale": self.scale,
            "site": str(self.site),
            "method": self.method,
            "concept": self.concept,
            "positive_mean": self.positive_mean,
            "negative_mean": self.negative_mean,
            "model": self.model.to_json(),
            "pooling": self.pooling,
            "polarity": self.polarity,
            "scores": self.scores.to_json() if self.scores else None,
            "examples": self.examples,
            "tokens": self.tokens,
            "provenance": dict(self.provenance),
            # Left out where there are none, so that such files read as they always did.
            **(
                {"calibrations": [c.to_json() for c in self.calibrations]}
                if self.calibrations
                else {}
            ),
            **({"effects": [e.to_json() for e in self.effects]} if self.effects else {}),
        }

    @classmethod
    def from_json(cls, unit: Tensor, entry: Mapping[str, Any]) -> "Direction":
        """The inverse of `to_json`, given the unit."""
        high, low = entry["examples"]
        return cls(
            unit=unit,
            **{
                **entry,
                "site": Site.parse(entry["site"]),
                "model": ModelInfo.from_json(entry["model"]),
                "scores": ProbeScores.from_json(entry["scores"]) if entry["scores"] else None,
                "examples": (
                    tuple((t, float(p)) for t, p in high),
                    tuple((t, float(p)) for t, p in low),
                ),
                "calibrations": tuple(
                    CalibratedStrength.from_json(c) for c in entry.get("calibrations", ())
                ),
                "effects": tuple(HeldOutEffect.from_json(e) for e in entry.get("effects", ())),
                "tokens": (tuple(entry["tokens"][0]), tuple(entry["tokens"][1])),
            },
        )

    def save(self, path: str | Path) -> Path:
        """Write a one-direction artefact."""
        return Directions((self,)).save(path)

    @classmethod
    def load(cls, path: str | Path, *, model: Any = None, force: bool = False) -> "Direction":
        """Read a one-direction artefact; with `model`, refuse one taken elsewhere."""
        found = Directions.load(path, model=model, force=force)
        if len(found) != 1:
            raise DirectionError(f"{path} holds {len(found)} directions; use Directions.load")
        return found[0]


@dataclass(frozen=True, eq=False)
class Directions(Sequence[Direction]):
    """Directions of one concept, usually one for each site and method."""

    items: tuple[Direction, ...]

    @overload
    def __getitem__(self, key: int) -> Direction: ...
    @overload
    def __getitem__(self, key: slice) -> "Directions": ...
    def __getitem__(self, key: int | slice) -> "Direction | Directions":
        if isinstance(key, slice):
            return Directions(self.items[key])
        return self.items[key]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.items)

    def at(self, site: Site | int | str, method: str | None = None) -> Direction:
        """The direction at a site (and of a method, where there are several)."""
        wanted = Site.parse(site)
        found = [d for d in self if d.site == wanted and method in (None, d.method)]
        if len(found) != 1:
            there = ", ".join(sorted({str(d) for d in self}))
            raise DirectionError(
                f"{len(found)} directions at {wanted}"
                f"{f' by {method}' if method else ''}; there are: {there}"
            )
        return found[0]

    @property
    def best(self) -> Direction:
        """Highest held-out AUC; of equals the earliest. A probe's best is not a causal claim."""
        if not self.items:
            raise DirectionError("there are no directions to choose from")
        return max(self.items, key=lambda d: d.scores.auc.value if d.scores else float("-inf"))

    def __add__(self, other: "Directions") -> "Directions":
        return Directions(self.items + tuple(other))

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: `units [direction d_model]` and a JSON header."""
        if not self.items:
            raise DirectionError("there are no directions to save")
        return write_tensors(
            Path(path),
            KIND,
            {"units": torch.stack([d.unit for d in self])},
            {"directions": [d.to_json() for d in self]},
        )

    @classmethod
    def load(cls, path: str | Path, *, model: Any = None, force: bool = False) -> "Directions":
        """Read an artefact; with `model`, refuse directions that were taken on another."""
        tensors, header = read_tensors(Path(path), KIND)
        items = tuple(
            Direction.from_json(unit, entry)
            for unit, entry in zip(tensors["units"], header["directions"], strict=True)
        )
        if model is not None:
            for item in items:
                item.check(model.info, force=force)
        return cls(items)

    def __repr__(self) -> str:
        return f"Directions({len(self)}: {', '.join(str(d) for d in self.items[:8])})"

    def _repr_html_(self) -> str:
        from steerkit.cards import directions_table

        return directions_table(self)
