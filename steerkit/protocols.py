"""Read this first: the four contracts that the rest of steerkit is written against.

A `Model` runs prompts and shows its streams; an `Intervention` says what to change and
lowers to a `Program`; an `Extractor` turns labelled activations into a direction; a
`Check` scores evidence, one value per prompt. Only `Model` implementations ever see a
real network.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerkit.batch import Batch, Positions, Tokenized
from steerkit.program import Program, ProgramTable
from steerkit.prompts import Prompt
from steerkit.site import Site, Stream

Pool = Callable[[Float[Tensor, "batch pos d_model"], Batch], Tensor]
"""Reduces a stream inside the hook, so that only the result is kept."""

Logits = Literal["none", "last", "answer", "all"]
"""Which logits a run returns: `last` keeps the last column; `answer` the columns that predict
answer tokens (the last `batch.answer_width + 1`); `none` also stops after the deepest site."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model: enough to check that a direction belongs to it."""

    name: str
    model_type: str
    n_layers: int
    d_model: int
    d_vocab: int
    n_ctx: int
    streams: tuple[Stream, ...]
    dtype: str
    device: str
    fingerprint: str
    """sha256 over architecture, weight sample and weight processing."""
    processing: str = "raw"
    """`raw`, or what TransformerLens did to the weights (folding and centring move the stream)."""
    chat: bool = False
    """Whether the tokenizer has a chat template."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**self.__dict__, "streams": list(self.streams)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelInfo":
        """The inverse of `to_json`."""
        return cls(**{**data, "streams": tuple(data["streams"])})


@dataclass(frozen=True)
class Run:
    """What one forward pass gave: logits as asked, and the streams (pooled, if pooled)."""

    logits: Float[Tensor, "batch kept d_vocab"] | None
    streams: Mapping[Site, Tensor]
    fired: Mapping[Site, int] = field(default_factory=dict)
    """The receipt: how often the hook of each requested or steered site fired."""


@dataclass(frozen=True)
class Completion:
    """One generated answer."""

    prompt: Prompt
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]


@runtime_checkable
class Model(Protocol):
    """A language model, plain or steered; both satisfy the same protocol."""

    @property
    def info(self) -> ModelInfo:
        """Name, sizes, available streams, fingerprint."""
        ...

    def tokenize(self, prompts: Sequence[Prompt | str]) -> list[Tokenized]:
        """Render (chat template where the tokenizer has one) and tokenize prompts and answers."""
        ...

    def encode(self, prompts: Sequence[Prompt | str]) -> Batch:
        """All prompts as one left-padded batch."""
        ...

    def batches(self, prompts: Sequence[Prompt | str], *, token_budget: int = 4096) -> list[Batch]:
        """The prompts in batches of similar length; `Batch.rows` says which is which."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids to text, without special tokens."""
        ...

    def run(
        self,
        batch: Batch,
        *,
        sites: Sequence[Site] = (),
        pool: Pool | None = None,
        logits: Logits = "all",
        slots: Sequence[int] | Tensor | None = None,
        before: bool = False,
        grad: bool = False,
    ) -> Run:
        """One forward pass; streams are read after this model's interventions.

        Args:
            batch: what to run.
            sites: streams to return. Each hook must fire exactly once, else `HookError`.
            pool: applied inside the hook; without it whole streams are kept.
            logits: which logits to compute (see `Logits`).
            slots: program slot of each row (0 = unsteered). Default: slot 1 where steered.
            before: read the incoming stream instead, before interventions at that site.
            grad: keep the autograd graph (off by default).
        """
        ...

    def run_slots(
        self,
        batch: Batch,
        slots: Sequence[int],
        *,
        sites: Sequence[Site] = (),
        pool: Pool | None = None,
        logits: Logits = "answer",
    ) -> Run:
        """Every slot on every row of a batch: what a sweep runs.

        Equals `run(batch.repeated(len(slots)), slots=...)`, slot after slot, to rounding, but
        the unsteered rows run once and each slot's rows join them where its program first
        acts. Logits and streams are `[slot * row ...]`; a pool is given the rows of the pass
        so far, in any order.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Prompt | str],
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        slots: Sequence[int] | None = None,
        token_budget: int = 4096,
        progress: bool = False,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[Completion]:
        """Answers, in the order of the prompts. Temperature 0 is greedy.

        `top_k` (0: all) and `top_p` (1: all) truncate what is sampled from. `slots[i]` is the
        program slot of prompt i (0 = unsteered).
        """
        ...

    def with_(self, *interventions: "Intervention") -> "Model":
        """A steered view. Views stack; nothing is mutated."""
        ...

    def with_rows(self, *rows: "Sequence[Intervention]") -> "Model":
        """A view whose slot i+1 carries `rows[i]`: choose per row by `slots=`."""
        ...

    @property
    def table(self) -> ProgramTable | None:
        """The programs of a steered view; None for a plain model."""
        ...

    @property
    def plain(self) -> "Model":
        """The model under all views, unsteered."""
        ...

    def read_out(self, vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_vocab"]:
        """What the unembedding reads in directions of the residual stream (float32, CPU).

        The final norm's weight is applied, its scale is not: compare within a row only.
        """
        ...

    def as_hf(self) -> AbstractContextManager[Any]:
        """A context in which the Hugging Face object itself is steered, for other tools."""
        ...


@runtime_checkable
class Intervention(Protocol):
    """What to change, where, how strongly: a frozen dataclass with one method."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites it acts on."""
        ...

    @property
    def positions(self) -> Positions:
        """The tokens it acts on."""
        ...

    @property
    def strength(self) -> float:
        """0 leaves the stream untouched."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model its direction came from, or None if it has none."""
        ...

    def lower(self, site: Site) -> Program:
        """The program at one of its sites; empty at strength 0."""
        ...


class Extractor(Protocol):
    """Labelled activations of one site in, an un-normalised direction out."""

    supervised: bool
    """Whether swapping the labels flips the direction."""
    estimates: str
    """What it estimates, in words and symbols."""

    def __call__(
        self,
        x: Float[Tensor, "prompt d_model"],
        labels: Tensor,
        groups: Sequence[str],
        *,
        seed: int,
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows given; float64 in, float64 out."""
        ...


class Check(Protocol):
    """Scores evidence: one value per prompt, NaN where it does not apply."""

    name: str
    unit: str

    def __call__(self, evidence: Any) -> NDArray[np.float64]:
        """One value per prompt of the evidence, `[prompt]`; needs no torch, nor a model."""
        ...
