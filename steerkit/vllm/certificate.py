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
from jaxtyping import Float
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
from steerkit.vllm.plugin import activate, check_version, vllm_version
from steerkit.vllm.worker import watching

TOP = 20
"""Likeliest tokens of a step whose logits are compared."""
TOLERANCE = 1e-4
"""Relative difference that float32 engines stay within."""


@dataclass(frozen=True)
class SiteParity:
    """One steered site, over all tokens of all prompts and answers.

    Attributes:
        site: where.
        tokens: how many tokens passed it.
        difference: largest |vLLM - Hugging Face| / |Hugging Face| of a token's steered stream.
        without: the same against the stream before steering: what no steering would give.
        moved: tokens that steering moved in the Hugging Face engine.
        matched: those of them that it moved in vLLM too.
        extra: tokens that it moved in vLLM alone.
    """

    site: str
    tokens: int
    difference: float
    without: float
    moved: int
    matched: int
    extra: int


@dataclass(frozen=True)
class Certificate:
    """What one steering file did on two engines, and whether it was the same.

    Attributes:
        model: name of the model.
        artefact: sha256 of the steering file.
        steering: its interventions in words.
        versions: of what ran.
        compiled: whether vLLM's path was compiled.
        prompts: how many were answered.
        tokens: answer tokens compared, all prompts together.
        equal: share of equal greedy tokens, place by place.
        equal_without: the same against the unsteered Hugging Face engine.
        logits: largest relative difference of a step's likeliest logits, on vLLM's own answers.
        logits_without: the same against the unsteered Hugging Face engine.
        sites: every steered site.
        tolerance: what differences are held to.
    """

    model: str
    artefact: str
    steering: tuple[str, ...]
    versions: Mapping[str, str]
    compiled: bool
    prompts: int
    tokens: int
    equal: float
    equal_without: float
    logits: float
    logits_without: float
    sites: tuple[SiteParity, ...]
    tolerance: float = TOLERANCE

    @property
    def failures(self) -> tuple[str, ...]:
        """What is not the same; none where the certificate holds."""
        found = []
        for site in self.sites:
            if not site.difference <= self.tolerance:
                found.append(f"{site.site}: streams differ by {site.difference:.2e}")
            if site.matched != site.moved or site.extra:
                found.append(
                    f"{site.site}: {site.moved - site.matched} tokens went unsteered, "
                    f"{site.extra} were steered in vLLM alone"
                )
        if not self.logits <= self.tolerance:
            found.append(f"logits differ by {self.logits:.2e}")
        if self.equal < 1:
            found.append(f"{1 - self.equal:.1%} of the greedy tokens differ")
        return tuple(found)

    @property
    def holds(self) -> bool:
        """Whether streams, logits, tokens and steered places agree."""
        return not self.failures

    def summary(self) -> str:
        """The verdict in words."""
        verdict = "holds" if self.holds else "does not hold: " + "; ".join(self.failures)
        return (
            f"{self.model}, {self.prompts} prompts, {self.tokens} answer tokens: the certificate "
            f"{verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "steering": list(self.steering),
            "versions": dict(self.versions),
            "sites": [dict(site.__dict__) for site in self.sites],
            "holds": self.holds,
            "failures": list(self.failures),
        }

    def __repr__(self) -> str:
        return f"Certificate({self.summary()})"


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
    operators = load_steering(artefact)
    plain = load(model, dtype="float32")
    steered = plain.with_(*operators, force=force)
    sites = steered.table.sites if steered.table is not None else ()
    if not sites:
        raise InterventionError(
            f"{artefact} changes nothing (its strengths are 0); there is nothing to certify"
        )
    items = [item.prompt for item in plain.tokenize(prompts)]
    found: list[_Answer] = []
    with _engine(model, plain, compiled) as llm:
        for prompt in items:
            found.append(_answer(llm, prompt, Path(artefact), max_new_tokens, force))
    return _compared(plain, steered, items, found, max_new_tokens).certificate(
        model=plain.info.name,
        artefact=sha256_of(Path(artefact)),
        steering=tuple(str(operator) for operator in operators),
        versions={
            "vllm": vllm_version(),
            **{name: version(name) for name in ("torch", "transformers", "steerkit")},
        },
        compiled=compiled,
        tolerance=tolerance,
    )


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
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

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
            llm.llm_engine.engine_core.shutdown()
            cleanup_dist_env_and_memory()
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


