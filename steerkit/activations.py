"""Recorded activations: what capture makes and extraction reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
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
        provenance: how they were taken: options, versions, and the receipt (rows, tokens,
            padding, batches, seconds).
        checked: pass True for values already known to be finite, which are then not read.
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
    provenance: Mapping[str, Any] = field(default_factory=dict)
    checked: InitVar[bool] = False

    def __post_init__(self, checked: bool) -> None:
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
        for name in ("prompt_index", "positions", "tokens"):
            if getattr(self, name).shape != (rows,):
                raise ActivationError(
                    f"{rows} rows need {rows} entries of {name}; "
                    f"got shape {tuple(getattr(self, name).shape)}"
                )
        if not checked:
            require_finite(self.values, self.sites, self.prompts, self.prompt_index)

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
        """The same activations, only some rows: their indices, or a boolean for every row."""
        index = torch.as_tensor(rows)
        if index.dtype == torch.bool:
            if index.shape != (len(self),):
                raise ActivationError(
                    f"a row mask has one boolean for each of {len(self)} rows; "
                    f"got shape {tuple(index.shape)}"
                )
            index = index.nonzero().flatten()
        index = index.long()
        return replace(
            self,
            values=self.values[index],
            prompt_index=self.prompt_index[index],
            positions=self.positions[index],
            tokens=self.tokens[index],
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with a JSON header; nothing is left half-written."""
        tensors, header = self.to_file()
        return write_tensors(Path(path), KIND, tensors, header)

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the JSON header of the file that `save` writes.

        Prompts, labels and groups are a JSON text in a uint8 tensor: a safetensors header
        may not exceed 100 MB, which 40,000 long prompts do.
        """
        header = {
            "sites": [str(s) for s in self.sites],
            "pooling": self.pooling,
            "info": self.info.to_json(),
            "contrast_sha256": self.contrast_sha256,
            "steering": list(self.steering),
            "provenance": dict(self.provenance),
        }
        about = {
            "prompts": [_brief(p) for p in self.prompts],
            "labels": list(self.labels),
            "groups": list(self.groups),
        }
        text = json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()
        tensors = {
            "values": self.values,
            "prompt_index": self.prompt_index,
            "positions": self.positions,
            "tokens": self.tokens,
            "prompts": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        }
        return tensors, header

    @classmethod
    def load(cls, path: str | Path) -> "Activations":
        """Open a file written by `save`. Values are mapped: read from disk when touched."""
        tensors, header = read_tensors(Path(path), KIND)
        return cls.from_header(tensors, header)

    @classmethod
    def from_header(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> "Activations":
        """Assemble activations from their tensors and JSON header."""
        about = json.loads(bytes(tensors["prompts"].numpy()))
        return cls(
            values=tensors["values"],
            sites=tuple(Site.parse(s) for s in header["sites"]),
            prompts=tuple(
                Prompt(**{**p, "shots": tuple(tuple(s) for s in p.get("shots", ()))})
                for p in about["prompts"]
            ),
            labels=tuple(about["labels"]),
            groups=tuple(about["groups"]),
            pooling=header["pooling"],
            info=ModelInfo.from_json(header["info"]),
            contrast_sha256=header["contrast_sha256"],
            prompt_index=tensors["prompt_index"],
            positions=tensors["positions"],
            tokens=tensors["tokens"],
            steering=tuple(header["steering"]),
            provenance=header["provenance"],
            checked=True,  # nothing else is ever saved
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


def require_finite(
    values: Float[Tensor, "row site d_model"],
    sites: Sequence[Site],
    prompts: Sequence[Prompt],
    prompt_index: Int[Tensor, "row"],
) -> None:
    """Raise if a value is NaN or infinite, naming the first site and prompt.

    Reads a slice at a time, so that values larger than memory can be checked.
    """
    step = max(1, 2**24 // max(1, values[:1].numel()))
    for start in range(0, values.shape[0], step):
        bad = ~torch.isfinite(values[start : start + step]).all(-1)
        if bad.any():
            row, site = (int(i) for i in bad.nonzero()[0])
            prompt = prompts[int(prompt_index[start + row])].text
            short = prompt if len(prompt) <= 60 else prompt[:60] + "..."
            raise ActivationError(
                f"{int(bad.sum())} activations are NaN or infinite, first at {sites[site]} "
                f"for prompt {short!r}; load the model in a wider dtype "
                "(dtype='float32' or 'bfloat16')"
            )


_DEFAULTS = {f.name: f.default for f in fields(Prompt)}


def _brief(prompt: Prompt) -> dict[str, Any]:
    """A prompt's fields that differ from their defaults."""
    return {k: v for k, v in vars(prompt).items() if v != _DEFAULTS[k]}
