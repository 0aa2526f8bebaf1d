"""What two engines made of the same tokens, in numbers: site by site, and the verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.site import Site

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
        decoded: tokens of answers that passed it, one decode step each.
        decoded_moved: those that steering moved in the Hugging Face engine.
        decoded_matched: those of them that it moved in vLLM too.
    """

    site: str
    tokens: int
    difference: float
    without: float
    moved: int
    matched: int
    extra: int
    decoded: int
    decoded_moved: int
    decoded_matched: int

    def joined(self, other: "SiteParity") -> "SiteParity":
        """The same site over the tokens of both."""
        return SiteParity(
            site=self.site,
            tokens=self.tokens + other.tokens,
            difference=largest(self.difference, other.difference),
            without=largest(self.without, other.without),
            moved=self.moved + other.moved,
            matched=self.matched + other.matched,
            extra=self.extra + other.extra,
            decoded=self.decoded + other.decoded,
            decoded_moved=self.decoded_moved + other.decoded_moved,
            decoded_matched=self.decoded_matched + other.decoded_matched,
        )


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


def site_parity(
    site: Site,
    before: Float[Tensor, "token d_model"],
    after: Float[Tensor, "token d_model"],
    before_vllm: Float[Tensor, "token d_model"],
    after_vllm: Float[Tensor, "token d_model"],
    *,
    prompt_len: int,
) -> SiteParity:
    """One site of one prompt and its answer: streams that came in and went out, on either engine.

    Args:
        site: where.
        before: what came in, in the Hugging Face engine.
        after: what went out there.
        before_vllm: what came in, in vLLM.
        after_vllm: what went out there.
        prompt_len: how many of the tokens are the prompt's.
    """
    before, after = (part.to(before_vllm.device) for part in (before, after))
    size = after.double().norm(dim=-1)
    moved = (after != before).any(-1)
    moved_vllm = (after_vllm != before_vllm).any(-1)
    both = moved & moved_vllm
    return SiteParity(
        site=str(site),
        tokens=len(after),
        difference=float(((after_vllm.double() - after.double()).norm(dim=-1) / size).max()),
        without=float(((before.double() - after.double()).norm(dim=-1) / size).max()),
        moved=int(moved.sum()),
        matched=int(both.sum()),
        extra=int((moved_vllm & ~moved).sum()),
        decoded=len(after) - prompt_len,
        decoded_moved=int(moved[prompt_len:].sum()),
        decoded_matched=int(both[prompt_len:].sum()),
    )


def logit_gap(logits: Float[Tensor, "d_vocab"], theirs: Mapping[int, float]) -> float:
    """|theirs - logits| / |logits| over the tokens that they name."""
    ids = list(theirs)
    own = logits[ids].double().cpu()
    other = torch.tensor([theirs[i] for i in ids], dtype=torch.float64)
    return float((other - own).norm() / own.norm())


def largest(a: float, b: float) -> float:
    """The larger of two differences; NaN, which nothing agrees with, where either is."""
    return a if math.isnan(a) or a >= b else b
