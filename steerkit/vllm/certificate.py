"""Does one steering file do in vLLM what it does in the Hugging Face engine? Numbers, per site.

vLLM answers every prompt greedily, steered. The Hugging Face engine then reads the very same
tokens, so that streams and logits are compared token by token, whatever was answered; and it
answers by itself, so that tokens are compared too. Beside each number stands what would be
found if vLLM had left the steering out.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerkit import organisms
from steerkit.batch import Batch, Tokenized
from steerkit.errors import HookError, InterventionError, ModelError
from steerkit.files import sha256_of
from steerkit.interventions import load_steering
from steerkit.models import LanguageModel, load
from steerkit.models.loading import ORGANISM
from steerkit.prompts import Prompt
from steerkit.site import Site
from steerkit.vllm.engine import ended
from steerkit.vllm.parity import (
    TOLERANCE,
    Certificate,
    SiteParity,
    largest,
    logit_gap,
    site_parity,
)
from steerkit.vllm.plugin import activate, check_version, vllm_version
from steerkit.vllm.worker import watching

TOP = 20
"""Likeliest tokens of a step whose logits are compared."""


def certify(
    model: str,
    artefact: str | Path,
    prompts: Sequence[Prompt | str],
    *,
    max_new_tokens: int = 16,
    compiled: bool = False,
    force: bool = False,
    tolerance: float = TOLERANCE,
) -> Certificate:
    """Run one steering file on both engines, on the same prompts, in float32.

    Args:
        model: a folder, a name, or `organism:NAME`.
        artefact: the steering file.
        prompts: what to answer, one request after the other.
        max_new_tokens: of each answer.
        compiled: use vLLM's compiled path; by default its eager one.
        force: take directions of another model of the same width.
        tolerance: relative difference that the verdict allows.

    Raises:
        ModelError: no vLLM, another version than is known, or a model that it cannot steer.
        InterventionError: a file whose strengths are all 0, which leaves nothing to compare.
        SteerkitError: what `sk.load` and `with_` refuse.
    """
    check_version(vllm_version())
    plain = load(model, dtype="float32")
    items = [item.prompt for item in plain.tokenize(prompts)]
    # Before an engine is started for a file that this model refuses.
    steered_by(plain, artefact, force=force)
    with _engine(model, plain, compiled) as llm:
        return certified(
            llm,
            plain,
            artefact,
            items,
            max_new_tokens=max_new_tokens,
            force=force,
            tolerance=tolerance,
        )


def certified(
    llm: Any,
    plain: LanguageModel,
    artefact: str | Path,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int = 16,
    force: bool = False,
    tolerance: float = TOLERANCE,
) -> Certificate:
    """The same with an engine that runs already.

    Args:
        llm: a `vllm.LLM` in this process with the plugin and `logprobs_mode="raw_logits"`.
        plain: the same model in the Hugging Face engine.
        artefact: the steering file.
        prompts: tokens of what to answer, one request after the other.
        max_new_tokens: of each answer.
        force: take directions of another model of the same width.
        tolerance: relative difference that the verdict allows.

    Raises:
        ModelError: vLLM refuses the request, and why.
        HookError: tokens that the plugin did not see pass.
        SteerkitError: as `certify`.
    """
    steered = steered_by(plain, artefact, force=force)
    totals = _Totals({})
    for prompt in prompts:
        answer = _answer(llm, prompt, Path(artefact), max_new_tokens, force)
        _compare(plain, steered, prompt, answer, totals)
    return totals.certificate(
        model=plain.info.name,
        artefact=sha256_of(Path(artefact)),
        steering=tuple(str(operator) for operator in load_steering(artefact)),
        versions={
            "vllm": vllm_version(),
            **{name: version(name) for name in ("torch", "transformers", "steerkit")},
        },
        compiled=not llm.llm_engine.vllm_config.model_config.enforce_eager,
        tolerance=tolerance,
    )


def steered_by(plain: LanguageModel, artefact: str | Path, *, force: bool) -> LanguageModel:
    """The model steered by a file.

    Raises:
        InterventionError: a file whose strengths are all 0.
        SteerkitError: what `with_` refuses.
    """
    steered = plain.with_(*load_steering(artefact), force=force)
    if steered.table is None or not steered.table.sites:
        raise InterventionError(
            f"{artefact} changes nothing (its strengths are 0); there is nothing to certify"
        )
    return steered


@dataclass(frozen=True)
class _Answer:
    """What vLLM did with one prompt."""

    tokens: tuple[int, ...]
    logits: tuple[Mapping[int, float], ...]
    """Of each step's likeliest tokens."""
    seen: Mapping[Site, Mapping[int, tuple[Tensor, Tensor]]]


