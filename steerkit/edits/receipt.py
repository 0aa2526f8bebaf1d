"""What a weight edit did: which parameters, how exactly, and all it takes to undo it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from steerkit.direction import Direction
from steerkit.edits.removal import Basis, Removal
from steerkit.edits.writers import Writer
from steerkit.files import read_tensors, write_tensors
from steerkit.protocols import ModelInfo
from steerkit.site import Site

KIND = "weight_edit"


@dataclass(frozen=True)
class TwinError:
    """How far the edited model is from run-time ablation at every contribution.

    Per token: |logits - ablated logits| / |ablated logits|.

    Attributes:
        largest: over the tokens.
        median: over the tokens.
        unedited: the median for the model before the edit, for comparison.
        tokens: how many were compared.
        prompts: `given`, or `probe` (random tokens).
    """

    largest: float
    median: float
    unedited: float
    tokens: int
    prompts: str

    def __str__(self) -> str:
        return (
            f"largest {self.largest:.2g}, median {self.median:.2g} over {self.tokens} tokens of "
            f"{self.prompts} prompts (unedited: {self.unedited:.2g})"
        )


@dataclass(frozen=True, eq=False)
class Edit:
    """One edited parameter.

    Attributes:
        writer: its name, axis and the contribution it writes.
        part: `linear` (a Linear or Conv1D weight, which a LoRA can express), `embedding`,
            `bias`, `experts` (one tensor for all experts) or `other`.
        conv1d: the weight is stored `[in out]`.
        removal: what was removed.
    """

    writer: Writer
    part: str
    conv1d: bool
    removal: Removal


@dataclass(frozen=True, eq=False)
class EditReceipt:
    """What `orthogonalize` did.

    Attributes:
        directions: those that were taken out together (their span).
        bases: what was taken out, by the name of the norm between a projection and the
            stream; under "" the directions' own orthonormal span.
        edits: one entry a parameter.
        untied: parameters that shared a tensor with an edited one and kept its old values.
        exact: whether the edit is the twin of run-time ablation by construction.
        error: the measured distance from that twin.
        leak: the largest component of a contribution along the directions that is left,
            relative to the contribution's norm.
        reversible: whether `undo` restores every bit.
        model: the model that was edited.
        edited: the model that came out.
    """

    directions: tuple[Direction, ...]
    bases: Mapping[str, Basis]
    edits: tuple[Edit, ...]
    untied: tuple[str, ...]
    exact: bool
    error: TwinError
    leak: float
    reversible: bool
    model: ModelInfo
    edited: ModelInfo

    @property
    def rank(self) -> int:
        """How many dimensions were taken out."""
        return self.bases[""].reads.shape[1]

    def parts(self, *kinds: str) -> tuple[str, ...]:
        """Names of the edited parameters of these parts."""
        return tuple(e.writer.name for e in self.edits if e.part in kinds)

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for edit in self.edits:
            counts[edit.part] = counts.get(edit.part, 0) + 1
        listed = ", ".join(f"{n} {part}" for part, n in counts.items())
        untied = f"; untied {', '.join(self.untied)}" if self.untied else ""
        return (
            f"{self.rank} direction{'s' * (self.rank > 1)} out of {len(self.edits)} parameters of "
            f"{self.model.name} ({listed}){untied}; {'exact' if self.exact else 'approximate'}, "
            f"relative logits error against run-time ablation: {self.error}; "
            f"undo {'restores every bit' if self.reversible else 'restores up to rounding'}"
        )

    __repr__ = __str__

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            "directions": [d.to_json() for d in self.directions],
            "bases": list(self.bases),
            "edits": [
                {
                    "name": e.writer.name,
                    "axis": e.writer.axis,
                    "site": str(e.writer.site),
                    "norm": e.writer.norm,
                    "part": e.part,
                    "conv1d": e.conv1d,
                    "sha256_before": e.removal.before,
                    "sha256_after": e.removal.after,
                }
                for e in self.edits
            ],
            "untied": list(self.untied),
            "exact": self.exact,
            "error": asdict(self.error),
            "leak": self.leak,
            "reversible": self.reversible,
            "model": self.model.to_json(),
            "edited": self.edited.to_json(),
        }

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: units, bases, and for each edit what it takes to undo it."""
        tensors = {"units": torch.stack([d.unit for d in self.directions])}
        for i, basis in enumerate(self.bases.values()):
            tensors[f"reads.{i}"], tensors[f"writes.{i}"] = basis.reads, basis.writes.clone()
        for i, edit in enumerate(self.edits):
            tensors[f"removed.{i}"] = edit.removal.removed
            tensors[f"moved.{i}"] = edit.removal.moved
            tensors[f"values.{i}"] = edit.removal.values
        return write_tensors(Path(path), KIND, tensors, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "EditReceipt":
        """Read what `save` wrote."""
        tensors, header = read_tensors(Path(path), KIND)
        edits = tuple(
            Edit(
                Writer(entry["name"], entry["axis"], Site.parse(entry["site"]), entry["norm"]),
                entry["part"],
                entry["conv1d"],
                Removal(
                    tensors[f"removed.{i}"],
                    tensors[f"moved.{i}"],
                    tensors[f"values.{i}"],
                    entry["sha256_before"],
                    entry["sha256_after"],
                ),
            )
            for i, entry in enumerate(header["edits"])
        )
        return cls(
            directions=tuple(
                Direction.from_json(unit, entry)
                for unit, entry in zip(tensors["units"], header["directions"], strict=True)
            ),
            bases={
                name: Basis(tensors[f"reads.{i}"], tensors[f"writes.{i}"])
                for i, name in enumerate(header["bases"])
            },
            edits=edits,
            untied=tuple(header["untied"]),
            exact=header["exact"],
            error=TwinError(**header["error"]),
            leak=header["leak"],
            reversible=header["reversible"],
            model=ModelInfo.from_json(header["model"]),
            edited=ModelInfo.from_json(header["edited"]),
        )
