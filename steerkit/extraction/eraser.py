"""Erasing a concept: the smallest affine edit after which no linear probe reads it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.activations import Activations
from steerkit.errors import ActivationError
from steerkit.extraction.covariance import Shrunk
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.training import Training
from steerkit.interventions import LowRank
from steerkit.interventions.operator import PositionsLike, SitesLike
from steerkit.site import Site


@dataclass(frozen=True, eq=False)
class Eraser:
    """h -> h - write^T read (h - mean), of rank k: least-squares concept erasure.

    Of all affine maps after which the concept has no covariance with the stream, it changes
    the rows least in mean square (exactly so where the covariance was not shrunk). What it
    reads is not what it writes: ablating along either one alone erases less, or moves more.

    Attributes:
        read: `[k d_model]`, float64.
        write: `[k d_model]`, float64; `write @ read.T` is the identity.
        mean: of the rows fitted on, `[d_model]`; it stays where it is.
        site: where it was fitted.
        fingerprint: of the model whose activations it was fitted on.
        concept: what it erases.
        shrinkage: the fraction by which the covariance was shrunk (Ledoit and Wolf).
        n: rows fitted on.

    Source: Belrose et al. 2023, LEACE (arXiv:2306.03819).
    """

    read: Float[Tensor, "k d_model"]
    write: Float[Tensor, "k d_model"]
    mean: Float[Tensor, "d_model"]
    site: Site
    fingerprint: str
    concept: str
    shrinkage: float
    n: int

    @classmethod
    def fit(
        cls,
        acts: Activations,
        site: Site | str | int,
        *,
        concepts: Float[Tensor, "row k"] | None = None,
        name: str | None = None,
    ) -> "Eraser":
        """Fit at one site. Do not probe or test on the same rows: see `check_erasure`.

        Args:
            acts: labelled activations.
            site: which of their sites.
            concepts: what to erase, a column a concept (several labels, one-hot classes,
                numbers); the labels by default.
            name: what the concept is called.

        Raises:
            ActivationError: no labels, one side only, rows all the same, NaN; concepts of
                another length, not finite, or constant.
            DirectionError: class means that are the same.
        """
        data = Labelled.of(acts)
        acts.at(site)
        place = acts.sites.index(Site.parse(site))
        rows = Training.of(data.rows(place), data.row_groups)
        z = torch.from_numpy(data.row_labels)[:, None] if concepts is None else concepts
        read, write, shrunk = _fit(rows, z.to(torch.float64))
        concept = name or str(acts.provenance.get("concept") or "concept")
        return cls(
            read,
            write,
            rows.mean,
            acts.sites[place],
            acts.info.fingerprint,
            concept,
            shrunk.shrinkage,
            len(rows),
        )

    @property
    def rank(self) -> int:
        """Dimensions erased."""
        return len(self.read)

    def __call__(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Erased rows, in the dtype of `x`; computed in float64."""
        centred = x.to(torch.float64) - self.mean
        return (x.to(torch.float64) - centred @ self.read.T @ self.write).to(x.dtype)

    def intervention(
        self,
        strength: float = 1.0,
        positions: PositionsLike = "all",
        sites: SitesLike = None,
    ) -> LowRank:
        """The eraser as a steering operator, at its own site by default.

        Positions other than those it was fitted on have other means and covariances: what is
        guaranteed there is nothing.
        """
        return LowRank(
            self.write,
            self.write - self.read,
            self.read @ self.mean,
            strength,
            positions,
            self.site if sites is None else sites,
            self.fingerprint,
        )

    def __repr__(self) -> str:
        return (
            f"Eraser({self.concept!r} at {self.site}, rank {self.rank}, {self.n} rows, "
            f"shrinkage {self.shrinkage:.2g})"
        )


def _fit(
    rows: Training, concepts: Float[Tensor, "row k"]
) -> tuple[Float[Tensor, "k d_model"], Float[Tensor, "k d_model"], Shrunk]:
    """What is read and written to erase concepts, as many dimensions as they vary in."""
    if concepts.ndim != 2 or len(concepts) != len(rows):
        raise ActivationError(
            f"concepts have shape {tuple(concepts.shape)}; expected [row k] with the "
            f"{len(rows)} rows of these activations, in their order"
        )
    if not torch.isfinite(concepts).all():
        raise ActivationError("a concept is NaN or infinite; leave those rows out")
    z = concepts - concepts.mean(0)
    flat = (z.norm(dim=0) <= 1e-9 * (1 + concepts.abs().amax(0))).nonzero().flatten().tolist()
    if flat:
        raise ActivationError(
            f"concept column {flat[0]} is the same in every row, so there is nothing to erase; "
            "leave it out"
        )
    shrunk = Shrunk.of(rows)
    together = rows.axes.T @ (rows.coordinates.T @ (z / z.norm(dim=0))) / len(rows)
    left, size, _ = torch.linalg.svd(shrunk.scaled(together, -0.5), full_matrices=False)
    left = left[:, size > 1e-8 * size[0]]
    return shrunk.scaled(left, -0.5).T, shrunk.scaled(left, 0.5).T, shrunk
