"""What is to be captured, checked before anything runs, and the loop that does it."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit.activations import require_finite
from steerkit.batch import Batch
from steerkit.captures.pooling import Pooling
from steerkit.errors import PromptError, SiteError
from steerkit.program import Gate, ProgramTable
from steerkit.prompts import Contrast, Prompt, groups_of
from steerkit.protocols import Model
from steerkit.registry import suggest
from steerkit.site import Site, sites_of

Prompts = Contrast | Sequence[Prompt | str | Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Piece:
    """The rows that one batch gave, in the order of its prompts and tokens."""

    values: Float[Tensor, "row site d_model"]
    prompt_index: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]
    tokens: Int[Tensor, "row"]


@dataclass(frozen=True, eq=False)
class Job:
    """Prompts in batches, with the tokens to take from each, at which sites of which model."""

    model: Model
    prompts: tuple[Prompt, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]
    contrast_sha256: str
    sites: tuple[Site, ...]
    pooling: Pooling
    before: bool
    token_budget: int
    batches: tuple[Batch, ...]
    masks: tuple[Bool[Tensor, "batch pos"], ...]
    concept: str = ""

    @classmethod
    def plan(
        cls,
        model: Model,
        prompts: Prompts | Prompt | str,
        *,
        sites: tuple[Site, ...],
        pooling: Pooling,
        before: bool,
        token_budget: int,
    ) -> "Job":
        """Read and tokenize the prompts, make batches, find the tokens; nothing has run yet."""
        labels: tuple[int, ...] = ()
        contrast_sha256 = concept = ""
        if isinstance(prompts, Contrast):
            read, labels, groups = prompts.prompts, prompts.labels, prompts.groups
            contrast_sha256, concept = prompts.sha256, prompts.name
        else:
            given = [prompts] if isinstance(prompts, str | Prompt | Mapping) else prompts
            read = tuple(Prompt.of(p) for p in given)
            groups = groups_of(read)
        if not read:
            raise PromptError("there are no prompts to capture; give at least one")
        for i, prompt in enumerate(read):
            if not prompt.text.strip():
                raise PromptError(f"prompt {i} is empty; remove it or give it text")
        batches = tuple(model.batches(read, token_budget=token_budget))
        masks = tuple(pooling.select(batch, read, model.decode) for batch in batches)
        return cls(
            model,
            read,
            labels,
            groups,
            contrast_sha256,
            sites,
            pooling,
            before,
            token_budget,
            batches,
            masks,
            concept,
        )

    @property
    def counts(self) -> Int[Tensor, "prompt"]:
        """Rows each prompt will give; for `all` with sinks left out, at most."""
        counts = torch.ones(len(self.prompts), dtype=torch.long)
        if self.pooling.rule == "all":
            for batch, mask in zip(self.batches, self.masks, strict=True):
                counts[batch.rows.cpu()] = mask.sum(1).cpu()
        return counts

    @property
    def spec(self) -> dict[str, Any]:
        """Everything the result depends on, as JSON: equal specs give equal results."""
        info = self.model.info
        tokens = hashlib.sha256()
        for batch in self.batches:
            for part in (batch.tokens, batch.prompt_len, batch.rows):
                tokens.update(part.cpu().numpy().tobytes())
        about = [[asdict(p) for p in self.prompts], self.labels, self.groups]
        rule = self.pooling.rule
        return {
            "model": info.fingerprint,
            "processing": info.processing,
            "dtype": info.dtype,
            "steering": table_sha256(self.model.table),
            "prompts": hashlib.sha256(json.dumps(about).encode()).hexdigest(),
            "tokens": tokens.hexdigest(),
            "sites": [str(s) for s in self.sites],
            "pooling": self.pooling.name if isinstance(rule, str | int) else repr(rule),
            "exclude_bos": self.pooling.exclude_bos,
            "sink_ratio": self.pooling.sink_ratio,
            "before": self.before,
            "token_budget": self.token_budget,
        }

    def run(self, number: int) -> Piece:
        """Run one batch up to the deepest site.

        Raises:
            ActivationError: a value is NaN or infinite; names the first site and prompt.
        """
        batch, mask = self.batches[number], self.masks[number]
        run = self.model.run(
            batch,
            sites=self.sites,
            pool=self.pooling.pool(mask, batch),
            logits="none",
            before=self.before,
        )
        return self.piece(number, torch.stack([run.streams[site].cpu() for site in self.sites], 1))

    def piece(self, number: int, values: Float[Tensor, "row site d_model"]) -> Piece:
        """The pooled rows of one batch, with whose they are, checked.

        Raises:
            ActivationError: a value is NaN or infinite; names the first site and prompt.
        """
        batch, mask = self.batches[number], self.masks[number]
        rows = batch.rows.cpu()
        if self.pooling.mean:
            piece = Piece(values, rows, torch.full_like(rows, -1), torch.full_like(rows, -1))
        else:
            piece = self._token_rows(values, batch, mask)
        require_finite(piece.values, self.sites, self.prompts, piece.prompt_index)
        return piece

    def _token_rows(self, values: Tensor, batch: Batch, mask: Bool[Tensor, "batch pos"]) -> Piece:
        sinks = self.pooling.rule == "all" and self.pooling.sink_ratio is not None
        taken = batch.mask if sinks else mask
        row, column = taken.nonzero(as_tuple=True)
        index = batch.rows[row].cpu()
        positions = batch.absolute[row, column].cpu()
        tokens = batch.tokens[row, column].cpu()
        if sinks:
            keep = self.pooling.without_sinks(values, index) & mask[row, column].cpu()
            return Piece(values[keep], index[keep], positions[keep], tokens[keep])
        return Piece(values, index, positions, tokens)

    def pieces(self, skip: Collection[int] = ()) -> Iterator[tuple[int, Piece]]:
        """Run the batches, one at a time, leaving out those already done."""
        for number in range(len(self.batches)):
            if number not in skip:
                yield number, self.run(number)

    @property
    def receipt(self) -> dict[str, int]:
        """Prompts, batches, tokens run, and padding run beside them."""
        tokens = sum(int(batch.mask.sum()) for batch in self.batches)
        padded = sum(batch.tokens.numel() for batch in self.batches)
        return {
            "prompts": len(self.prompts),
            "batches": len(self.batches),
            "tokens": tokens,
            "padding_tokens": padded - tokens,
        }


def choose_sites(
    model: Model,
    streams: str | Iterable[str],
    layers: int | Iterable[int] | None,
    sites: Site | str | int | Iterable[Site | str | int] | None,
) -> tuple[Site, ...]:
    """The sites that `capture`'s arguments name, each known to be there.

    Raises:
        SiteError: a layer or stream that the model lacks, or none named at all.
    """
    info = model.info
    if sites is not None:
        if layers is not None or streams != "resid_post":
            raise SiteError("give sites, or streams and layers, not both")
        given = [sites] if isinstance(sites, Site | str | int) else sites
        chosen = tuple(sorted({Site.parse(site) for site in given}))
    else:
        chosen = sites_of([layers] if isinstance(layers, int) else layers, streams, info.n_layers)
    if not chosen:
        raise SiteError("there are no sites to capture; name at least one layer and stream")
    for site in chosen:
        if site.layer >= info.n_layers:
            raise SiteError(
                f"no {site.stream} at layer {site.layer}: {info.name} has layers "
                f"0..{info.n_layers - 1}; try {Site(info.n_layers - 1, site.stream)}"
            )
        if site.stream not in info.streams:
            raise SiteError(
                f"{info.name} ({info.model_type}) has no {site.stream}; "
                f"{suggest(site.stream, info.streams)}"
            )
    return chosen


def table_sha256(table: ProgramTable | None) -> str:
    """Hash of the programs in force at every slot and site; empty for a plain model."""
    if table is None:
        return ""
    digest = hashlib.sha256()
    for slot in table.slots:
        for site in sorted(slot):
            digest.update(f"|{site}".encode())
            for latch in slot[site].latches:
                digest.update(repr((latch.name, latch.pooled)).encode())
                _update(digest, latch.condition)
            for group in slot[site].groups:
                rules = [(p.rule, p.indices) for p in group.positions]
                digest.update(repr((group.opcodes, rules)).encode())
                masks = [p.mask for p in group.positions if p.mask is not None]
                for part in (group.read, group.offset, group.write, group.params, *masks):
                    digest.update(part.detach().cpu().contiguous().numpy().tobytes())
                for gate in group.gates:
                    _update(digest, gate)
        digest.update(b"||")
    return digest.hexdigest()


def _update(digest: Any, gate: Gate | None) -> None:
    """Take a gate, or the lack of one, into a hash."""
    if gate is None:
        digest.update(b"open")
        return
    digest.update(repr((gate.threshold, gate.measure, gate.above, gate.latch)).encode())
    digest.update(gate.read.detach().cpu().contiguous().numpy().tobytes())


def describe(model: Model) -> tuple[str, ...]:
    """The interventions in force, in short; empty for a plain model."""
    if model.table is None or not model.table.sites:
        return ()
    own: tuple[str, ...] = getattr(model, "steering", ())
    return own or tuple(f"program at {site}" for site in model.table.sites)
