"""What a file of another tool holds, before it is a direction and after it was one."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.direction import Direction
from steerkit.errors import DirectionError, OutputError
from steerkit.protocols import ModelInfo
from steerkit.site import Site

Action = Literal["add", "set"]
"""`add`: coefficient x vector is added. `set`: the projection on the unit becomes `value`."""


@dataclass(frozen=True, eq=False)
class FileVector:
    """One vector of a file, its place already in our terms.

    Attributes:
        values: `[d_model]` as the file holds them, in any float type.
        site: where it belongs, in our convention.
        name: what names it in the file.
        convention: what the file's own number means and how it became `site`.
        coefficient: the file's factor on the vector.
        action: what the file asks to be done.
        value: for `set`, the projection that is set, in activation units.
        pooling: the token that it was read at, where the file says.
        method: what made it; the format's name by default.
        kept: what steerkit wrote beside it, if it did.
        direction: the whole direction, where the file is steerkit's own.
    """

    values: Tensor
    site: Site
    name: str
    convention: str
    coefficient: float = 1.0
    action: Action = "add"
    value: float = 0.0
    pooling: str = "unknown"
    method: str = ""
    kept: Mapping[str, Any] | None = None
    direction: Direction | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kept, Mapping):  # as read from a file that others may have edited
            object.__setattr__(self, "kept", None)


@dataclass(frozen=True, eq=False)
class Found:
    """All vectors of a file, and what was noticed while it was read.

    Attributes:
        format: name of the format.
        vectors: at least one.
        model_hint: which model the file says that it is for; empty where it does not.
        warnings: what the file does against its own format's rules.
    """

    format: str
    vectors: tuple[FileVector, ...]
    model_hint: str = ""
    warnings: tuple[str, ...] = ()


def checked(values: Tensor, name: str) -> Float[Tensor, "d_model"]:
    """The values as a float32 vector.

    Raises:
        DirectionError: another shape or kind, NaN, an infinity, all zeros.
    """
    if values.layout != torch.strided or values.is_quantized or not values.is_floating_point():
        raise DirectionError(
            f"{name} is a {values.layout} tensor of {values.dtype}; expected plain floats"
        )
    if values.ndim != 1 or not values.numel():
        raise DirectionError(f"{name} has shape {tuple(values.shape)}; expected one vector [d]")
    found = values.detach().to("cpu", torch.float32).clone()
    if not torch.isfinite(found).all():
        bad = int((~torch.isfinite(found)).sum())
        raise DirectionError(
            f"{name} holds {bad} values that are not finite (in float32), of {found.numel()}; "
            "look at where it was made"
        )
    if not found.double().norm() > 0:
        raise DirectionError(f"{name} is all zeros: it points nowhere; leave it out of the file")
    return found


def unit_of(values: Float[Tensor, "d_model"], scale: float) -> Float[Tensor, "d_model"]:
    """The unit for which unit x scale gives the values, bit for bit where float32 has one.

    Dividing rounds, so a neighbouring float32 may be the one that was multiplied.
    """
    unit = (values.double() / float(torch.tensor(scale))).float()
    for towards in (math.inf, -math.inf):
        other = torch.nextafter(unit, torch.tensor(towards))
        better = (unit * scale != values) & (other * scale == values)
        unit = torch.where(better, other, unit)
    return unit


def digest(values: Float[Tensor, "d_model"]) -> str:
    """sha256 of the float32 values."""
    return hashlib.sha256(values.float().contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def entry(direction: Direction, values: Tensor, at: Site, strength: float) -> dict[str, Any]:
    """What steerkit keeps beside a vector that it writes into a foreign file.

    Everything but the vector and the example prompts: such files are made to be shared.
    """
    numbers = {**direction.to_json(), "examples": ((), ())}
    return {"sha256": digest(values), "at": str(at), "strength": strength, "direction": numbers}


def direction_of(vector: FileVector, found: Found, info: ModelInfo | None) -> Direction:
    """The vector as a direction: with what steerkit kept, or with what the file alone tells.

    Raises:
        DirectionError: it is not a vector, or not as wide as the model.
        OutputError: what steerkit kept beside it is garbled.
    """
    if vector.direction is not None:
        return vector.direction
    values = checked(vector.values, vector.name)
    if info is not None and len(values) != info.d_model:
        raise DirectionError(
            f"{vector.name} has width {len(values)}, but {info.name} has {info.d_model}; "
            "it is of another model"
        )
    record = {
        "format": found.format,
        "name": vector.name,
        "convention": vector.convention,
        "coefficient": vector.coefficient,
        "action": vector.action,
    }
    if vector.kept is not None and not outdated(vector):
        try:
            data = dict(vector.kept["direction"])
            unit = unit_of(values, float(data["scale"]) * float(vector.kept["strength"]))
            made = Direction.from_json(unit, data)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise OutputError(
                f"what steerkit kept beside {vector.name} is garbled ({error!r}); write the file "
                "again"
            ) from error
        return replace(made, provenance={**made.provenance, "read_from": record})
    scale = float(values.double().norm())
    unit = unit_of(values, scale)
    record["values_rounded"] = int((unit * scale != values).sum())
    record["model"] = "named by the reader" if info else "unknown to the file"
    return Direction(
        unit=unit,
        scale=scale,
        site=vector.site,
        method=vector.method or found.format,
        concept="unnamed",
        # A file without them must not pretend: operators refuse class means that are NaN.
        positive_mean=math.nan,
        negative_mean=math.nan,
        model=info or _unknown(found, len(values)),
        pooling=vector.pooling,
        provenance={"read_from": record},
    )


def outdated(vector: FileVector) -> bool:
    """Whether something changed the vector, or moved it, since steerkit wrote it."""
    if vector.kept is None:
        return False
    same = vector.kept.get("sha256") == digest(checked(vector.values, vector.name))
    return not same or vector.kept.get("at") != str(vector.site)


def folded(vector: FileVector) -> float:
    """The strength at which steerkit wrote the vector, in multiples of the direction's scale."""
    return 1.0 if vector.kept is None or outdated(vector) else float(vector.kept["strength"])


def one_each(vectors: Sequence[FileVector]) -> None:
    """Refuse two vectors of one name or place.

    Raises:
        DirectionError: naming both.
    """
    seen: dict[tuple[Site, str], str] = {}
    for vector in vectors:
        if vector.direction is not None:
            continue
        key = (vector.site, vector.pooling)
        if key in seen:
            raise DirectionError(
                f"{seen[key]} and {vector.name} are both at {vector.site}; tools differ in which "
                "one they take: remove one"
            )
        seen[key] = vector.name


def _unknown(found: Found, width: int) -> ModelInfo:
    """A model of which only the width, a name and the deepest vector are known."""
    return ModelInfo(
        name=found.model_hint or "unknown",
        model_type=found.model_hint or "unknown",
        n_layers=max(v.site.layer for v in found.vectors) + 1,
        d_model=width,
        d_vocab=0,
        n_ctx=0,
        streams=tuple(sorted({v.site.stream for v in found.vectors})),
        dtype="unknown",
        device="unknown",
        fingerprint="unknown",
    )
