"""Does an edited model do what run-time ablation does? Measured, not assumed."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Batch
from steerkit.direction import Direction
from steerkit.edits.receipt import TwinError
from steerkit.edits.writers import contributions
from steerkit.errors import ModelError
from steerkit.interventions import Ablate
from steerkit.models import LanguageModel
from steerkit.site import Site

NOISE, HALF_NOISE = 64, 16
"""Rounding errors, each of 1 / sqrt(d_model) of a contribution, that may add up along a unit.
In half precision only the last few matter: sums run in float32."""

LOGITS = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Median relative error of the logits above which an edit is no twin."""
HALF_LOGITS = 0.03, 0.1
"""The same for half precision: the first is rounding, the second never is; between them the
edit has to be twice as close to its twin as the unedited model is."""


def check_streams(
    model: LanguageModel, basis: Float[Tensor, "d_model k"], batches: Sequence[Batch]
) -> float:
    """The largest component of any contribution along the basis, relative to its norm.

    Raises:
        ModelError: a contribution that still writes along the basis beyond rounding.
    """
    sites = (*contributions(model), Site(model.info.n_layers - 1))
    worst, where = 0.0, sites[0]
    for batch in batches:
        streams = model.run(batch, sites=sites, logits="none").streams
        for site, stream in streams.items():
            values = stream[batch.mask.to(stream.device)].double()
            # A contribution that is nothing at a token has no direction either.
            size = values.norm(dim=-1).clamp(min=1e-6 * float(values.norm(dim=-1).max()))
            leak = float(((values @ basis.to(values.device)).norm(dim=-1) / size).max())
            if leak > worst:
                worst, where = leak, site
    dtype = getattr(torch, model.info.dtype)
    noise = NOISE if dtype in LOGITS else HALF_NOISE
    allowed = noise * torch.finfo(dtype).eps * (basis.shape[1] / basis.shape[0]) ** 0.5
    if worst > allowed:
        raise ModelError(
            f"{model.info.name}: after the edit {where} still has {worst:.2g} of its norm along "
            f"the directions, where rounding in {model.info.dtype} explains {allowed:.2g}; "
            "something writes the stream that was not edited. Use run-time Ablate instead"
        )
    return worst


def twin_error(
    before: LanguageModel,
    after: LanguageModel,
    directions: Sequence[Direction],
    batches: Sequence[Batch],
    *,
    prompts: str,
    force: bool = False,
) -> TwinError:
    """Relative logits error of an edited model against run-time ablation at every contribution.

    The twin is `Ablate(reference="zero", positions="all")` at resid_pre@0 and at every
    attn_out and mlp_out. Source: Arditi et al. 2024 (arXiv:2406.11717).
    """
    ablated = before.with_(
        Ablate(directions, "zero", positions="all", sites=contributions(before)), force=force
    )
    found, plain = [], []
    for batch in batches:
        real = batch.mask.cpu()
        wanted, got, old = (_logits(m, batch)[real] for m in (ablated, after, before))
        size = wanted.norm(dim=-1).clamp(min=1e-12)
        found.append((got - wanted).norm(dim=-1) / size)
        plain.append((old - wanted).norm(dim=-1) / size)
    errors = torch.cat(found)
    return TwinError(
        float(errors.max()),
        float(errors.median()),
        float(torch.cat(plain).median()),
        len(errors),
        prompts,
    )


def check_twin(model: LanguageModel, error: TwinError) -> None:
    """Refuse an edit that should be exact and is not.

    Raises:
        ModelError: the median token differs from run-time ablation by more than rounding.
    """
    rounding, most = HALF_LOGITS
    half = min(most, max(rounding, error.unedited / 2))
    allowed = LOGITS.get(getattr(torch, model.info.dtype), half)
    # The median: where rounding sends a token to another expert, that token may differ.
    if not error.median <= allowed:
        raise ModelError(
            f"{model.info.name}: the edited weights are not the twin of run-time ablation "
            f"({error}; {model.info.dtype} allows a median of {allowed:.2g}): an edited weight is "
            "read elsewhere too. Use run-time Ablate, or approximate=True"
        )


def _logits(model: LanguageModel, batch: Batch) -> Tensor:
    logits = model.run(batch).logits
    assert logits is not None
    return logits.double().cpu()
