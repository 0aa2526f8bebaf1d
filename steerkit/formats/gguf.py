"""Control vectors of llama.cpp and repeng, as GGUF."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from steerkit.errors import DirectionError, OutputError
from steerkit.files import written_whole
from steerkit.formats import gguf_file
from steerkit.formats.format import (
    FORMATS,
    Asked,
    Draft,
    Loss,
    Outgoing,
    additions,
    block_output,
    nothing_left,
)
from steerkit.formats.vectors import FileVector, Found, entry
from steerkit.site import Site

ARCHITECTURE = "controlvector"
KEPT = "steerkit.vectors"
"""Metadata key of what steerkit keeps; llama.cpp reads no metadata, repeng only its own."""


class ControlVectors:
    """One float32 tensor `direction.N` a layer, added to the output of block N (from 0).

    llama.cpp refuses N = 0 and adds at every token. Files that count otherwise are read with
    a warning; what is written is what llama.cpp accepts.
    """

    summary = "GGUF control vectors of llama.cpp and repeng"
    folder = False

    def recognises(self, path: Path) -> bool:
        """By its first bytes."""
        try:
            with path.open("rb") as file:
                return file.read(4) == gguf_file.MAGIC
        except OSError:
            return False

    def read(self, path: Path, asked: Asked) -> Found:
        """All `direction.N` tensors; with a model, numbers past its depth are understood."""
        try:
            header = gguf_file.parse(path)
            numbers = _numbers(header)
            rows = {n: gguf_file.read_tensor(path, header, name) for n, name in numbers.items()}
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} is not a readable control vector: {error}") from error
        widths = {len(row) for row in rows.values()}
        if len(widths) > 1:
            raise DirectionError(f"the vectors of {path} differ in width: {sorted(widths)}")
        n_layers = asked.info.n_layers if asked.info else None
        shifted, warnings = _counted(sorted(rows), n_layers)
        warnings += _oddities(header)
        hint = header.metadata.get("controlvector.model_hint", "")
        if asked.info and isinstance(hint, str) and hint and hint != asked.info.model_type:
            warnings.append(f"the file is meant for '{hint}', not '{asked.info.model_type}'")
        kept = _kept(header.metadata)
        return Found(
            format="gguf",
            vectors=tuple(
                _vector(n, rows[n], numbers[n], shifted, kept.get(numbers[n])) for n in sorted(rows)
            ),
            model_hint=hint if isinstance(hint, str) else "",
            warnings=tuple(warnings),
        )

    def write(self, items: Sequence[Outgoing], path: Path) -> Draft:
        """One tensor for each block output but the first."""
        conversions = additions(items, "gguf")
        tensors: dict[str, Tensor] = {}
        beside: dict[str, Any] = {}
        kept, losses = [], []
        for i, item in enumerate(items):
            n = block_output(item.site)
            if n is None:
                losses.append(Loss(str(item.site), "control vectors act on block outputs", True))
            elif n == 0:
                why = "llama.cpp refuses a file with a vector for block 0, so it was left out"
                losses.append(Loss(str(item.site), why, True))
            elif f"direction.{n}" in tensors:
                raise DirectionError(
                    f"two vectors for the output of block {n}; a control vector has one a layer: "
                    "choose one method, or one site of resid_post and the next resid_pre"
                )
            else:
                name = f"direction.{n}"
                tensors[name] = item.values
                beside[name] = entry(item.direction, item.values, Site(n), item.strength)
                kept.append(i)
                if item.site.stream == "resid_pre":
                    conversions.append(f"{item.site} is written as {name}: the same stream")
        if not tensors:
            raise nothing_left(losses, "gguf")
        metadata: dict[str, str | int] = {
            "general.architecture": ARCHITECTURE,
            "controlvector.model_hint": items[0].direction.model.model_type,
            "controlvector.layer_count": len(tensors),
            KEPT: json.dumps(beside, sort_keys=True),
        }
        with written_whole(path) as temporary:
            ordered = dict(sorted(tensors.items(), key=lambda named: int(named[0][10:])))
            gguf_file.write(temporary, metadata, ordered)
        return Draft((path,), tuple(kept), tuple(conversions), tuple(losses))


FORMATS.register("gguf")(ControlVectors())


def _numbers(header: gguf_file.Header) -> dict[int, str]:
    """Tensor name of each layer number."""
    found: dict[int, str] = {}
    for name, tensor in header.tensors.items():
        match = re.fullmatch(r"direction\.(\d+)", name)
        if match is None:
            if name.startswith("direction"):
                raise ValueError(f"'{name}' is not named 'direction.N'")
            continue
        if any(size != 1 for size in tensor.shape[1:]):
            raise ValueError(f"'{name}' has shape {tensor.shape}; expected one dimension")
        n = int(match[1])
        if n in found:
            raise ValueError(f"'{found[n]}' and '{name}' are both of layer {n}")
        found[n] = name
    if not found:
        kind = header.metadata.get("general.architecture", "unknown")
        raise ValueError(
            f"it has no tensor 'direction.N' among its {len(header.tensors)}; its architecture "
            f"is '{kind}', expected '{ARCHITECTURE}'"
        )
    return found


def _counted(numbers: Sequence[int], n_layers: int | None) -> tuple[bool, list[str]]:
    """Whether N counts as in `hidden_states` (0 is the embedding), and what to say about it."""
    if n_layers is not None and numbers[-1] > n_layers:
        raise DirectionError(
            f"the file has a vector for block {numbers[-1]}, but the model has {n_layers} blocks; "
            "it is of another model"
        )
    if n_layers is not None and numbers[-1] == n_layers:
        return True, [
            f"direction.{n_layers} is past the last block of a model of {n_layers}, so the numbers "
            "were taken to count from 1 (as in hidden_states): direction.N is the output of "
            "block N - 1. llama.cpp would use them one block later and ignore the last"
        ]
    if numbers[0] == 0:
        return False, [
            "the file has direction.0, which llama.cpp refuses; the numbers were taken to count "
            "block outputs from 0. If they count hidden_states, each vector is one block late"
        ]
    return False, []


def _oddities(header: gguf_file.Header) -> list[str]:
    """What in a file is not as llama.cpp and repeng write it."""
    said = []
    kind = header.metadata.get("general.architecture")
    if kind != ARCHITECTURE:
        said.append(f"the file's architecture is '{kind}', not '{ARCHITECTURE}'; repeng warns")
    if not isinstance(header.metadata.get("controlvector.model_hint"), str):
        said.append("the file lacks controlvector.model_hint; repeng refuses it")
    types = {t.type for name, t in header.tensors.items() if name.startswith("direction.")}
    if types != {0}:
        said.append("its vectors are not all float32; llama.cpp refuses them")
    others = [name for name in header.tensors if not name.startswith("direction.")]
    if others:
        said.append(f"{len(others)} other tensors were passed over, such as '{others[0]}'")
    return said


def _kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What steerkit kept, by tensor; nothing where it is absent or was tampered with."""
    try:
        found = json.loads(metadata.get(KEPT, "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _vector(n: int, values: Tensor, name: str, shifted: bool, kept: Any) -> FileVector:
    if shifted:
        site = Site(n - 1) if n else Site(0, "resid_pre")
        convention = f"{name} counts hidden_states: {site}"
    else:
        site = Site(n)
        convention = f"{name} is added to the output of block {n}: {site}"
    return FileVector(values, site, name, convention, kept=kept)
