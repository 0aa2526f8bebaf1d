"""Rows of many batches put into the caller's order, in memory or in a mapped file."""

from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from steerkit.activations import Activations
from steerkit.captures.job import Job, Piece, describe

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def layout(rows: int, job: Job) -> Layout:
    """Types and shapes of the tensors of a capture with that many rows."""
    return {
        "values": (torch.float32, (rows, len(job.sites), job.model.info.d_model)),
        "prompt_index": (torch.int64, (rows,)),
        "positions": (torch.int64, (rows,)),
        "tokens": (torch.int64, (rows,)),
    }


def starts(counts: Int[Tensor, "prompt"]) -> Int[Tensor, "prompt"]:
    """Index of each prompt's first row."""
    return counts.cumsum(0) - counts


def place(piece: Piece, first: Int[Tensor, "prompt"], into: Mapping[str, Tensor]) -> None:
    """Write a batch's rows where they belong; rows of one prompt stay in token order."""
    index = piece.prompt_index
    here = torch.arange(len(index))
    # Rows of one prompt are neighbours in a piece: count from the first of each run.
    new = torch.ones_like(index, dtype=torch.bool)
    new[1:] = index[1:] != index[:-1]
    rank = here - torch.cummax(torch.where(new, here, 0), 0).values if len(index) else here
    target = first[index] + rank
    for name in into:
        into[name][target] = getattr(piece, name)


def in_memory(job: Job, pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """All rows in the caller's order; holds the result and one batch."""
    counts = job.counts
    rows = int(counts.sum())
    tensors = {
        name: torch.full(shape, -1, dtype=dtype)
        if name == "prompt_index"
        else torch.empty(shape, dtype=dtype)
        for name, (dtype, shape) in layout(rows, job).items()
    }
    first = starts(counts)
    for piece in pieces:
        place(piece, first, tensors)
    filled = tensors["prompt_index"] >= 0
    return tensors if bool(filled.all()) else {k: v[filled] for k, v in tensors.items()}


def activations(
    job: Job, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> Activations:
    """The result of a job whose rows have all been checked."""
    return Activations(
        **tensors,
        sites=job.sites,
        prompts=job.prompts,
        labels=job.labels,
        groups=job.groups,
        pooling=job.pooling.name,
        info=job.model.info,
        contrast_sha256=job.contrast_sha256,
        steering=describe(job.model),
        provenance=provenance,
        checked=True,
    )


def provenance(job: Job, rows: int, began: float, **more: Any) -> dict[str, Any]:
    """Options, versions and the receipt."""
    from steerkit import __version__

    return {
        "concept": job.concept,
        "exclude_bos": job.pooling.exclude_bos,
        "sink_ratio": job.pooling.sink_ratio,
        "before": job.before,
        "token_budget": job.token_budget,
        "steerkit": __version__,
        "torch": str(torch.__version__),
        "receipt": {
            "rows": rows,
            **job.receipt,
            "seconds": round(perf_counter() - began, 3),
            **more,
        },
    }
