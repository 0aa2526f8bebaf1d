"""Directions of the refusal-direction code: at the input of a block, not its output."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerkit.errors import DirectionError, OutputError
from steerkit.files import written_whole
from steerkit.formats import torch_file
from steerkit.formats.format import (
    FORMATS,
    Asked,
    Draft,
    Loss,
    Outgoing,
    additions,
    block_input,
    nothing_left,
)
from steerkit.formats.vectors import FileVector, Found, entry
from steerkit.site import Site

ONE, ALL, META = "direction.pt", "mean_diffs.pt", "direction_metadata.json"


class RefusalDirection:
    """`direction.pt` [d_model] with `direction_metadata.json`, or `mean_diffs.pt` [pos layer d].

    Layer l is the *input* of block l, our resid_pre@l (the output of block l - 1), and position
    counts from the end of the prompt. The vector is the mean over harmful minus the mean over
    harmless prompts; the tool removes it everywhere, or adds it at its layer at every token.

    Source: Arditi et al. 2024 (arXiv:2406.11717).
    """

    summary = "refusal_direction: direction.pt (with its metadata), mean_diffs.pt, or their folder"
    folder = True

    def recognises(self, path: Path) -> bool:
        """By the names of files."""
        return path.name in (ONE, ALL) or (path / ONE).is_file()

    def read(self, path: Path, asked: Asked) -> Found:
        """The chosen direction, or every one of the table."""
        file = path / ONE if path.is_dir() else path
        values, kept = torch_file.load(file)
        if not isinstance(values, Tensor) or values.ndim not in (1, 3):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise OutputError(f"{file} holds {shape}, expected a tensor [d] or [pos layer d]")
        if values.ndim == 1:
            layer, pos = _place(file, asked)
            _check_depth(file, layer, asked)
            vectors = [_vector(values, layer, pos, ONE, kept.get("0"), "refusal_direction")]
            return Found("refusal_direction", tuple(vectors))
        n_pos, n_layers, _ = values.shape
        if asked.info and n_layers != asked.info.n_layers:
            raise DirectionError(
                f"{file} has {n_layers} layers, but {asked.info.name} has {asked.info.n_layers}; "
                "it is of another model"
            )
        wanted = block_input(asked.at, n_layers) if asked.at is not None else None
        vectors, zeros = [], []
        for p, layer in _cells(n_pos, n_layers, wanted):
            row, pos = values[p, layer], p - n_pos
            if not row.any():
                zeros.append(f"[{p}, {layer}]")
                continue
            method = "refusal_direction" + (f" {pos}" if n_pos > 1 else "")
            name = f"{ALL}[{p}, {layer}]"
            vectors.append(_vector(row, layer, pos, name, kept.get(str(layer)), method))
        if not vectors:
            raise DirectionError(f"{file} holds no vector that is not zero" + _at(asked))
        # All prompts end in the same tokens, so their embeddings do not differ.
        expected = all(zero.endswith(", 0]") for zero in zeros) or kept
        said = () if expected else (f"vectors {', '.join(zeros)} are zero and were left out",)
        return Found("refusal_direction", tuple(vectors), warnings=said)

    def write(self, items: Sequence[Outgoing], path: Path) -> Draft:
        """One direction with its metadata; several as a table of one position."""
        conversions = additions(items, "refusal_direction")
        places: dict[int, int] = {}
        losses = []
        for i, item in enumerate(items):
            layer = block_input(item.site, item.direction.model.n_layers)
            if layer is None:
                losses.append(Loss(str(item.site), "its layers are the inputs of blocks", True))
            elif layer in places:
                raise DirectionError(f"two vectors for the input of block {layer}; choose one")
            else:
                places[layer] = i
                if item.site.stream == "resid_post":
                    conversions.append(f"{item.site} is layer {layer} there: the same stream")
        if not places:
            raise nothing_left(losses, "refusal_direction")
        table = len(places) > 1
        file = path / (ALL if table else ONE) if path.suffix != ".pt" else path
        beside = {
            str(layer if table else 0): entry(
                items[i].direction, items[i].values, Site(layer, "resid_pre"), items[i].strength
            )
            for layer, i in places.items()
        }
        if table:
            first = items[0].direction.model
            rows = torch.zeros(1, first.n_layers, first.d_model)
            for layer, i in places.items():
                rows[0, layer] = items[i].values
            _save({file: (rows, beside)})
            losses.append(Loss("positions", "the table has one, written as the last token's"))
            return Draft((file,), tuple(places.values()), tuple(conversions), tuple(losses))
        ((layer, i),) = places.items()
        pos, lost = _position(items[i].direction.pooling)
        meta = file.with_name(META)
        text = json.dumps({"pos": pos, "layer": layer}, indent=4)
        _save({file: (torch_file.owned(items[i].values), beside)}, {meta: text})
        return Draft((file, meta), (i,), tuple(conversions), (*losses, *lost))


FORMATS.register("refusal_direction")(RefusalDirection())


def _vector(
    values: Tensor, layer: int, pos: int | None, name: str, kept: Any, method: str
) -> FileVector:
    site = Site(layer, "resid_pre")
    same = f", which is resid_post@{layer - 1}" if layer else ""
    pooling = "unknown" if pos is None else "last" if pos == -1 else str(pos)
    return FileVector(
        values, site, name, f"layer {layer} is the input of block {layer}: {site}{same}",
        pooling=pooling, kept=kept, method=method,
    )  # fmt: skip


def _cells(n_pos: int, n_layers: int, wanted: int | None) -> Iterator[tuple[int, int]]:
    """Position and layer of each vector, or of those at one layer."""
    for layer in range(n_layers):
        for p in range(n_pos):
            if wanted in (None, layer):
                yield p, layer


def _place(file: Path, asked: Asked) -> tuple[int, int | None]:
    """Layer and position of a lone direction, from beside it or from the caller."""
    meta = file.with_name(META)
    if asked.at is not None:
        n_layers = asked.info.n_layers if asked.info else asked.at.layer + 2
        layer = block_input(asked.at, n_layers)
        if layer is None:
            raise OutputError(f"{asked.at} is not the input of a block; {file.name} is of one")
        return layer, None
    if not meta.is_file():
        raise OutputError(
            f"{file} does not say its layer, and there is no {META} beside it; give the input of "
            "a block with at=, such as 'resid_pre@14'"
        )
    try:
        data = json.loads(meta.read_text(encoding="utf-8"))
        layer, pos = data["layer"], data["pos"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{meta} does not hold a layer and a pos ({error!r})") from error
    if type(layer) is not int or layer < 0 or type(pos) is not int:
        raise OutputError(f"{meta} has layer {layer!r} and pos {pos!r}; expected whole numbers")
    return layer, pos


def _check_depth(file: Path, layer: int, asked: Asked) -> None:
    if asked.info and layer >= asked.info.n_layers:
        raise DirectionError(
            f"{file} is of the input of block {layer}, but {asked.info.name} has "
            f"{asked.info.n_layers} blocks; it is of another model"
        )


def _at(asked: Asked) -> str:
    return f" at {asked.at}" if asked.at is not None else ""


def _position(pooling: str) -> tuple[int, tuple[Loss, ...]]:
    """The token position that a pooling stands for, counted from the end."""
    if pooling == "last":
        return -1, ()
    if pooling.startswith("-") and pooling[1:].isdigit():
        return int(pooling), ()
    return -1, (Loss(f"pooling '{pooling}'", "is no position from the end; -1 is written"),)


def _save(tensors: dict[Path, tuple[Tensor, Any]], texts: dict[Path, str] | None = None) -> None:
    """All files, or none."""
    with ExitStack() as stack:
        for file, (values, beside) in tensors.items():
            torch_file.save(stack.enter_context(written_whole(file)), values, beside)
        for file, text in (texts or {}).items():
            stack.enter_context(written_whole(file)).write_text(text, encoding="utf-8")
