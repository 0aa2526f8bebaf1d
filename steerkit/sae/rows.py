"""Activations at an SAE's site, a chunk of rows at a time: recorded, or from a model as it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from steerkit.activations import Activations
from steerkit.captures.job import Job, Prompts, choose_sites
from steerkit.captures.pooling import Pooling
from steerkit.errors import ActivationError, DirectionError
from steerkit.prompts import Prompt
from steerkit.protocols import Model, ModelInfo
from steerkit.sae.autoencoder import Autoencoder

CHUNK_BYTES = 2**25
"""Dense features that are held at once."""
BLOCK = 1024
"""Prompts that are taken from an iterator at a time."""

Source = Activations | Model
Texts = Prompts | Prompt | str | Iterator[Prompt | str]


@dataclass(frozen=True, eq=False)
class Rows:
    """A chunk of activations at the SAE's site, with whose they are."""

    values: Float[Tensor, "row d_model"]
    prompt_index: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]
    tokens: Int[Tensor, "row"]


def chunks(
    sae: Autoencoder,
    source: Source,
    prompts: Texts | None = None,
    *,
    exclude_bos: bool = True,
    token_budget: int = 4096,
) -> Iterator[Rows]:
    """The rows at the SAE's site, few enough at a time that dense features fit `CHUNK_BYTES`."""
    size = max(1, CHUNK_BYTES // (4 * sae.d_sae))
    if isinstance(source, Activations):
        if prompts is not None:
            raise ActivationError("give activations, or a model and prompts, not both")
        yield from _recorded(sae, source, size)
        return
    if prompts is None:
        raise ActivationError("a model needs prompts to run: give the texts after the model")
    first = 0
    for block in _blocks(prompts):
        job = token_job(sae, source, block, exclude_bos=exclude_bos, token_budget=token_budget)
        for _, whole in job.pieces():
            for start in range(0, len(whole.values), size):
                part = slice(start, start + size)
                yield Rows(
                    whole.values[part, 0],
                    whole.prompt_index[part] + first,
                    whole.positions[part],
                    whole.tokens[part],
                )
        first += len(job.prompts)


def _blocks(prompts: Texts) -> Iterator[Prompts | Prompt | str]:
    """All at once, or, from an iterator, a few at a time: tokens and batches of those alone."""
    if not isinstance(prompts, Iterator):
        yield prompts
        return
    while block := list(islice(prompts, BLOCK)):
        yield block


def token_job(
    sae: Autoencoder,
    model: Model,
    prompts: Prompts | Prompt | str,
    *,
    exclude_bos: bool = True,
    token_budget: int = 4096,
) -> Job:
    """The capture of every token at the SAE's site, planned."""
    require_model(sae, model.info)
    return Job.plan(
        model,
        prompts,
        sites=choose_sites(model, "resid_post", None, [sae.site]),
        pooling=Pooling.of("all", exclude_bos=exclude_bos),
        before=False,
        token_budget=token_budget,
    )


def require_model(sae: Autoencoder, info: ModelInfo) -> None:
    """Raise where the SAE was loaded for another model.

    Raises:
        DirectionError: another model.
    """
    if sae.info is not None and sae.info.fingerprint != info.fingerprint:
        raise DirectionError(
            f"{sae.name} was loaded for {sae.info.name} ({sae.info.fingerprint[:12]}), not for "
            f"{info.name} ({info.fingerprint[:12]}); load it with load_sae(..., model=model)"
        )


def _recorded(sae: Autoencoder, acts: Activations, size: int) -> Iterator[Rows]:
    require_model(sae, acts.info)
    token = acts.pooling in ("last", "all") or acts.pooling.startswith("index")
    if not token:
        raise ActivationError(
            f"features are of tokens, and these rows are pooled ('{acts.pooling}'): a feature of "
            "a mean is not the mean of a feature; capture with positions='all' or 'last'"
        )
    acts.at(sae.site)  # names what was captured where the site is not among it
    column = acts.sites.index(sae.site)
    for start in range(0, len(acts), size):
        part = slice(start, start + size)
        yield Rows(
            acts.values[part, column],
            acts.prompt_index[part],
            acts.positions[part],
            acts.tokens[part],
        )


def prompts_of(source: Source, prompts: Prompts | Prompt | str | None) -> Sequence[Prompt]:
    """The prompts that a source's `prompt_index` counts."""
    if isinstance(source, Activations):
        return source.prompts
    given: Any = getattr(prompts, "prompts", prompts)
    given = [given] if isinstance(given, str | Prompt) else given
    return tuple(Prompt.of(p) for p in given or ())
