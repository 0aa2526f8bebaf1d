"""Recorded activations: what capture makes and extraction reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.errors import ActivationError
from steerkit.files import read_tensors, write_tensors
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo
from steerkit.site import Site

KIND = "activations"


@dataclass(frozen=True, eq=False)
class Activations:
    """Residual-stream activations `[row site d_model]`, float32 on the CPU.

    One row a prompt, or one row a token when `pooling` is `all`; `prompt_index` says whose.

    Attributes:
        values: the activations, in activation units.
        sites: the sites, in forward order.
        prompts: every prompt, in the caller's order.
        labels: 1 or 0 for each prompt (1 = the positive side), or empty.
        groups: what must not be split, for each prompt.
        pooling: how tokens became rows: `last`, `mean_prompt`, `all`, ...
        info: the model they came from.
        contrast_sha256: hash of the contrast, or empty.
        prompt_index: `[row]`, the prompt each row belongs to.
        positions: `[row]`, absolute token position of the row, or -1 where pooled over many.
        tokens: `[row]`, token id of the row, or -1 where pooled over many.
        steering: short descriptions of the interventions in force, empty for a plain model.
    """

    values: Float[Tensor, "row site d_model"]
    sites: tuple[Site, ...]
    prompts: tuple[Prompt, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]
    pooling: str
    info: ModelInfo
    contrast_sha256: str = ""
    prompt_index: Int[Tensor, "row"] = field(default_factory=lambda: torch.empty(0))
    positions: Int[Tensor, "row"] = field(default_factory=lambda: torch.empty(0))
    tokens: Int[Tensor, "row"] = field(default_factory=lambda: torch.empty(0))
    steering: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = self.values.shape[0]
        if self.values.ndim != 3 or self.values.shape[1] != len(self.sites):
            raise ActivationError(
                f"activations have shape [row site d_model]; got {tuple(self.values.shape)} "
                f"for {len(self.sites)} sites"
            )
        for name in ("prompt_index", "positions", "tokens"):
            if getattr(self, name).numel() == 0 and rows:
                filled = torch.arange(rows) if name == "prompt_index" else torch.full((rows,), -1)
                object.__setattr__(self, name, filled)
        for name in ("labels", "groups"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.prompts):
                raise ActivationError(
                    f"{len(self.prompts)} prompts need {len(self.prompts)} {name}; "
                    f"got {len(getattr(self, name))}"
                )
        bad = ~torch.isfinite(self.values).all(-1)
        if bad.any():
            row, site = (int(i) for i in bad.nonzero()[0])
            prompt = self.prompts[int(self.prompt_index[row])].text[:60]
            raise ActivationError(
                f"{int(bad.sum())} activations are NaN or infinite, first at "
                f"{self.sites[site]} for prompt {prompt!r}; load the model in a wider dtype "
                "(dtype='float32' or 'bfloat16')"
            )

    @property
    def row_labels(self) -> Int[Tensor, "row"]:
        """The label of each row."""
        if not self.labels:
            raise ActivationError(
                "these activations have no labels; capture a Contrast, not a list of prompts"
            )
        return torch.tensor(self.labels)[self.prompt_index]

    @property
    def row_groups(self) -> tuple[str, ...]:
        """The group of each row."""
        return tuple(self.groups[int(i)] for i in self.prompt_index)

    def at(self, site: Site | int | str) -> Float[Tensor, "row d_model"]:
        """The rows at one site."""
        wanted = Site.parse(site)
        if wanted not in self.sites:
            raise ActivationError(
                f"{wanted} was not captured; there are {', '.join(map(str, self.sites))}"
            )
        return self.values[:, self.sites.index(wanted)]

    def select(self, rows: Sequence[int] | Tensor) -> "Activations":
        """The same activations, only some rows."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return replace(
            self,
            values=self.values[index],
            prompt_index=self.prompt_index[index],
            positions=self.positions[index],
            tokens=self.tokens[index],
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with a JSON header; nothing is left half-written."""
        header = {
            "sites": [str(s) for s in self.sites],
            "prompts": [asdict(p) for p in self.prompts],
            "labels": list(self.labels),
            "groups": list(self.groups),
            "pooling": self.pooling,
            "info": self.info.to_json(),
            "contrast_sha256": self.contrast_sha256,
            "steering": list(self.steering),
        }
        tensors = {
            "values": self.values,
            "prompt_index": self.prompt_index,
            "positions": self.positions,
            "tokens": self.tokens,
        }
        return write_tensors(Path(path), KIND, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "Activations":
        """Read a file written by `save`."""
        tensors, header = read_tensors(Path(path), KIND)
        return cls.from_header(tensors, header)

    @classmethod
    def from_header(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> "Activations":
        """Assemble activations from their tensors and JSON header."""
        return cls(
            values=tensors["values"],
            sites=tuple(Site.parse(s) for s in header["sites"]),
            prompts=tuple(
                Prompt(**{**p, "shots": tuple(tuple(s) for s in p["shots"])})
                for p in header["prompts"]
            ),
            labels=tuple(header["labels"]),
            groups=tuple(header["groups"]),
            pooling=header["pooling"],
            info=ModelInfo.from_json(header["info"]),
            contrast_sha256=header["contrast_sha256"],
            prompt_index=tensors["prompt_index"],
            positions=tensors["positions"],
            tokens=tensors["tokens"],
            steering=tuple(header["steering"]),
        )

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        where = f"{self.sites[0]} .. {self.sites[-1]}" if self.sites else "no sites"
        return (
            f"Activations({len(self)} rows x {len(self.sites)} sites x {self.values.shape[-1]}, "
            f"{where}, pooling '{self.pooling}', {self.info.name})"
        )

    def _repr_html_(self) -> str:
        sides = f"{sum(self.labels)} positive, {self.labels.count(0)} negative"
        counts = sides if self.labels else ""
        return (
            f"<b>Activations</b> of {self.info.name}<br>{len(self)} rows × {len(self.sites)} sites "
            f"× {self.values.shape[-1]}, pooling <code>{self.pooling}</code> {counts}"
        )
