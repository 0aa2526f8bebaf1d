"""What `measure_token_shift` found: rates, KL, where and on what the shift sits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from steerkit.comparisons.entropy import LogOdds, adjusted
from steerkit.comparisons.forced import ForcedTokens, Where
from steerkit.comparisons.sides import SideShift, between_sides
from steerkit.comparisons.token_kinds import KINDS
from steerkit.lenses.tables import html_table, markdown
from steerkit.statistics import Estimate, Floats

PAPER = "Lin et al. 2023, arXiv:2312.01552"
SAME_KL = 1e-6
"""Nats per token, at most, between predictions that are equal but for rounding."""


@dataclass(frozen=True, eq=False)
class TokenShift:
    """Ranks and KL at every answer token, and what they add up to.

    Attributes:
        prompts: their texts.
        categories: of each prompt, or empty.
        groups: what intervals resample, one a prompt.
        sides: 1 or 0 for each prompt of a contrast, else empty.
        first: how many tokens are the beginning of an answer.
        greedy: the aligned model's greedy answers, judged by base.
        reference: the same answers judged by the reference model, or None.
        sampled: its sampled answers, judged by base, or None.
        seed: of resampling.
        provenance: models, versions, settings. `a` is base, `b` aligned.
    """

    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    groups: tuple[str, ...]
    sides: tuple[int, ...]
    first: int
    greedy: ForcedTokens
    reference: ForcedTokens | None
    sampled: ForcedTokens | None
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unchanged(self) -> bool:
        """No greedy token shifted, and no KL beyond rounding, on these prompts."""
        return not self.greedy.shifted.any() and float(self.greedy.kl.max()) <= SAME_KL

    @property
    def kl(self) -> tuple[Estimate, Estimate]:
        """KL(aligned || base) in nats per token: mean and 95th percentile."""
        g = self.greedy
        return g.mean(g.kl, unit="nats"), g.quantile(g.kl, 0.95, unit="nats", seed=self.seed)

    @property
    def beginning(self) -> Where:
        """The greedy tokens that begin an answer."""
        return self.greedy.position < self.first

    @cached_property
    def side(self) -> SideShift | None:
        """The rate of shifted tokens by side of the contrast; None without one."""
        return self._side(self.greedy.shifted.astype(np.float64), "fraction")

    @cached_property
    def side_kl(self) -> SideShift | None:
        """KL by side of the contrast. It sees what ranks do not: second choices come up first."""
        return self._side(self.greedy.kl, "nats")

    def _side(self, values: Floats, unit: str) -> SideShift | None:
        if len(set(self.sides)) < 2:
            return None
        return between_sides(
            self.greedy, values, self.sides, self.groups, unit=unit, seed=self.seed
        )

    @cached_property
    def log_odds(self) -> tuple[LogOdds, ...]:
        """What a shift goes with at equal entropy of base; empty where nothing varies."""
        columns = {"beginning": self.beginning.astype(np.float64)}
        if len(set(self.sides)) == 2:
            columns["positive side"] = np.array(self.sides)[self.greedy.prompt].astype(np.float64)
        return adjusted(self.greedy, columns, seed=self.seed)

    @property
    def own_samples(self) -> tuple[Estimate, Estimate, Estimate] | None:
        """On sampled answers: rate shifted under base, under the aligned model, the difference."""
        if self.sampled is None:
            return None
        s = self.sampled
        theirs, own = s.shifted.astype(np.float64), (s.own_rank > 3).astype(np.float64)
        return (
            s.mean(theirs, unit="fraction"),
            s.mean(own, unit="fraction"),
            s.mean(theirs - own, unit="difference of fractions"),
        )

    def by_position(self, sampled: bool = False) -> list[Estimate]:
        """Rate of shifted tokens at each position of the answers."""
        tokens = self.sampled if sampled and self.sampled is not None else self.greedy
        return [
            tokens.rate("shifted", tokens.position == t)
            for t in range(int(tokens.position.max()) + 1)
        ]

    def by_kind(self) -> dict[str, tuple[int, Estimate]]:
        """Kind of token -> how many there are, and the rate of shifted ones."""
        kind = np.array(self.greedy.kind)
        names = [*KINDS, *sorted(set(self.greedy.kind) - set(KINDS))]
        return {
            name: (int((kind == name).sum()), self.greedy.rate("shifted", kind == name))
            for name in names
            if (kind == name).any()
        }

    def by_category(self) -> dict[str, Estimate]:
        """Category of the prompt -> rate of shifted tokens."""
        mine = np.array(self.categories)[self.greedy.prompt]
        return {str(c): self.greedy.rate("shifted", mine == c) for c in np.unique(mine) if c}

    def shifted_tokens(self, k: int = 10) -> list[tuple[str, int, float]]:
        """The tokens that shift most often: text, how often, fraction of their occurrences."""
        texts = np.array(self.greedy.text, dtype=object)
        names, counts = np.unique(texts[self.greedy.shifted].astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")[:k]
        return [
            (str(names[i]), int(counts[i]), float(counts[i] / (texts == names[i]).sum()))
            for i in order
        ]

    def table(self) -> str:
        """Where the shift sits, as markdown."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        g = self.greedy
        a, b = (self.provenance.get(k, {}).get("name", k) for k in ("a", "b"))
        lines = [f"{b}'s answers under {a}: {len(g)} tokens of {len(self.prompts)} prompts"]
        mean, p95 = self.kl
        if self.unchanged:
            return "\n".join([*lines, f"no token shifted, KL at most {g.kl.max():.1e}: unchanged"])
        lines += [
            f"shifted {g.rate('shifted')}, marginal {g.rate('marginal')}, unshifted "
            f"{g.rate('unshifted')}",
            f"KL {mean} nats per token, 95th percentile {p95}",
        ]
        for what, side in (("shifted", self.side), ("KL", self.side_kl)):
            if side is not None:
                lines.append(
                    f"{what} on the positive side {side.positive}, on the negative "
                    f"{side.negative}; p = {side.null.p:.3g} with sides permuted"
                )
        if (own := self.own_samples) is not None:
            lines.append(
                f"sampled answers: shifted {own[0]}; under the model that said them {own[1]}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, every token included."""
        g, (mean, p95) = self.greedy, self.kl
        return {
            "paper": PAPER,
            "units": {"rates": "fraction of tokens", "kl": "nats per token, KL(aligned || base)"},
            "unchanged": self.unchanged,
            "rates": {w: g.rate(w).to_json() for w in ("unshifted", "marginal", "shifted")},
            "kl": {"mean": mean.to_json(), "p95": p95.to_json()},
            "by_position": [e.to_json() for e in self.by_position()],
            "by_kind": {k: {"n": n, **e.to_json()} for k, (n, e) in self.by_kind().items()},
            "by_category": {k: e.to_json() for k, e in self.by_category().items()},
            "side": self.side.to_json() if self.side else None,
            "side_kl": self.side_kl.to_json() if self.side_kl else None,
            "log_odds": [o.to_json() for o in self.log_odds],
            "sampled": [e.to_json() for e in self.own_samples] if self.own_samples else None,
            "prompts": list(self.prompts),
            "categories": list(self.categories),
            "groups": list(self.groups),
            "sides": list(self.sides),
            "tokens": {
                name: tokens.to_json()
                for name in ("greedy", "reference", "sampled")
                if (tokens := getattr(self, name)) is not None
            },
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"TokenShift({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Token shift", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        g = self.greedy
        head = ["tokens", "number", "shifted", "marginal", "KL (nats per token)", "drawn from base"]

        def row(name: str, where: Where, of: ForcedTokens = g) -> list[str]:
            return [
                name,
                str(int(where.sum())),
                str(of.rate("shifted", where)),
                str(of.rate("marginal", where)),
                str(of.mean(of.kl, where, unit="nats")),
                str(of.mean(of.beyond, where, unit="probability")),
            ]

        kind, mine = np.array(g.kind), np.array(self.categories)[g.prompt]
        rows = [
            row("all", np.ones(len(g), bool)),
            row(f"first {self.first}", self.beginning),
            row("the rest", ~self.beginning),
            *(row(f"prompts: {c}", mine == c) for c in self.by_category()),
            *(row(f"kind: {k}", kind == k) for k in self.by_kind()),
        ]
        if self.sampled is not None:
            s = self.sampled
            rows.append(row("sampled answers", np.ones(len(s), bool), s))
        if self.reference is not None:
            r = self.reference
            rows.append(row("under the reference model", np.ones(len(r), bool), r))
        return head, rows
