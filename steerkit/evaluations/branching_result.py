"""How much a model branches."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from steerkit.errors import MethodError
from steerkit.lenses.tables import html_table, markdown
from steerkit.statistics import Estimate, Null, group_codes, null, percentiles, row_draws


@dataclass(frozen=True)
class PromptBranching:
    """One prompt.

    Attributes:
        text: of the prompt.
        group: what must not be split.
        factor: by entropy, tokens.
        by_surprisal: by surprisal, tokens.
        error: standard error of log(factor) over its samples.
        length: mean tokens of an answer.
        ended: fraction of answers that ended by themselves.
    """

    text: str
    group: str
    factor: float
    by_surprisal: float
    error: float
    length: float
    ended: float
    prompt_tokens: tuple[int, ...] = ()
    """As the model read it, chat template included."""


@dataclass(frozen=True)
class CurvePoint:
    """One position of the answers.

    Attributes:
        position: from 0.
        alive: fraction of all answers that reach it.
        survivors: branching of those, tokens; late positions see long answers only.
        weighted: the same as if no answer had ended, by inverse-survival weights.
        effective: samples that the weights amount to.
    """

    position: int
    alive: float
    survivors: Estimate
    weighted: Estimate
    effective: float


@dataclass(frozen=True, eq=False)
class BranchingFactor:
    """exp of nats per generated token: among how many equal choices, on average.

    Attributes:
        factor: geometric mean over prompts of exp(entropy per token), with groups of prompts
            resampled on the log scale; one estimator for every length.
        by_surprisal: the same from the drawn tokens' own probabilities; its mean is that of
            `factor`, its noise is larger. Without truncation it is the perplexity of the
            model's own samples.
        prompts: each prompt.
        curve: by position.
        n_samples: of each prompt, at least.
        decoding: how they were drawn.
        model: its name.
        seed: of sampling and resampling.
    """

    factor: Estimate
    by_surprisal: Estimate
    prompts: tuple[PromptBranching, ...]
    curve: tuple[CurvePoint, ...]
    n_samples: int
    decoding: str
    model: str
    seed: int

    def against(
        self, other: "BranchingFactor", *, n_resamples: int = 2000, seed: int = 0
    ) -> "BranchingRatio":
        """The ratio of both factors, prompt by prompt.

        Raises:
            MethodError: other prompts, or another way of decoding.
        """
        if [p.text for p in self.prompts] != [p.text for p in other.prompts]:
            raise MethodError(
                f"'{other.model}' was sampled on other prompts than '{self.model}'; a ratio is "
                "taken prompt by prompt"
            )
        if self.decoding != other.decoding:
            raise MethodError(
                f"'{self.model}' was decoded at {self.decoding} and '{other.model}' at "
                f"{other.decoding}: truncation alone changes the branching factor"
            )
        groups = [p.group for p in self.prompts]
        pairs = zip(self.prompts, other.prompts, strict=True)
        logs = np.array([np.log(a.factor) - np.log(b.factor) for a, b in pairs])
        draws = row_draws(groups, n_resamples=n_resamples, seed=seed)
        code = group_codes(groups)
        n_groups = int(code.max()) + 1
        low, high = percentiles(logs @ draws / draws.sum(0), n_groups)
        signs = np.random.default_rng(seed + 1).choice((-1.0, 1.0), (n_resamples, n_groups))
        chance = np.abs((signs[:, code] * logs).mean(1))
        value = float(logs.mean())
        return BranchingRatio(
            Estimate(
                float(np.exp(value)), float(np.exp(low)), float(np.exp(high)), n_groups, "ratio"
            ),
            null("models exchanged within prompts, |log ratio|", abs(value), chance),
            self.model,
            other.model,
            all(
                a.prompt_tokens == b.prompt_tokens
                for a, b in zip(self.prompts, other.prompts, strict=True)
            ),
        )

    def table(self) -> str:
        """Every prompt, as a markdown table."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """Both estimators, and how many answers were cut off."""
        ended = float(np.mean([p.ended for p in self.prompts]))
        return (
            f"{self.model}: branching factor {self.factor} tokens (by surprisal "
            f"{self.by_surprisal}), {len(self.prompts)} prompts x {self.n_samples} samples at "
            f"{self.decoding}; {ended:.0%} of answers ended by themselves"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "factor": self.factor.to_json(),
            "by_surprisal": self.by_surprisal.to_json(),
            "prompts": [asdict(p) for p in self.prompts],
            "curve": [asdict(c) for c in self.curve],
            "estimator": "exp(entropy per generated token), geometric mean over prompts",
            "source": "branching factor, TMLR 2026",
        }

    def __repr__(self) -> str:
        return f"BranchingFactor({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("branching factor", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [
                p.text,
                f"{p.factor:.3g}",
                f"{p.error:.2g}",
                f"{p.by_surprisal:.3g}",
                f"{p.length:.3g}",
                f"{p.ended:.0%}",
            ]
            for p in self.prompts
        ]
        head = ["prompt", "factor (tokens)", "error of its log", "by surprisal", "length", "ended"]
        return head, rows


@dataclass(frozen=True)
class BranchingRatio:
    """Two models' branching on the same prompts.

    Attributes:
        ratio: geometric mean over prompts of one factor over the other.
        null: size of the log ratio when the two are exchanged within groups of prompts.
        model: above.
        other: below.
        same_tokens: whether both read the same token ids; a chat template that only one of
            them has is part of the ratio.
    """

    ratio: Estimate
    null: Null
    model: str
    other: str
    same_tokens: bool

    def summary(self) -> str:
        """In one line."""
        told = "" if self.same_tokens else "; their prompts were rendered differently"
        return (
            f"branching of {self.model} over {self.other}: {self.ratio} "
            f"(p = {self.null.p:.3g}){told}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"BranchingRatio({self.summary()})"
