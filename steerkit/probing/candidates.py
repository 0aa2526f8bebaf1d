"""What a probe chooses among, and how all of it is fitted at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import MethodError
from steerkit.extraction import column_probes
from steerkit.extraction.column_probes import LOGISTIC, SQUARED_HINGE, Loss
from steerkit.extraction.methods import METHODS, fit_columns
from steerkit.extraction.penalty import feature_size
from steerkit.extraction.training import Training
from steerkit.site import Site

Fit = Float[Tensor, "rank column"]
"""Weights on the rows' scaled coordinates: penalty by penalty, each with all labellings.

Without intercepts: they follow how many rows of a fit are positive, which under a strong penalty
is larger than all else and would spoil a calibration across folds. Scores are counted from the
mean of the fitted rows; the calibration adds the offset.
"""


@dataclass(frozen=True)
class Candidate:
    """One thing that may be chosen: where, by which method, how strongly regularised.

    `penalty` is C (the inverse) for logistic and svm, lambda for ridge, None where a method
    has none; always for features of mean variance 1.
    """

    site: Site
    method: str
    penalty: float | None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"site": str(self.site), "method": self.method, "penalty": self.penalty}

    def __str__(self) -> str:
        strength = "" if self.penalty is None else f" at {self.penalty:g}"
        return f"{self.method}{strength} on {self.site}"


@dataclass(frozen=True, eq=False)
class Turned(Training):
    """Rows in an orthonormal basis of what they span, which know how wide they were.

    Fits do not depend on the basis, only some shrinkages on the width; and where there are
    fewer rows than axes, a site is turned once instead of being factored whole in every fold.
    """

    width: int

    @property
    def d_model(self) -> int:
        """Width of the stream that the rows came from."""
        return self.width


def spanned(x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row axis"]:
    """The rows' coordinates in an orthonormal basis of their span; themselves if that is all."""
    return x if x.shape[1] <= len(x) else torch.linalg.qr(x.T).R.T


@dataclass(frozen=True)
class Recipe:
    """A method and its penalties, the strongest first."""

    method: str
    penalties: tuple[float | None, ...]

    def fit(
        self, rows: Training, labels: Float[Tensor, "row labelling"], *, exact: bool, seed: int
    ) -> Fit:
        """All penalties and labellings: column `p * labellings + l`.

        Args:
            rows: to fit on.
            labels: 1 or 0.
            exact: to 1e-9 of the first gradient in float64; else to 1e-2 in float32, which is
                enough for ranks (a null's draws correlate 0.999 with exact ones).
            seed: for methods that draw.
        """
        special = _FITTERS.get(self.method)
        if special is not None:
            return special(rows, labels, self.penalties, exact)
        w = fit_columns(METHODS[self.method], rows, labels.to(rows.x.dtype), seed=seed)
        return rows.axes @ w * feature_size(rows)


def scaled(rows: Training, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row rank"]:
    """New rows as the fits of `rows` read them: centred, in their axes, of mean variance 1."""
    return (x - rows.mean) @ rows.axes.T / feature_size(rows)


GRIDS: dict[str, tuple[float, ...]] = {
    "logistic": tuple(10.0**k for k in range(-4, 2)),
    "svm": tuple(10.0**k for k in range(-5, 1)),
    "ridge": tuple(10.0**k for k in range(5, -1, -1)),
}
"""Penalties tried by default, the strongest first."""


def recipes(methods: str | Sequence[str], penalties: Sequence[float] | None) -> tuple[Recipe, ...]:
    """Methods by name, each with the penalties that it knows.

    Raises:
        MethodError: an unknown method, the same one twice, penalties that are
            not positive or that no method takes.
    """
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    if not names:
        raise MethodError(f"no probe method given; known: {', '.join(METHODS.names())}")
    if len(set(names)) < len(names):
        raise MethodError(f"methods are given once each; got {', '.join(names)}")
    for name in names:
        METHODS[name]  # an unknown one raises, saying what was meant
    if penalties is None:
        return tuple(Recipe(name, GRIDS.get(name, (None,))) for name in names)
    taking = [name for name in names if name in GRIDS]
    if not taking:
        raise MethodError(f"{', '.join(names)} takes no penalty; leave penalties out")
    if not penalties or min(penalties) <= 0:
        raise MethodError(f"penalties are positive numbers, at least one; got {list(penalties)}")
    if len(taking) > 1:
        raise MethodError(
            f"penalties mean different things to {' and '.join(taking)}; leave them out, or probe "
            "with one of these"
        )
    given = sorted({float(p) for p in penalties}, reverse=taking == ["ridge"])
    return tuple(Recipe(name, tuple(given) if name in GRIDS else (None,)) for name in names)


def _convex(
    rows: Training,
    labels: Tensor,
    penalties: tuple[float | None, ...],
    exact: bool,
    *,
    loss: Loss,
) -> Fit:
    """Columns of one product for every penalty and labelling."""
    z = rows.coordinates / feature_size(rows)
    z = z if exact else z.float()
    k = labels.shape[1]
    c = torch.tensor(penalties, dtype=z.dtype).repeat_interleave(k)
    y = labels.to(z.dtype).repeat(1, len(penalties))
    limits: dict[str, Any] = (
        {"tolerance": 1e-9, "max_steps": 1000} if exact else {"tolerance": 1e-2, "max_steps": 30}
    )
    return column_probes.fit(z, y, c, loss=loss, **limits)[0].double()


def _ridge(
    rows: Training, labels: Tensor, penalties: tuple[float | None, ...], _exact: bool
) -> Fit:
    """Squared error of the labels 1 and -1, in closed form."""
    size = feature_size(rows)
    z, spread = rows.coordinates / size, rows.spread / size**2
    target = 2 * labels.to(z.dtype) - 1
    pull = z.T @ (target - target.mean(0))
    return torch.cat([pull / (spread[:, None] + float(p or 0)) for p in penalties], 1)


def _logistic(
    rows: Training, labels: Tensor, penalties: tuple[float | None, ...], exact: bool
) -> Fit:
    return _convex(rows, labels, penalties, exact, loss=LOGISTIC)


def _svm(rows: Training, labels: Tensor, penalties: tuple[float | None, ...], exact: bool) -> Fit:
    return _convex(rows, labels, penalties, exact, loss=SQUARED_HINGE)


_FITTERS: dict[str, Callable[[Training, Tensor, tuple[float | None, ...], bool], Fit]] = {
    "logistic": _logistic,
    "svm": _svm,
    "ridge": _ridge,
}