def _compared(
    plain: LanguageModel,
    steered: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    answers: Sequence[_Answer],
    max_new_tokens: int,
) -> _Totals:
    """Both engines, prompt by prompt."""
    assert steered.table is not None
    sites = steered.table.sites
    totals = _Totals({})
    for prompt, answer in zip(prompts, answers, strict=True):
        missing = [site for site in sites if site not in answer.seen]
        if missing:
            raise HookError(f"vLLM never reached {missing[0]}: the plugin was not reached")
        batch = Batch.collate([Tokenized(prompt, answer.tokens[:-1])], pad_id=0)
        before = steered.run(batch, sites=sites, logits="none", before=True).streams
        run = steered.run(batch, sites=sites, logits="all")
        for site in sites:
            found = answer.seen[site]
            mine = [torch.stack([found[i][k] for i in sorted(found)]) for k in (0, 1)]
            part = site_parity(site, before[site][0], run.streams[site][0], *mine)
            totals.sites[site] = _joined(totals.sites.get(site), part)
        assert run.logits is not None
        other = plain.run(batch, logits="all").logits
        assert other is not None
        first = len(prompt) - 1
        for step, theirs in enumerate(answer.logits):
            gap = logit_gap(run.logits[0, first + step], theirs)
            none = logit_gap(other[0, first + step], theirs)
            totals.logits = max(totals.logits, gap)
            totals.logits_without = max(totals.logits_without, none)
        # Their ends of answers are left out: every step of both is compared.
        own, bare = (_greedy(view, prompt, max_new_tokens) for view in (steered, plain))
        totals.prompts += 1
        totals.tokens += len(answer.tokens)
        totals.equal += sum(a == b for a, b in zip(answer.tokens, own, strict=True))
        totals.equal_without += sum(a == b for a, b in zip(answer.tokens, bare, strict=True))
    return totals


def _greedy(view: LanguageModel, prompt: tuple[int, ...], n: int) -> tuple[int, ...]:
    """`n` greedy tokens, past ends of answers, each from a whole forward pass."""
    tokens: tuple[int, ...] = ()
    for _ in range(n):
        batch = Batch.collate([Tokenized(prompt, tokens)], pad_id=0)
        logits = view.run(batch, logits="last").logits
        assert logits is not None
        tokens = (*tokens, int(logits[0, -1].argmax()))
    return tokens


def site_parity(
    site: Site,
    before: Float[Tensor, "token d_model"],
    after: Float[Tensor, "token d_model"],
    before_vllm: Float[Tensor, "token d_model"],
    after_vllm: Float[Tensor, "token d_model"],
) -> SiteParity:
    """One site of one prompt: streams that came in and went out, on either engine."""
    before, after = (part.to(before_vllm.device) for part in (before, after))
    size = after.double().norm(dim=-1)
    moved = (after != before).any(-1)
    moved_vllm = (after_vllm != before_vllm).any(-1)
    return SiteParity(
        site=str(site),
        tokens=len(after),
        difference=float(((after_vllm.double() - after.double()).norm(dim=-1) / size).max()),
        without=float(((before.double() - after.double()).norm(dim=-1) / size).max()),
        moved=int(moved.sum()),
        matched=int((moved & moved_vllm).sum()),
        extra=int((moved_vllm & ~moved).sum()),
    )


def logit_gap(logits: Float[Tensor, "d_vocab"], theirs: Mapping[int, float]) -> float:
    """|theirs - logits| / |logits| over the tokens that they name."""
    ids = list(theirs)
    own = logits[ids].double().cpu()
    other = torch.tensor([theirs[i] for i in ids], dtype=torch.float64)
    return float((other - own).norm() / own.norm())


def _joined(a: SiteParity | None, b: SiteParity) -> SiteParity:
    if a is None:
        return b
    return SiteParity(
        site=a.site,
        tokens=a.tokens + b.tokens,
        difference=max(a.difference, b.difference),
        without=max(a.without, b.without),
        moved=a.moved + b.moved,
        matched=a.matched + b.matched,
        extra=a.extra + b.extra,
    )
