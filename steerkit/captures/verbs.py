"""`capture`, `stream` and `open_capture`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter

from jaxtyping import Float, Int
from torch import Tensor

from steerkit.activations import Activations
from steerkit.captures.assembly import activations, in_memory, provenance
from steerkit.captures.job import Job, Piece, Prompts, choose_sites
from steerkit.captures.pooling import Pooling, Span
from steerkit.captures.shards import Folder, capture_to
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.site import Site

Sites = Site | str | int | Iterable[Site | str | int]


def capture(
    model: Model,
    prompts: Prompts | Prompt | str,
    *,
    streams: str | Iterable[str] = "resid_post",
    layers: int | Iterable[int] | None = None,
    positions: str | int | Span = "last",
    sites: Sites | None = None,
    exclude_bos: bool = False,
    exclude_sinks: bool | float = False,
    token_budget: int = 4096,
    out: str | Path | None = None,
    resume: bool = True,
    before: bool = False,
    progress: bool = True,
) -> Activations:
    """Record what a model's streams hold while it reads prompts: float32, in their order.

    Prompts run in batches of similar length, up to the deepest site and without the LM head;
    pooling happens in the hook. Memory: the result and one batch; with `out`, one batch.

    Args:
        model: plain or steered; a steered one is read after its interventions.
        prompts: a contrast (its positive side comes first) or prompts.
        streams: one or several of resid_pre, attn_out, resid_mid, mlp_out, resid_post.
        layers: counted from 0; all by default.
        positions: what becomes a row: `last` (the last token before the answer),
            `mean_prompt`, `mean_answer`, a token index into the prompt (negative from its
            end), `Span("text")` (mean over the tokens that cover it), or `all` (one row a
            token of prompt and answer).
        sites: exactly these sites, instead of streams x layers.
        exclude_bos: leave a special token that stands first out of means and `all`.
        exclude_sinks: leave attention sinks out of means (at each site by itself) and of
            `all` (tokens that are sinks at any site): tokens whose norm exceeds this
            multiple of their prompt's median norm; True means 10.
        token_budget: padded tokens a batch may hold.
        out: a folder to stream to; the result is then mapped from disk.
        resume: go on with an interrupted capture in `out`; False starts over.
        before: read the incoming stream, before interventions at each site.
        progress: show a bar on stderr.

    Raises:
        PromptError: no prompts, or one without the asked index, span or answer.
        SiteError: a layer or stream the model lacks.
        ActivationError: NaN or infinite values; names site and prompt.
        OutputError: `out` cannot be written, or holds something else.
    """
    job = _plan(
        model,
        prompts,
        streams,
        layers,
        positions,
        sites,
        exclude_bos,
        exclude_sinks,
        token_budget,
        before,
    )
    began = perf_counter()
    with _bar(len(job.prompts), progress) as bar:
        if out is not None:
            return capture_to(Folder(Path(out)), job, resume=resume, tick=bar.update)

        def pieces() -> Iterator[Piece]:
            for number, piece in job.pieces():
                yield piece
                bar.update(len(job.batches[number]))

        tensors = in_memory(job, pieces())
    return activations(job, tensors, provenance(job, len(tensors["values"]), began))


def stream(
    model: Model,
    prompts: Prompts | Prompt | str,
    *,
    streams: str | Iterable[str] = "resid_post",
    layers: int | Iterable[int] | None = None,
    positions: str | int | Span = "last",
    sites: Sites | None = None,
    exclude_bos: bool = False,
    exclude_sinks: bool | float = False,
    token_budget: int = 4096,
    before: bool = False,
    progress: bool = True,
) -> Iterator[tuple[Int[Tensor, "row"], dict[Site, Float[Tensor, "row d_model"]]]]:
    """Yield, batch by batch, the prompt index of each row and the rows at every site.

    For statistics that need one look at each row (sums, covariances): nothing is kept.
    Arguments and errors are those of `capture`; batches come longest prompts first.
    """
    job = _plan(
        model,
        prompts,
        streams,
        layers,
        positions,
        sites,
        exclude_bos,
        exclude_sinks,
        token_budget,
        before,
    )
    return _streamed(job, progress)


def _streamed(
    job: Job, progress: bool
) -> Iterator[tuple[Int[Tensor, "row"], dict[Site, Float[Tensor, "row d_model"]]]]:
    with _bar(len(job.prompts), progress) as bar:
        for number, piece in job.pieces():
            yield piece.prompt_index, dict(zip(job.sites, piece.values.unbind(1), strict=True))
            bar.update(len(job.batches[number]))


def open_capture(folder: str | Path, *, verify: bool = False) -> Activations:
    """Open a capture made with `out=folder`; values are read from disk when touched.

    Args:
        folder: where it is.
        verify: read the whole file first and compare its sha256 with the manifest's.

    Raises:
        OutputError: there is no finished, sound capture.
    """
    return Folder(Path(folder)).open(verify=verify)


def _plan(
    model: Model,
    prompts: Prompts | Prompt | str,
    streams: str | Iterable[str],
    layers: int | Iterable[int] | None,
    positions: str | int | Span,
    sites: Sites | None,
    exclude_bos: bool,
    exclude_sinks: bool | float,
    token_budget: int,
    before: bool,
) -> Job:
    return Job.plan(
        model,
        prompts,
        sites=choose_sites(model, streams, layers, sites),
        pooling=Pooling.of(positions, exclude_bos=exclude_bos, exclude_sinks=exclude_sinks),
        before=before,
        token_budget=token_budget,
    )


def _bar(total: int, progress: bool):  # type: ignore[no-untyped-def]
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="capture", unit="prompt", disable=not progress)
