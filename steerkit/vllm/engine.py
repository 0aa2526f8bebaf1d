"""vLLM as the engine under a view: its requests are what a network's forward passes are elsewhere.

Every row of a batch becomes one request that names its slot's programs (`starting` makes the
engine).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import uuid4

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerkit.batch import Batch
from steerkit.errors import HookError, ModelError, PromptError
from steerkit.models.engine import Turns
from steerkit.models.hooks import Visit
from steerkit.models.readout import through_norm
from steerkit.models.text import Text
from steerkit.program import Program, ProgramTable
from steerkit.protocols import Logits, ModelInfo
from steerkit.site import Site
from steerkit.vllm import programs as kept
from steerkit.vllm import records
from steerkit.vllm.records import Captured
from steerkit.vllm.registrations import NONE, artefacts
from steerkit.vllm.requests import KEY
from steerkit.vllm.room import check


class VLLMEngine:
    """A running `vllm.LLM`, its tokenizer, and what is known of its checkpoint.

    Token ids and captures are tensors on the CPU, wherever vLLM runs.

    Args:
        llm: the `vllm.LLM`.
        info: of the model.
        text: its tokenizer.
        unembedding: reads the final norm and the unembedding of the checkpoint.
    """

    def __init__(
        self, llm: Any, info: ModelInfo, text: Text, unembedding: Callable[[], tuple[Any, Tensor]]
    ) -> None:
        self.llm, self.info, self.text, self.turns = llm, info, text, Turns()
        self._read_unembedding = unembedding
        self._owner = uuid4().hex
        self._calls = 0

    @property
    def resumes(self) -> str:
        """Why rows cannot join a pass under way."""
        return "its passes are vLLM's own"

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return torch.device("cpu")

    @property
    def network(self) -> Any:
        """Refused: vLLM's modules run packed batches on a cache of its own."""
        raise self._refused("has no network that can be called or changed")

    def undisturbed(self, *, grad: bool = False) -> AbstractContextManager[None]:
        """Refused, as `network` is."""
        raise self._refused("has no network that can be called or changed")

    def attached(self, visits: Mapping[Site, Visit]) -> AbstractContextManager[None]:
        """Refused: the plugin steers and captures, and runs no functions of others."""
        raise self._refused("takes no hooks")

    def forward(self, batch: Batch, logits: Logits) -> Float[Tensor, "batch kept d_vocab"]:
        """Refused: `VLLMModel.run` asks for captures instead."""
        raise self._refused("takes no hooks")

    def as_hf(self, table: ProgramTable | None) -> AbstractContextManager[Any]:
        """Refused: there is no Hugging Face object."""
        raise self._refused("has no Hugging Face object inside")

    def complete(
        self,
        batch: Batch,
        table: ProgramTable | None,
        slots: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[tuple[int, ...]]:
        """New tokens of each row, the end-of-sequence token included where it was reached."""
        return self.answers(
            [row[real].tolist() for row, real in zip(batch.tokens, batch.mask, strict=True)],
            batch.rows.tolist(),
            table,
            slots,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
        )

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        table: ProgramTable | None,
        slots: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        top_k: int = 0,
        top_p: float = 1.0,
        progress: bool = False,
    ) -> list[tuple[int, ...]]:
        """New tokens of each prompt; all are given to vLLM at once, which schedules them.

        Args:
            prompts: token ids.
            rows: the caller's numbers of the prompts, which sampling is seeded by.
            table: programs.
            slots: one a prompt; 0 for none.
            max_new_tokens: of each answer, at most.
            temperature: 0 is greedy.
            seed: with a row's number, seeds its sampling.
            top_k: 0 for all tokens.
            top_p: 1 for all tokens.
            progress: show a bar.

        Raises:
            InterventionError: programs that a request has no room for.
        """
        with self.turns.taken(), self._steering(table, slots) as steering:
            given = [
                self._settings(
                    {"steering": steering[slot]} if steering[slot] else None,
                    max_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=(seed * 1_000_003 + row) % 2**63 if temperature > 0 else None,
                    top_k=top_k,
                    top_p=top_p,
                    stop_token_ids=list(self.text.eos_ids),
                )
                for row, slot in zip(rows, slots, strict=True)
            ]
            out: list[Any] = []
            for first, end in self._waves([len(prompt) for prompt in prompts], temperature):
                out += self._run(prompts[first:end], given[first:end], progress=progress)
        return [tuple(one.outputs[0].token_ids) for one in out]

    def _waves(self, lengths: Sequence[int], temperature: float) -> Iterator[tuple[int, int]]:
        """Requests that are given to vLLM together: all, unless their prompts may not be cut.

        Where a prompt comes in chunks, vLLM sets the generator of a seeded request back, which
        a CPU's generators cannot be: the engine would end.
        """
        config = self.llm.llm_engine.vllm_config
        if temperature == 0 or config.device_config.device_type != "cpu":
            yield 0, len(lengths)
            return
        room = int(config.scheduler_config.max_num_batched_tokens)
        if max(lengths) > room:
            raise PromptError(
                f"a prompt has {max(lengths)} tokens, and vLLM on a CPU samples with a seed after "
                f"prompts of at most {room} here; load the model with a larger "
                "max_num_batched_tokens, or answer greedily"
            )
        first, filled = 0, 0
        for i, length in enumerate(lengths):
            if filled + length > room or i - first == config.scheduler_config.max_num_seqs:
                yield first, i
                first, filled = i, 0
            filled += length
        yield first, len(lengths)

    def streams(
        self,
        batch: Batch,
        table: ProgramTable | None,
        slots: Sequence[int],
        *,
        sites: Sequence[Site],
        reads: Bool[Tensor, "batch pos"],
        predicts: Bool[Tensor, "batch pos"] | None,
        before: bool,
    ) -> tuple[list[Captured | None], list[Captured | None]]:
        """Streams and logits of some tokens of each row, by captures of one request a row.

        Args:
            batch: the rows; answers come along with their prompts.
            table: programs.
            slots: one a row.
            sites: whose streams.
            reads: tokens whose streams are wanted.
            predicts: tokens whose logits are wanted; None for none.
            before: streams before the steering at each site.

        Returns:
            Captures of streams and of logits; None where a row wants none.

        Raises:
            PromptError: a row that leaves vLLM no room for the one token that it samples.
            HookError: a token that did not pass, or logits of another size.
        """
        self._calls += 1
        prefix = f"{self._owner}-{self._calls}"
        longest = int(batch.mask.sum(1).max())
        if longest >= self.info.n_ctx:
            raise PromptError(
                f"a row has {longest} tokens, and vLLM takes at most {self.info.n_ctx - 1} here: "
                "it samples one more; shorten it, or load with a larger max_model_len"
            )
        named = [str(site) for site in sites]
        wanted: list[tuple[_Wanted | None, _Wanted | None]] = []
        for i in range(len(batch)):
            at = batch.absolute[i]
            streams = _wanted(
                at[reads[i]], name=f"{prefix}-{i}-streams", sites=named, before=before
            )
            scores = None
            if predicts is not None:
                scores = _wanted(at[predicts[i]], name=f"{prefix}-{i}-logits", logits=True)
            wanted.append((streams if named else None, scores))
        place = artefacts()
        try:
            with self.turns.taken(), self._steering(table, slots) as steering:
                given = [
                    self._settings(
                        {
                            "capture": [one.asked for one in pair if one],
                            "prompt_len": length,
                            "steering": steering[slot],
                        },
                        max_tokens=1,
                        temperature=0.0,
                    )
                    for pair, length, slot in zip(
                        wanted, batch.prompt_len.tolist(), slots, strict=True
                    )
                ]
                rows = [
                    row[real].tolist() for row, real in zip(batch.tokens, batch.mask, strict=True)
                ]
                self._run(rows, given)
            found = [[one.read() if one else None for one in pair] for pair in wanted]
        finally:
            for one in (one for pair in wanted for one in pair if one):
                records.discard(one.asked["name"], place)
        return [pair[0] for pair in found], [pair[1] for pair in found]

    @cached_property
    def _unembedding(self) -> tuple[Any, Tensor]:
        return self._read_unembedding()

    def read_out(self, vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_vocab"]:
        """What the final norm's weight and the unembedding make of directions.

        Both are read from the checkpoint.
        """
        norm, head = self._unembedding
        return through_norm(norm, vectors, head) @ head.float().T

    def close(self) -> None:
        """End vLLM and free what it holds; nothing runs here afterwards."""
        ended(self.llm)

    @contextmanager
    def _steering(
        self, table: ProgramTable | None, slots: Sequence[int]
    ) -> Iterator[Mapping[int, Any]]:
        """What requests say that run a slot; the programs' files are there while it is open."""
        place = artefacts()
        nothing = NONE if place.has_default else None
        said: dict[int, Any] = dict.fromkeys(slots, nothing)
        digests: list[str] = []
        try:
            for slot in sorted(set(slots) - {0}):
                assert table is not None
                programs = _acting(table.slots[slot - 1])
                if programs:
                    check(programs)
                    digests.append(kept.keep(programs, place, owner=self._owner))
                    said[slot] = {"programs": digests[-1]}
            yield said
        finally:
            for digest in digests:
                kept.forget(digest, place)

    def _settings(self, asked: Mapping[str, Any] | None, **settings: Any) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            # The tokens that end an answer are those of `Text`, whatever else files name.
            ignore_eos=True,
            detokenize=False,
            extra_args=None if asked is None else {KEY: dict(asked)},
            **settings,
        )

    def _run(
        self, prompts: Sequence[Sequence[int]], settings: Sequence[Any], *, progress: bool = False
    ) -> Any:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return self.llm.generate(given, list(settings), use_tqdm=progress)

    def _refused(self, why: str) -> ModelError:
        return ModelError(
            f"{self.info.name} runs inside vLLM and {why}; load the same checkpoint without 'vllm:'"
        )


def ended(llm: Any) -> None:
    """End a `vllm.LLM` and what it shares with others of its process."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def _acting(programs: Mapping[Site, Program]) -> dict[Site, Program]:
    return {site: program for site, program in programs.items() if program}


@dataclass(frozen=True)
class _Wanted:
    """A capture of a row."""

    asked: Mapping[str, Any]

    def read(self) -> Captured:
        """What was captured, once it is known that it is what was wanted."""
        found = records.captured(self.asked["name"])
        positions = self.asked["positions"]
        if found.positions.tolist() != positions:
            missing = sorted(set(positions) - set(found.positions.tolist()))
            raise HookError(
                f"{len(missing)} of {len(positions)} tokens of a request passed vLLM's layers "
                f"unseen (the first at position {missing[:1]}), or others were seen; this is a "
                "fault of the plugin"
            )
        return found


def _wanted(positions: Tensor, **what: Any) -> _Wanted | None:
    """A capture of these positions; None for none."""
    return _Wanted({"positions": positions.tolist(), **what}) if len(positions) else None
