"""A concept subspace: several orthonormal directions at one site that stand for one concept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.direction import Direction, ProbeScores
from steerkit.errors import DirectionError
from steerkit.files import read_tensors, write_tensors
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.statistics import Estimate

KIND = "subspaces"
ORTHOGONAL = 1e-5
"""Cosine at most between two axes, in float32."""


@dataclass(frozen=True, eq=False)
class Subspace(Sequence[Direction]):
    """An orthonormal basis at a site: a sequence of `Direction`s, so `Ablate(subspace)` works.

    Each axis has its own class means and scale; ablating all of them together removes (or sets
    to a reference) what the stream has inside. Where the classes do not differ along an axis,
    its scale is their rounding, 1e-6 of the mean row norm: there is nothing to add along it.

    Attributes:
        axes: orthonormal, of one model, site and method, most important first.
        scores: AUC of a probe refitted inside the subspace, which is itself refitted, in each
            fold, beside the same with permuted labels and random subspaces; or None.
        tried: the AUC of every k that was tried; where there are several the one of highest
            AUC was taken, and the nulls chose likewise.
    """

    axes: tuple[Direction, ...]
    scores: ProbeScores | None = None
    tried: Mapping[int, Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.axes:
            raise DirectionError("a subspace has at least one axis; got none")
        shared = {(d.site, d.fingerprint) for d in self.axes}
        if len(shared) > 1:
            raise DirectionError(
                f"the axes of one subspace are of one site and model; got "
                f"{', '.join(f'{d.site} of {d.model.name}' for d in self.axes)}"
            )
        basis = self.basis.double()
        excess = (basis @ basis.mT - torch.eye(len(basis), dtype=basis.dtype)).fill_diagonal_(0)
        if float(excess.abs().max()) > ORTHOGONAL:
            i, j = divmod(int(excess.abs().argmax()), len(basis))
            raise DirectionError(
                f"axes {i} and {j} of a subspace have cosine {float(excess[i, j]):.3g}, expected "
                "0; directions that are not orthogonal become one with steerkit.extraction.spanning"
            )

    @property
    def k(self) -> int:
        """Its dimension."""
        return len(self.axes)

    @property
    def basis(self) -> Float[Tensor, "k d_model"]:
        """The axes as rows, float32, orthonormal."""
        return torch.stack([d.unit for d in self.axes])

    @property
    def site(self) -> Site:
        """Where it was read."""
        return self.axes[0].site

    @property
    def method(self) -> str:
        """The method that estimated it."""
        return self.axes[0].method

    @property
    def concept(self) -> str:
        """What it stands for."""
        return self.axes[0].concept

    @property
    def model(self) -> ModelInfo:
        """The model it was taken from."""
        return self.axes[0].model

    @property
    def fingerprint(self) -> str:
        """Fingerprint of that model."""
        return self.axes[0].fingerprint

    @property
    def pooling(self) -> str:
        """Which tokens it was read at."""
        return self.axes[0].pooling

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Prompt hash, seeds, versions."""
        return self.axes[0].provenance

    def coordinates(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead k"]:
        """Projections on the axes, in activation units."""
        return x.to(torch.float32) @ self.basis.to(x.device).mT

    def inside(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """The part of `x` that lies in the subspace."""
        return self.coordinates(x) @ self.basis.to(x.device)

    def angles(self, other: "Subspace | Direction") -> Float[Tensor, "least"]:
        """Principal angles to another subspace or line, in degrees, smallest first.

        As many as the smaller one has dimensions. Small angles are read from their sines, as
        cosines near 1 cannot tell them apart.

        Source: Björck and Golub 1973, Mathematics of Computation 27, 579.
        """
        theirs = other.unit[None] if isinstance(other, Direction) else other.basis
        a, b = (torch.linalg.qr(m.double().mT).Q for m in (self.basis, theirs))
        if a.shape[1] > b.shape[1]:
            a, b = b, a
        cosines = torch.linalg.svdvals(b.mT @ a).clamp(max=1)
        sines = torch.linalg.svdvals(a - b @ (b.mT @ a)).clamp(max=1).flip(0)
        return torch.rad2deg(torch.where(cosines > 0.7, sines.asin(), cosines.acos()))

    def at(self, site: Site | int | str) -> "Subspace":
        """The same vectors used at another site."""
        return replace(self, axes=tuple(d.at(site) for d in self.axes))

    def check(self, info: ModelInfo, *, force: bool = False) -> None:
        """Refuse another model than the one it was taken from, as `Direction.check` does."""
        self.axes[0].check(info, force=force)

    @overload
    def __getitem__(self, key: int) -> Direction: ...
    @overload
    def __getitem__(self, key: slice) -> "Subspace": ...
    def __getitem__(self, key: int | slice) -> "Direction | Subspace":
        if isinstance(key, slice):
            return Subspace(self.axes[key])
        return self.axes[key]

    def __len__(self) -> int:
        return len(self.axes)

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.axes)

    def to_json(self) -> dict[str, Any]:
        """Everything but the basis, which files keep as a tensor."""
        return {
            "axes": [axis.to_json() for axis in self.axes],
            "scores": self.scores.to_json() if self.scores else None,
            "tried": {str(k): auc.to_json() for k, auc in self.tried.items()},
        }

    @classmethod
    def from_json(cls, basis: Float[Tensor, "k d_model"], entry: Mapping[str, Any]) -> "Subspace":
        """The inverse of `to_json`, given the basis."""
        return cls(
            tuple(
                Direction.from_json(unit, axis)
                for unit, axis in zip(basis, entry["axes"], strict=True)
            ),
            ProbeScores.from_json(entry["scores"]) if entry["scores"] else None,
            {int(k): Estimate(**auc) for k, auc in entry["tried"].items()},
        )

    def save(self, path: str | Path) -> Path:
        """Write a one-subspace artefact."""
        return Subspaces((self,)).save(path)

    @classmethod
    def load(cls, path: str | Path, *, model: Any = None, force: bool = False) -> "Subspace":
        """Read a one-subspace artefact; with `model`, refuse one taken elsewhere."""
        found = Subspaces.load(path, model=model, force=force)
        if len(found) != 1:
            raise DirectionError(f"{path} holds {len(found)} subspaces; use Subspaces.load")
        return found[0]

    def __str__(self) -> str:
        return f"{self.method} k={self.k} {self.site}"

    def __repr__(self) -> str:
        auc = f", AUC {self.scores.auc}" if self.scores else ""
        return f"Subspace('{self.concept}', {self.method}, {self.site}, k {self.k}{auc})"

    def _repr_html_(self) -> str:
        from steerkit.extraction.subspace_html import subspace_card

        return subspace_card(self)


@dataclass(frozen=True, eq=False)
class Subspaces(Sequence[Subspace]):
    """Subspaces of one concept, usually one for each site."""

    items: tuple[Subspace, ...]

    @overload
    def __getitem__(self, key: int) -> Subspace: ...
    @overload
    def __getitem__(self, key: slice) -> "Subspaces": ...
    def __getitem__(self, key: int | slice) -> "Subspace | Subspaces":
        return Subspaces(self.items[key]) if isinstance(key, slice) else self.items[key]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Subspace]:
        return iter(self.items)

    def at(self, site: Site | int | str) -> Subspace:
        """The subspace at a site."""
        wanted = Site.parse(site)
        found = [s for s in self if s.site == wanted]
        if len(found) != 1:
            raise DirectionError(
                f"{len(found)} subspaces at {wanted}; there are: {', '.join(map(str, self))}"
            )
        return found[0]

    @property
    def best(self) -> Subspace:
        """Highest held-out AUC; of equals the earliest. A probe's best is not a causal claim."""
        if not self.items:
            raise DirectionError("there are no subspaces to choose from")
        return max(self.items, key=lambda s: s.scores.auc.value if s.scores else float("-inf"))

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: `axes [axis d_model]` of all, and a JSON header."""
        if not self.items:
            raise DirectionError("there are no subspaces to save")
        return write_tensors(
            Path(path),
            KIND,
            {"axes": torch.cat([s.basis for s in self])},
            {"subspaces": [s.to_json() for s in self]},
        )

    @classmethod
    def load(cls, path: str | Path, *, model: Any = None, force: bool = False) -> "Subspaces":
        """Read an artefact; with `model`, refuse subspaces that were taken on another."""
        tensors, header = read_tensors(Path(path), KIND)
        entries = header["subspaces"]
        bases = tensors["axes"].split([len(entry["axes"]) for entry in entries])
        items = [Subspace.from_json(b, e) for b, e in zip(bases, entries, strict=True)]
        if model is not None:
            for item in items:
                item.check(model.info, force=force)
        return cls(tuple(items))

    def __repr__(self) -> str:
        return f"Subspaces({len(self)}: {', '.join(map(str, self.items[:8]))})"

    def _repr_html_(self) -> str:
        from steerkit.extraction.subspace_html import subspaces_table

        return subspaces_table(self)
