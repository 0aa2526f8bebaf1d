"""A model that runs in vLLM, behind the protocol of every model: `sk.load("vllm:NAME")`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerkit.batch import Batch, Tokenized
from steerkit.errors import ModelError
from steerkit.models.checks import batch_on, check_logits, checked_sites
from steerkit.models.view import LanguageModel
from steerkit.prompts import Prompt
from steerkit.protocols import Completion, Logits, Pool, Run
from steerkit.site import Site
from steerkit.vllm.engine import VLLMEngine
from steerkit.vllm.records import Captured
from steerkit.vllm.starting import start

if TYPE_CHECKING:
    from steerkit.compiled import Capacity, CompiledModel
    from steerkit.concepts.watching import OnScores, Watch
    from steerkit.direction import Direction


def load(source: str, name: str, **options: Any) -> "VLLMModel":
    """Start vLLM on a checkpoint; see `steerkit.vllm.starting.start` and `sk.load`."""
    return VLLMModel(start(source, name, **options))


@dataclass(frozen=True, eq=False, repr=False)
class VLLMModel(LanguageModel):
    """A language model whose passes are vLLM's: prompts and rows become requests.

    Views are as cheap as everywhere and mix freely in one batch. Streams are `resid_pre` and
    `resid_post`; they and logits come back as float32 on the CPU. vLLM schedules by itself, so
    token budgets bound what is asked for at a time, not what runs. Answers are those of the
    Hugging Face engine where they are greedy; sampled ones depend on the seed and the prompt's
    number alone, but they are other samples than that engine's.
    """

    engine: VLLMEngine

    @property
    def path(self) -> str:
        """How this model runs: `vllm`."""
        return "vllm"

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
        """Streams and logits of a batch, a request a row; see `steerkit.protocols.Model.run`.

        A pool that says which tokens it reads (`steerkit.captures.pooling.Pooled`) has only
        those captured; all others are zeros in what it is given, as padding is everywhere.

        Raises:
            ModelError: gradients asked for.
            SiteError: a site inside a layer, or one that the model lacks.
            PromptError: a row that fills vLLM's context.
            InterventionError: programs that a request has no room for.
            HookError: a token that passed unseen.
        """
        check_logits(logits)
        sites = checked_sites(sites, self.info)
        if grad:
            raise self._refused("keeps no gradients")
        batch = batch_on(batch, self.engine.device)
        chosen = self._slots(slots, len(batch))
        if logits == "none" and not sites:
            return Run(None, {}, {})
        columns = {"all": batch.width, "answer": batch.answer_width + 1, "last": 1}.get(logits, 0)
        predicts = None
        if columns:
            predicts = batch.mask.clone()
            predicts[:, : batch.width - columns] = False
        reads = getattr(pool, "reads", None)
        streams, scored = self.engine.streams(
            batch,
            self.table,
            chosen,
            sites=sites,
            reads=batch.mask if reads is None else reads.to(self.engine.device) & batch.mask,
            predicts=predicts,
            before=before,
        )
        found: dict[Site, Tensor] = {}
        for site in sites:
            whole = torch.zeros(*batch.tokens.shape, self.info.d_model)
            _fill(whole, batch, streams, partial(Captured.at, site=site))
            found[site] = whole if pool is None else pool(whole, batch)
        out = None
        if columns:
            out = torch.zeros(*batch.tokens.shape, self.info.d_vocab)[:, batch.width - columns :]
            _fill(out, batch, scored, _logits)
        return Run(out, found, dict.fromkeys(sites, 1))

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
        """New tokens of each prompt, all asked at once: vLLM has no use for a token budget."""
        return self.engine.answers(
            [item.prompt for item in items],
            range(len(items)),
            self.table,
            slots,
            max_new_tokens=max_new_tokens,
            progress=progress,
            **sampling,
        )

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
        """The same as `generate`, which batches continuously.

        Raises:
            ModelError: a config, which is Hugging Face's.
        """
        if config is not None:
            raise self._refused("has its own batching; give its settings to sk.load")
        return self.generate(
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            slots=slots,
            progress=progress,
        )

    def compile(
        self,
        capacity: "Capacity | None" = None,
        *,
        sites: Sequence[Site | str | int] | None = None,
        path: str = "compiled",
        backend: str | Callable[..., Any] = "inductor",
    ) -> "CompiledModel":
        """Refused: vLLM compiles by itself, unless loaded with `enforce_eager=True`."""
        raise self._refused("compiles by itself (enforce_eager=False)")

    def watch(self, direction: "Direction", *, on_scores: "OnScores | None" = None) -> "Watch":
        """Refused: scores would have to be taken inside vLLM's passes."""
        raise self._refused("is not watched as it generates")

    def close(self) -> None:
        """End vLLM and free its memory; a process holds one engine at a time."""
        self.engine.close()

    def _refused(self, why: str) -> ModelError:
        return self.engine._refused(why)

    def __repr__(self) -> str:
        return super().__repr__().replace("LanguageModel", "VLLMModel", 1)


def _logits(captured: Captured) -> Tensor:
    assert captured.logits is not None
    return captured.logits


def _fill(
    out: Tensor,
    batch: Batch,
    captured: Sequence[Captured | None],
    values: Callable[[Captured], Tensor],
) -> None:
    """Put each row's captured tokens at their columns, of which `out` has the last ones."""
    for row, found in enumerate(captured):
        if found is not None:
            padding = out.shape[1] - int(batch.mask[row].sum())
            out[row, found.positions + padding] = values(found)
