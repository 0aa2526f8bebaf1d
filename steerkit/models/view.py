"""The model that users hold: plain or steered, over whatever engine runs the network."""

import html
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Batch, Tokenized, plan
from steerkit.errors import DirectionError, InterventionError, MethodError, PromptError
from steerkit.models.checks import batch_on, check_logits, checked_sites, listed, lowered
from steerkit.models.engine import Engine
from steerkit.models.staircase import staircase
from steerkit.models.steering import Session, Stop
from steerkit.models.variants import of_slots
from steerkit.program import Program, ProgramTable
from steerkit.prompts import Prompt
from steerkit.protocols import Completion, Intervention, Logits, ModelInfo, Pool, Run
from steerkit.site import Site

if TYPE_CHECKING:
    from steerkit.compiled import Capacity, CompiledModel
    from steerkit.concepts.watching import OnScores, Watch
    from steerkit.direction import Direction


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model, plain or steered. Views share the network; hooks live during calls only.

    Calls of one network run one at a time. A view is immutable: `with_` and `with_rows`
    return new ones and leave the network as it is.
    """

    engine: Engine
    table: ProgramTable | None = None
    steering: tuple[str, ...] = ()
    """What is in force, in words, one entry a slot."""

    @property
    def info(self) -> ModelInfo:
        """Name, sizes, available streams, fingerprint."""
        return self.engine.info

    @property
    def network(self) -> Any:
        """The Hugging Face or TransformerLens object underneath."""
        return self.engine.network

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; a `ModelError` where the model was wrapped without one."""
        return self.engine.text.tokenizer

    @property
    def plain(self) -> "LanguageModel":
        """The model under all views, unsteered."""
        return replace(self, table=None, steering=())

    def tokenize(self, prompts: Sequence[Prompt | str]) -> list[Tokenized]:
        """Render (chat template where the tokenizer has one) and tokenize prompts and answers.

        Raises:
            PromptError: no prompts, an empty one, or one longer than the context.
        """
        return self.engine.text.tokenize(listed(prompts))

    def encode(self, prompts: Sequence[Prompt | str]) -> Batch:
        """All prompts as one left-padded batch."""
        items = self.tokenize(prompts)
        if len(self.engine.text.regimes([len(item) for item in items])) > 1:
            raise PromptError(
                f"prompts below and above {self.engine.text.boundary} tokens cannot share a batch "
                "of this long-rope model, which would rotate all of them as long; use batches()"
            )
        return self._collate(items, range(len(prompts)))

    def batches(self, prompts: Sequence[Prompt | str], *, token_budget: int = 4096) -> list[Batch]:
        """The prompts in batches of similar length; `Batch.rows` says which is which."""
        items = self.tokenize(prompts)
        groups = self._groups([len(item) for item in items], token_budget, max_padding=0.125)
        return [self._collate([items[i] for i in group], group) for group in groups]

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids to text, without special tokens."""
        return self.engine.text.decode(tokens)

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
        """One forward pass; see `steerkit.protocols.Model.run`.

        Raises:
            SiteError: a site that the model lacks.
            HookError: a hook that did not fire exactly once.
        """
        check_logits(logits)
        sites = checked_sites(sites, self.info)
        batch = batch_on(batch, self.engine.device)
        slots = self._slots(slots, len(batch))
        session = Session()
        session.steer(self.table, slots)
        stop = logits == "none"
        if stop and not sites:
            return Run(None, {}, {})
        session.capture(sites, batch, pool=pool, before=before, grad=grad, stop=stop)
        session.begin_whole(batch)
        out: Tensor | None = None
        with self.engine.turns.taken() as session.awake, self.engine.undisturbed(grad=grad):
            try:
                with self.engine.attached(session.guarded):
                    out = self.engine.forward(batch, logits)
            except Stop:
                pass
        session.check()
        return Run(
            None if out is None or stop else at_least_float32(out),
            {site: session.streams[site] for site in sites},
            session.fired,
        )

    def run_slots(
        self,
        batch: Batch,
        slots: Sequence[int],
        *,
        sites: Sequence[Site] = (),
        pool: Pool | None = None,
        logits: Logits = "answer",
    ) -> Run:
        """Every slot on every row, the unsteered part of the work done once.

        Equals `run(batch.repeated(len(slots)), slots=...)` with each slot for one block of
        rows; see `steerkit.protocols.Model.run_slots`. Where rows cannot join a pass
        under way (`engine.resumes` says why), that is what runs.

        Raises:
            InterventionError: no slots, or slots that the model does not have.
            SiteError: a site that the model lacks.
            HookError: a hook that did not fire exactly once.
        """
        check_logits(logits)
        if not slots:
            raise InterventionError("run_slots needs at least one slot; 0 is the plain model")
        chosen = self._slots(slots, len(slots))
        sites = checked_sites(sites, self.info)
        variants = None if self.engine.resumes else of_slots(self.table, chosen)
        if variants is None or (logits == "none" and not sites):
            each = [slot for slot in chosen for _ in range(len(batch))]
            whole = batch.repeated(len(chosen))
            return self.run(whole, sites=sites, pool=pool, logits=logits, slots=each)
        return Run(
            *staircase(
                self.engine,  # type: ignore[arg-type]
                batch_on(batch, self.engine.device),
                variants,
                sites=sites,
                pool=pool,
                logits=logits,
            )
        )

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

        A prompt's own `answer` is not shown to the model. A sampled answer depends on the
        seed and on the prompt's number, not on what else is in its batch. `top_k` (0: all) and
        `top_p` (1: all) leave the likeliest tokens to sample from, after the temperature. No
        setting comes from the model's own generation config.

        Raises:
            MethodError: a top_k or top_p that cannot be.
            PromptError: a prompt that leaves no room in the context for the answer.
            InterventionError: slots that the model does not have.
        """
        if top_k < 0 or not 0 < top_p <= 1:
            raise MethodError(
                f"top_k is 0 (all tokens) or more and top_p above 0, at most 1 (all); got "
                f"top_k={top_k}, top_p={top_p}"
            )
        items, chosen = self._asked(prompts, max_new_tokens, temperature, slots)
        answers = self._answers(
            items,
            chosen,
            token_budget=token_budget,
            progress=progress,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
        )
        return self._completions(prompts, items, answers)

    def generate_batch(
        self,
        prompts: Sequence[Prompt | str],
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        slots: Sequence[int] | None = None,
        config: Any = None,
        progress: bool = False,
    ) -> list[Completion]:
        """Answers by Hugging Face's continuous batching: a request ends, the next one begins.

        Each request runs the program of its own slot, and its answer is that of `generate`.
        Requests share cached prefixes only where that cannot carry one's steering to another:
        all run the same program, and it does the same wherever a prompt ends.

        Args:
            prompts: one a request.
            max_new_tokens: of each answer, at most.
            temperature: 0 is greedy.
            seed: of sampled answers.
            slots: program of each request, as in `generate`.
            config: a `transformers.ContinuousBatchingConfig` (memory, tokens of a pass). CUDA
                graphs, compilation and asynchronous passes are refused: hooks would be lost.
            progress: show a bar.

        Raises:
            PromptError: a prompt that leaves no room in the context for the answer.
            InterventionError: slots that the model does not have, or a refused config.
            ModelError: a network that cannot be batched continuously, or a failed scheduler.
            HookError: a hook that did not fire once in each pass.
        """
        from steerkit.serving import serve

        asked, chosen = self._asked(prompts, max_new_tokens, temperature, slots)
        answers = serve(
            self.engine,
            asked,
            self.table,
            chosen,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            config=config,
            progress=progress,
        )
        return self._completions(prompts, asked, answers)

    def with_(self, *interventions: Intervention, force: bool = False) -> "LanguageModel":
        """A steered view. Within one call interventions read the stream together; views stack.

        On a view with several slots (`with_rows`) they run after each slot's own program.
        `force` allows directions that were taken on another model of the same width.

        Raises:
            DirectionError: a direction taken on another model.
            SiteError: a site that the model lacks.
        """
        if not interventions:
            return self
        new = lowered(interventions, self.info, force=force)
        words = ", ".join(str(i) for i in interventions)
        if self.table is None:
            return replace(self, table=ProgramTable((new,)), steering=(words,))
        return replace(
            self,
            table=ProgramTable(tuple(_then(slot, new) for slot in self.table.slots)),
            steering=tuple(f"{before}; {words}" for before in self.steering),
        )

    def with_rows(self, *rows: Sequence[Intervention], force: bool = False) -> "LanguageModel":
        """A view whose slot i+1 carries `rows[i]`; `slots=` chooses for each batch row.

        On a `with_` view each row runs after what the view already does. Slot 0 is always
        the untouched network.

        Raises:
            InterventionError: no rows, or rows on a view that has another number of them.
        """
        if not rows:
            raise InterventionError("with_rows needs at least one row; a row may be empty: ()")
        new = [lowered(tuple(row), self.info, force=force) for row in rows]
        words = tuple(", ".join(str(i) for i in row) or "nothing" for row in rows)
        slots = self.table.slots if self.table is not None else ({},)
        before = self.steering or ("",)
        if len(slots) == 1:
            slots, before = slots * len(rows), before * len(rows)
        if len(slots) != len(rows):
            raise InterventionError(
                f"this view has {len(slots)} slots; rows stacked on it must be as many, "
                f"got {len(rows)}"
            )
        return replace(
            self,
            table=ProgramTable(tuple(_then(a, b) for a, b in zip(slots, new, strict=True))),
            steering=tuple(f"{a}; {b}".strip("; ") for a, b in zip(before, words, strict=True)),
        )

    def read_out(self, vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_vocab"]:
        """What the unembedding reads in directions of the residual stream (float32, CPU).

        The final norm's weight is applied, its scale is not: compare within a row only.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.info.d_model:
            raise DirectionError(
                f"read_out takes vectors [k, {self.info.d_model}]; got {tuple(vectors.shape)}"
            )
        with self.engine.turns.taken(), torch.no_grad():
            return self.engine.read_out(vectors).float().cpu()

    @property
    def path(self) -> str:
        """How this model runs: `eager`, here."""
        return "eager"

    def compile(
        self,
        capacity: "Capacity | None" = None,
        *,
        sites: Sequence[Site | str | int] | None = None,
        path: str = "compiled",
        backend: str | Callable[..., Any] = "inductor",
    ) -> "CompiledModel":
        """This view on an engine of its own: full graphs, a static cache, one table of programs.

        Views of what is returned are slot assignments on the table, made and edited without
        tracing anything again. The network is left as it is; its weights are shared. A
        self-test proves that every site is live.

        Args:
            capacity: slots, terms, batch rows and length that there is room for (see
                `steerkit.compiled.Capacity`). By default what this view needs; of a plain
                model, room for eight slots of everything that fits into one group.
            sites: where programs may stand; by default this view's sites, or of a plain model
                `resid_post` of every layer.
            path: `compiled`, or `cuda_graph` (on a GPU).
            backend: of `torch.compile`.

        Raises:
            ModelError: a model that cannot be compiled, or `cuda_graph` off a GPU.
            SiteError: a site that the model lacks.
            HookError: hooks on the network, or a self-test that failed.
            InterventionError: a view that the capacity has no room for.
        """
        from steerkit.compiled import compiled

        return compiled(self, capacity, sites=sites, path=path, backend=backend)

    def watch(self, direction: "Direction", *, on_scores: "OnScores | None" = None) -> "Watch":
        """A monitor: `model.watch(direction).generate(prompts)` scores each token as it comes.

        The states that generation computes anyway are projected; nothing runs twice. See
        `steerkit.concepts.watch`.

        Raises:
            DirectionError: a direction of another model.
        """
        from steerkit.concepts import watch

        return watch(self, direction, on_scores=on_scores)

    def as_hf(self) -> AbstractContextManager[Any]:
        """A context in which the Hugging Face object itself is steered, for other tools.

        Rows all run slot 1. `prompt_len` is frozen at the first forward without a cache, or
        by `generate`; a text scored in one forward counts as prompt throughout.
        """
        if self.table is not None and len(self.table.slots) != 1:
            raise InterventionError(
                f"as_hf steers every row alike, but this view has {len(self.table.slots)} slots; "
                "use a view made by with_"
            )
        return self.engine.as_hf(self.table)

    def __repr__(self) -> str:
        i = self.info
        steered = f", steered: {' | '.join(self.steering)}" if self.steering else ""
        return f"LanguageModel('{i.name}', {i.n_layers} layers, width {i.d_model}{steered})"

    def _repr_html_(self) -> str:
        i = self.info
        rows = {
            "architecture": f"{i.model_type}, {i.n_layers} layers, width {i.d_model}",
            "vocabulary": f"{i.d_vocab:,} tokens, context {i.n_ctx:,}",
            "streams": ", ".join(i.streams),
            "held as": f"{i.dtype} on {i.device}, weights {i.processing}",
            "prompts": "chat template" if i.chat else "raw text",
            "fingerprint": i.fingerprint[:12],
        }
        for number, words in enumerate(self.steering, 1):
            rows["steering" if len(self.steering) == 1 else f"slot {number}"] = words
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(k)}</th>"
            f"<td style='text-align:left'>{html.escape(v)}</td></tr>"
            for k, v in rows.items()
        )
        return f"<table><caption><b>{html.escape(i.name)}</b></caption>{body}</table>"

    def _groups(
        self, lengths: Sequence[int], token_budget: int, *, max_padding: float = 1.0
    ) -> list[list[int]]:
        """Batches of similar length, none of which mixes regimes."""
        return [
            [regime[i] for i in group]
            for regime in self.engine.text.regimes(lengths)
            for group in plan([lengths[i] for i in regime], token_budget, max_padding=max_padding)
        ]

    def _asked(
        self,
        prompts: Sequence[Prompt | str],
        max_new_tokens: int,
        temperature: float,
        slots: Sequence[int] | None,
    ) -> tuple[list[Tokenized], list[int]]:
        """The prompts without their own answers, and their slots, after checking both."""
        if max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is at least 1; got {max_new_tokens}")
        if temperature < 0:
            raise PromptError(f"temperature is 0 (greedy) or above; got {temperature}")
        asked = [replace(Prompt.of(p), answer="") for p in listed(prompts)]
        items = self.engine.text.tokenize(asked, extra=max_new_tokens)
        return items, self._slots(slots, len(items))

    def _answers(
        self,
        items: Sequence[Tokenized],
        slots: Sequence[int],
        *,
        token_budget: int,
        progress: bool,
        max_new_tokens: int,
        **sampling: Any,
    ) -> list[tuple[int, ...]]:
        """New tokens of each prompt, batch by batch; engines that batch by themselves override."""
        from tqdm.auto import tqdm

        groups = self._groups([len(item) + max_new_tokens for item in items], token_budget)
        answers: dict[int, tuple[int, ...]] = {}
        with tqdm(total=len(items), disable=not progress, desc="generate") as bar:
            for group in groups:
                new = self.engine.complete(
                    self._collate([items[i] for i in group], group),
                    self.table,
                    [slots[i] for i in group],
                    max_new_tokens=max_new_tokens,
                    **sampling,
                )
                answers.update(zip(group, new, strict=True))
                bar.update(len(group))
        return [answers[i] for i in range(len(items))]

    def _completions(
        self,
        prompts: Sequence[Prompt | str],
        items: Sequence[Tokenized],
        answers: Sequence[tuple[int, ...]],
    ) -> list[Completion]:
        """What was answered, beside what was asked."""
        return [
            Completion(Prompt.of(prompt), self.decode(answer), answer, item.prompt)
            for prompt, answer, item in zip(prompts, answers, items, strict=True)
        ]

    def _collate(self, items: Sequence[Tokenized], rows: Sequence[int]) -> Batch:
        pad = self.engine.text.pad_id
        return Batch.collate(items, pad_id=pad, rows=rows, device=self.engine.device)

    def _slots(self, slots: Sequence[int] | Tensor | None, n: int) -> list[int]:
        """One slot a row, checked; slot 1 by default where the model is steered."""
        if slots is None:
            return [int(self.table is not None)] * n
        chosen = [int(slot) for slot in (slots.tolist() if isinstance(slots, Tensor) else slots)]
        last = len(self.table.slots) if self.table is not None else 0
        if len(chosen) != n:
            raise InterventionError(f"one slot a row: {n} rows, got {len(chosen)} slots")
        bad = [slot for slot in chosen if not 0 <= slot <= last]
        if bad:
            raise InterventionError(
                f"no slot {bad[0]}; this model has slots 0..{last} (0 = unsteered)"
            )
        return chosen


def at_least_float32(logits: Tensor) -> Tensor:
    """Half precision widened; float64 kept, for whoever compares with it."""
    if logits.dtype in (torch.float32, torch.float64):
        return logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _then(first: Mapping[Site, Program], later: Mapping[Site, Program]) -> dict[Site, Program]:
    return {
        site: first.get(site, Program()).then(later.get(site, Program()))
        for site in sorted({*first, *later})
    }
