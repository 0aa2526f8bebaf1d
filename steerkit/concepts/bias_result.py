"""What BiasLens found: a bias a target, with its nulls, and how it agrees with behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steerkit.concepts.agreement import spearman
from steerkit.errors import MethodError
from steerkit.lenses.tables import html_table, markdown
from steerkit.statistics import Estimate, Null

ALPHA = 0.05


@dataclass(frozen=True)
class TargetBias:
    """One target between the two references.

    Attributes:
        target: its name.
        signed: mean of S over the sites that passed; positive leans to the first reference.
        unsigned: mean of |S|, the published score. Noise makes it positive: compare it with
            the nulls' means.
        by_site: S at every site.
        cosines: with the first and the second reference, at every site.
        aucs: held-out AUC of the target's probe at every site.
        passed: the sites that count.
        exchanged: |mean S| when sentences of the references are exchanged.
        random: |mean S| of random directions in the target's place.
        active: entries of its vector that are not zero, at every site: of an SAE's codes, the
            active latents. Where two codes share none, their cosine is exactly 0.
        p_adjusted: `p` after Holm's correction over targets.
    """

    target: str
    signed: Estimate
    unsigned: Estimate
    by_site: tuple[float, ...]
    cosines: tuple[tuple[float, float], ...]
    aucs: tuple[float, ...]
    passed: tuple[str, ...]
    exchanged: Null
    random: Null
    active: tuple[int, ...] = ()
    p_adjusted: float = float("nan")

    @property
    def p(self) -> float:
        """The larger p of both nulls: both hypotheses have to fall."""
        return float(np.maximum(self.exchanged.p, self.random.p))

    @property
    def found(self) -> bool:
        """Whether there is a bias, at a family-wise error rate of 5% over all targets."""
        return self.p_adjusted < ALPHA

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "signed": self.signed.to_json(),
            "unsigned": self.unsigned.to_json(),
            "exchanged": self.exchanged.to_json(),
            "random": self.random.to_json(),
            "p": self.p,
        }


@dataclass(frozen=True)
class BiasLens:
    """Biases of targets between two references.

    Attributes:
        targets: one entry a target concept.
        references: names of r1 and r2.
        representation: what stood for a concept.
        sites: where.
        reference_aucs: held-out AUC of both references' probes at each site.
        between_aucs: held-out AUC of r1 against r2 on unseen words, at each site.
        reference_cosines: cos(C_r1, C_r2) at each site. Near 1, every bias is small.
        reference_active: entries of both references' vectors that are not zero, at each site.
        gate: the AUC that a site had to reach.
        ablation: the same with plain CAVs, where they were not what was asked for.
        provenance: model, method, seeds, versions.
    """

    targets: tuple[TargetBias, ...]
    references: tuple[str, str]
    representation: str
    sites: tuple[str, ...]
    reference_aucs: tuple[tuple[float, float], ...]
    between_aucs: tuple[float, ...]
    reference_cosines: tuple[float, ...]
    gate: float
    reference_active: tuple[tuple[int, int], ...] = ()
    ablation: "BiasLens | None" = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, target: str) -> TargetBias:
        for row in self.targets:
            if row.target == target:
                return row
        raise MethodError(
            f"no target '{target}'; there are {', '.join(r.target for r in self.targets[:20])}"
        )

    @property
    def ranked(self) -> list[TargetBias]:
        """From the one that leans most to the first reference to the other end."""
        known = [row for row in self.targets if row.passed]
        return sorted(known, key=lambda row: -row.signed.value)

    def agreement(self, behaviour: Mapping[str, float], *, unsigned: bool = False) -> Estimate:
        """Spearman correlation over targets of the bias with a measure of behaviour.

        Args:
            behaviour: a number a target: a rate, or a difference of log-probabilities.
            unsigned: compare the published unsigned score, with numbers of which larger means
                more biased.

        Raises:
            MethodError: a target without a number, or fewer than four targets with a bias.
        """
        missing = [row.target for row in self.targets if row.target not in behaviour]
        if missing:
            raise MethodError(f"no behaviour of {', '.join(missing[:5])}; give every target's")
        known = [row for row in self.targets if row.passed]
        scores = [(row.unsigned if unsigned else row.signed).value for row in known]
        return spearman(scores, [behaviour[row.target] for row in known])

    def table(self) -> str:
        """All targets, ranked, as a markdown table."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        known = [row for row in self.targets if row.passed]
        found = [row for row in known if row.found]
        one, other = self.references
        lines = [
            f"{len(found)} of {len(self.targets)} targets lean to {one} or {other} "
            f"({self.representation}, 5% family-wise)",
            f"{one} and {other} have cosines {min(self.reference_cosines):.2f} to "
            f"{max(self.reference_cosines):.2f} at {len(self.sites)} sites",
        ]
        draws = [min(row.exchanged.n, row.random.n) for row in known]
        if draws and len(known) / (1 + min(draws)) >= ALPHA:
            needed = round(len(known) / ALPHA)
            lines.append(
                f"{min(draws)} draws could find none of {len(known)} targets at 5% family-wise; "
                f"give n_permutations and n_random of at least {needed}"
            )
        if len(known) < len(self.targets):
            lines.append(
                f"{len(self.targets) - len(known)} targets pass the gate nowhere "
                f"(AUC {self.gate:g})"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "targets": [row.to_json() for row in self.targets],
            "ablation": self.ablation.to_json() if self.ablation else None,
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"BiasLens({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("BiasLens", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        one, other = self.references
        head = [
            "target", f"towards {one} (+) or {other} (-)", "mean |S|", "p exchanged",
            "p random", "p, Holm", "sites",
        ]  # fmt: skip
        rest = [row for row in self.targets if not row.passed]
        return head, [
            [
                r.target,
                str(r.signed),
                str(r.unsigned),
                f"{r.exchanged.p:.3g}",
                f"{r.random.p:.3g}",
                f"{r.p_adjusted:.3g}{' *' if r.found else ''}",
                f"{len(r.passed)} of {len(self.sites)}",
            ]
            for r in (*self.ranked, *rest)
        ]
