"""`membership_scores`: how much an answer reads as if the model had been trained on it.

Two published scores of an answer's token log-probabilities, and what is left of them after the
base model's score of the same ids: texts that any model finds easy score high without having been
trained on.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from steerkit.comparisons.common import Prompts, provenance, read_prompts, require_one_tokenizer
from steerkit.comparisons.ranks import RankCorrelation, rank_correlation
from steerkit.errors import MethodError, PromptError
from steerkit.lenses.tables import html_table, markdown
from steerkit.protocols import Model
from steerkit.scoring import TOKEN_BUDGET, answer_log_probs
from steerkit.statistics import Estimate, Floats, cluster_mean

PAPERS = {
    "min_k": "Shi et al. 2023, arXiv:2310.16789",
    "zlib": "Carlini et al. 2021, arXiv:2012.07805",
    "use": "arXiv:2602.00298",
}
SCORES = ("min_k", "zlib")


def min_k(log_probs: Sequence[float] | Floats, k: float = 0.2) -> float:
    """Mean of the lowest fraction `k` of token log-probabilities, nats; higher if seen before.

    As many tokens as the fraction holds whole, and at least one. A uniform model gives -log V
    for every text. NaN for no tokens.

    Source: Shi et al. 2023 (arXiv:2310.16789).

    >>> min_k([-1.0, -5.0, -2.0, -3.0, -4.0], 0.4)
    -4.5
    """
    if not 0 < k <= 1:
        raise MethodError(f"k is a fraction above 0, at most 1; got {k}")
    values = np.sort(np.asarray(log_probs, dtype=np.float64))
    if values.size == 0:
        return float("nan")
    # 0.2 * 15 is 3.0000000000000004 in one order and 2.9999999999999996 in another.
    return float(values[: max(1, int(k * values.size + 1e-9))].mean())


def zlib_ratio(log_probs: Sequence[float] | Floats, text: str) -> float:
    """Perplexity per compressed size rate; lower if seen before.

    exp(mean negative log-probability) over compressed bytes / bytes: texts that are easy because
    they repeat compress well too. zlib's header weighs on short texts: compare like lengths. NaN
    for no tokens or no text.

    Source: after Carlini et al. 2021 (arXiv:2012.07805), as arXiv:2602.00298 has it.
    """
    values, raw = np.asarray(log_probs, dtype=np.float64), text.encode()
    if values.size == 0 or not raw:
        return float("nan")
    return float(np.exp(-values.mean()) / (len(zlib.compress(raw)) / len(raw)))


def membership_scores(
    model: Model,
    prompts: Prompts,
    *,
    base: Model | None = None,
    k: float = 0.2,
    token_budget: int = TOKEN_BUDGET,
) -> "Membership":
    """Min-K% and the zlib ratio of each prompt's `answer`, given the prompt, by domain.

    Args:
        model: plain or steered, such as after fine-tuning.
        prompts: prompts with an `answer`; `category` is the domain. The same prompt and answer
            count once.
        base: the model before, of the same tokenizer: its scores are subtracted.
        k: fraction of tokens for Min-K%.
        token_budget: padded tokens a forward pass.

    Raises:
        PromptError: no prompts, or one without an answer.
        ModelError: tokenizers that differ.
    """
    read, groups = read_prompts(prompts, answers=True)
    bare = [i for i, p in enumerate(read) if not p.answer]
    if bare:
        raise PromptError(
            f"{len(bare)} prompts have no answer, first prompt {bare[0]}; membership is scored on "
            "the answer"
        )
    if base is not None:
        require_one_tokenizer(model, base, read)
    # The same ids for both, whatever the base's chat template.
    items = model.tokenize(read)
    found: dict[str, Floats] = {}
    for name, one in {"model": model, "base": base}.items():
        if one is None:
            continue
        scored = answer_log_probs(one, items, token_budget=token_budget)
        texts = zip(scored, read, strict=True)
        rows = [(min_k(s.numpy(), k), zlib_ratio(s.numpy(), p.answer)) for s, p in texts]
        found[name] = np.array(rows)
    values = found["model"] - (found["base"] if base is not None else 0)
    return Membership(
        prompts=tuple(p.text for p in read),
        domains=tuple(p.category for p in read),
        groups=groups,
        values={name: values[:, i] for i, name in enumerate(SCORES)},
        raw={name: found["model"][:, i] for i, name in enumerate(SCORES)},
        k=k,
        adjusted=base is not None,
        provenance=provenance(model, base if base is not None else model, k=k),
    )


@dataclass(frozen=True, eq=False)
class Membership:
    """Membership scores of answers; the unit of any claim is the domain.

    Attributes:
        prompts: their texts.
        domains: category of each prompt.
        groups: what intervals resample, one a prompt.
        values: `min_k` in nats and `zlib`, a ratio, one a prompt; less the base's where given.
        raw: the model's own.
        k: fraction of tokens for Min-K%.
        adjusted: whether base's scores were subtracted.
        provenance: models, versions, settings; `b` is the base.
    """

    prompts: tuple[str, ...]
    domains: tuple[str, ...]
    groups: tuple[str, ...]
    values: Mapping[str, Floats]
    raw: Mapping[str, Floats]
    k: float
    adjusted: bool
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The domains, sorted."""
        return tuple(sorted(set(self.domains)))

    def by_domain(self, score: str = "min_k") -> dict[str, Estimate]:
        """Domain -> mean score, with an interval that resamples groups.

        Raises:
            MethodError: no such score.
        """
        if score not in self.values:
            raise MethodError(f"no membership score '{score}'; there are {', '.join(SCORES)}")
        where = np.array(self.domains)
        unit = "nats" if score == "min_k" else "ratio"
        return {
            name: cluster_mean(
                self.values[score][where == name],
                [g for g, d in zip(self.groups, self.domains, strict=True) if d == name],
                unit=unit,
            )
            for name in self.names
        }

    def against(self, rates: Mapping[str, float], score: str = "min_k") -> RankCorrelation:
        """Rank correlation over domains with a rate of each, such as of misaligned answers.

        Raises:
            MethodError: a domain without a rate, or fewer than four domains.
        """
        missing = [name for name in self.names if name not in rates]
        if missing:
            raise MethodError(f"no rate for the domain '{missing[0]}'; rates are one a domain")
        means = self.by_domain(score)
        return rank_correlation(
            [means[name].value for name in self.names], [rates[name] for name in self.names]
        )

    def table(self) -> str:
        """One row a domain, as markdown."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What was scored, in a few lines of plain text."""
        names = [self.provenance.get(k, {}).get("name", k) for k in ("a", "b")]
        less = f" less {names[1]}" if self.adjusted else ", not adjusted by a base model"
        mean = cluster_mean(self.values["min_k"], self.groups, unit="nats")
        return (
            f"{names[0]}{less}: {len(self.prompts)} answers in {len(self.names)} domains\n"
            f"Min-{100 * self.k:g}%: {mean} nats"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "papers": PAPERS,
            "units": {"min_k": "nats", "zlib": "perplexity per compressed size rate"},
            "prompts": list(self.prompts),
            "domains": list(self.domains),
            "groups": list(self.groups),
            "values": {name: v.tolist() for name, v in self.values.items()},
            "raw": {name: v.tolist() for name, v in self.raw.items()},
            "by_domain": {
                name: {d: e.to_json() for d, e in self.by_domain(name).items()} for name in SCORES
            },
            "k": self.k,
            "adjusted": self.adjusted,
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"Membership({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Membership", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        head = ["domain", "answers", f"Min-{100 * self.k:g}% (nats)", "zlib ratio"]
        low, ratio = (self.by_domain(name) for name in SCORES)
        count = {name: self.domains.count(name) for name in self.names}
        return head, [[n, str(count[n]), str(low[n]), str(ratio[n])] for n in self.names]
