"""Vectors of contrastive activation addition: one bare tensor a layer."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

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
    block_output,
    nothing_left,
)
from steerkit.formats.vectors import FileVector, Found, entry
from steerkit.site import Site

NAME = re.compile(r"vec_layer_(\d+)(?:_(.+))?\.pt")


class CAA:
    """`vec_layer_N_MODEL.pt`: the mean difference at the output of block N (from 0).

    The vector was read at the second token from the end (the letter of an A/B answer), and the
    tool adds it from the end of the instruction on.

    Source: Rimsky et al. 2024, contrastive activation addition (arXiv:2312.06681).
    """

    summary = "contrastive activation addition: a folder of vec_layer_N_MODEL.pt, or one of them"
    folder = True

    def recognises(self, path: Path) -> bool:
        """By the names of files."""
        return bool(NAME.fullmatch(path.name) or (path.is_dir() and _files(path)))

    def read(self, path: Path, asked: Asked) -> Found:
        """One file, or all of a folder."""
        if path.is_dir():
            files = _files(path)
            if not files:
                raise OutputError(f"{path} has no files named vec_layer_N_MODEL.pt")
        else:
            named = NAME.fullmatch(path.name)
            files = {path: (int(named[1]), named[2] or "") if named else (_asked(path, asked), "")}
        depth = asked.info.n_layers if asked.info else None
        vectors, hints = [], []
        for file, (n, hint) in sorted(files.items(), key=lambda item: item[1]):
            if depth is not None and n >= depth:
                raise DirectionError(
                    f"{file} is of block {n}, but the model has blocks 0..{depth - 1}; it is of "
                    "another model"
                )
            values, kept = torch_file.load(file)
            if not isinstance(values, Tensor):
                raise OutputError(f"{file} holds a {type(values).__name__}, expected one tensor")
            convention = f"{file.name} is of the output of block {n}: {Site(n)}; its tool adds it "
            convention += "from the end of the instruction on"
            vectors.append(
                FileVector(
                    values, Site(n), file.name, convention, pooling="-2", kept=kept.get("vector")
                )
            )
            hints.append(hint)
        return Found("caa", tuple(vectors), model_hint=hints[0])

    def write(self, items: Sequence[Outgoing], path: Path) -> Draft:
        """A folder of files, one for each block output."""
        conversions = additions(items, "caa")
        if path.suffix == ".pt" or path.is_file():
            raise OutputError(f"caa vectors are written into a folder, a file a layer; got {path}")
        files: dict[Path, tuple[Tensor, dict[str, Any]]] = {}
        kept, losses = [], []
        for i, item in enumerate(items):
            n = block_output(item.site)
            if n is None:
                losses.append(Loss(str(item.site), "its vectors act on block outputs", True))
                continue
            model = re.sub(r"[^\w.-]", "_", Path(item.direction.model.name).name)
            file = path / f"vec_layer_{n}_{model}.pt"
            if file in files:
                raise DirectionError(f"two vectors for the output of block {n}; choose one")
            beside = entry(item.direction, item.values, Site(n), item.strength)
            files[file] = (torch_file.owned(item.values), {"vector": beside})
            kept.append(i)
            if item.site.stream == "resid_pre":
                conversions.append(f"{item.site} is written as {file.name}: the same stream")
        if not files:
            raise nothing_left(losses, "caa")
        with ExitStack() as stack:
            for file, (values, record) in files.items():
                torch_file.save(stack.enter_context(written_whole(file)), values, record)
        return Draft(tuple(files), tuple(kept), tuple(conversions), tuple(losses))


FORMATS.register("caa")(CAA())


def _files(folder: Path) -> dict[Path, tuple[int, str]]:
    """Layer and model name of each vector file of a folder."""
    found = ((file, NAME.fullmatch(file.name)) for file in sorted(folder.iterdir()))
    return {file: (int(named[1]), named[2] or "") for file, named in found if named}


def _asked(path: Path, asked: Asked) -> int:
    n = block_output(asked.at) if asked.at is not None else None
    if n is None:
        raise OutputError(
            f"the name {path.name} does not say the block (vec_layer_N.pt does); give the block "
            f"output with at=, such as 'resid_post@13'; got {asked.at}"
        )
    return n