@contextmanager
def _engine(model: str, plain: LanguageModel, compiled: bool) -> Iterator[Any]:
    """A vLLM engine in this process, where its streams can be seen."""
    before = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        from vllm import LLM

        activate()
        name = model.removeprefix(ORGANISM)
        llm = LLM(
            str(organisms.path(name)) if name != model else model,
            dtype="float32",
            enforce_eager=not compiled,
            max_num_seqs=4,
            max_model_len=min(plain.info.n_ctx, 4096),
            logprobs_mode="raw_logits",
            disable_log_stats=True,
            skip_tokenizer_init=True,
        )
        try:
            yield llm
        finally:
            ended(llm)
    finally:
        if before is None:
            del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
        else:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = before


def _answer(
    llm: Any, prompt: tuple[int, ...], artefact: Path, max_new_tokens: int, force: bool
) -> _Answer:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    steering = {"artefact": str(artefact.absolute()), "force": force}
    settings = SamplingParams(
        temperature=0,
        max_tokens=max_new_tokens,
        logprobs=TOP,
        detokenize=False,
        ignore_eos=True,
        # Positions that come out of a cache would not be seen.
        skip_reading_prefix_cache=True,
        extra_args={"steerkit": steering},
    )
    with watching() as seen:
        try:
            (out,) = llm.generate({"prompt_token_ids": list(prompt)}, settings, use_tqdm=False)
        except VLLMValidationError as error:
            raise ModelError(str(error)) from error
    done = out.outputs[0]
    tokens = tuple(done.token_ids)
    passed = set(range(len(prompt) + len(tokens) - 1))
    for site, there in seen.items():
        if set(there) != passed:
            raise HookError(
                f"vLLM ran {len(passed)} tokens, and {len(set(there) & passed)} of them passed "
                f"{site}: the plugin was not reached"
            )
    logits = tuple({t: float(p.logprob) for t, p in step.items()} for step in done.logprobs)
    return _Answer(tokens, logits, seen)


@dataclass
class _Totals:
    """What is found, summed up over prompts."""

    sites: dict[Site, SiteParity]
    prompts: int = 0
    tokens: int = 0
    equal: int = 0
    equal_without: int = 0
    logits: float = 0.0
    logits_without: float = 0.0

    def certificate(self, **rest: Any) -> Certificate:
        """The certificate of them."""
        return Certificate(
            prompts=self.prompts,
            tokens=self.tokens,
            equal=self.equal / self.tokens,
            equal_without=self.equal_without / self.tokens,
            logits=self.logits,
            logits_without=self.logits_without,
            sites=tuple(self.sites[site] for site in sorted(self.sites)),
            **rest,
        )


def _compare(
    plain: LanguageModel,
    steered: LanguageModel,
    prompt: tuple[int, ...],
    answer: _Answer,
    totals: _Totals,
) -> None:
    """Both engines on one prompt and its answer."""
    assert steered.table is not None
    sites = steered.table.sites
    missing = [site for site in sites if site not in answer.seen]
    if missing:
        raise HookError(f"vLLM never reached {missing[0]}: the plugin was not reached")
    batch = Batch.collate([Tokenized(prompt, answer.tokens[:-1])], pad_id=0)
    before = steered.run(batch, sites=sites, logits="none", before=True).streams
    run = steered.run(batch, sites=sites, logits="all")
    for site in sites:
        found = answer.seen[site]
        mine = [torch.stack([found[i][k] for i in sorted(found)]) for k in (0, 1)]
        here = before[site][0], run.streams[site][0]
        part = site_parity(site, *here, *mine, prompt_len=len(prompt))
        totals.sites[site] = totals.sites[site].joined(part) if site in totals.sites else part
    assert run.logits is not None
    other = plain.run(batch, logits="all").logits
    assert other is not None
    first = len(prompt) - 1
    for step, theirs in enumerate(answer.logits):
        gap = logit_gap(run.logits[0, first + step], theirs)
        none = logit_gap(other[0, first + step], theirs)
        totals.logits = largest(totals.logits, gap)
        totals.logits_without = largest(totals.logits_without, none)
    # Their ends of answers are left out: every step of both is compared.
    own, bare = (_greedy(view, prompt, len(answer.tokens)) for view in (steered, plain))
    totals.prompts += 1
    totals.tokens += len(answer.tokens)
    totals.equal += sum(a == b for a, b in zip(answer.tokens, own, strict=True))
    totals.equal_without += sum(a == b for a, b in zip(answer.tokens, bare, strict=True))


def _greedy(view: LanguageModel, prompt: tuple[int, ...], n: int) -> tuple[int, ...]:
    """`n` greedy tokens, past ends of answers, each from a whole forward pass."""
    tokens: tuple[int, ...] = ()
    for _ in range(n):
        batch = Batch.collate([Tokenized(prompt, tokens)], pad_id=0)
        logits = view.run(batch, logits="last").logits
        assert logits is not None
        tokens = (*tokens, int(logits[0, -1].argmax()))
    return tokens
