"""What comparing two models' streams gave: curves over matched sites, and all against all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from steerkit.errors import MethodError
from steerkit.lenses.tables import html_table, markdown
from steerkit.site import Site
from steerkit.statistics import Estimate, Null

SAME = 1e-6
"""Measures within this of 1 at every site: the states are the same up to rotation and scale."""
TITLES = {"cka": "CKA (debiased)", "rsa": "RSA", "procrustes": "Procrustes"}
PAPERS = {
    "cka": "Kornblith et al. 2019, arXiv:1905.00414; HSIC1: Song et al. 2012, JMLR 13",
    "rsa": "Kriegeskorte et al. 2008, Frontiers in Systems Neuroscience 2, 4",
    "procrustes": "Schoenemann 1966, Psychometrika 31; Williams et al. 2021, arXiv:2110.14739",
}


@dataclass(frozen=True)
class Measure:
    """One measure over the matched pairs of sites; a dimensionless number, 1 where equal.

    Attributes:
        name: `cka`, `rsa` or `procrustes`.
        values: corrected for bias, with intervals, by leaving out groups of prompts.
        plain: by the measure's formula, uncorrected: what the nulls are compared with.
        nulls: what other groups' prompts paired with these give, one a pair of sites.
        family: the same for the largest value over all pairs of sites.
        control: against the control model, or empty.
    """

    name: str
    values: tuple[Estimate, ...]
    plain: tuple[float, ...]
    nulls: tuple[Null, ...]
    family: Null
    control: tuple[float, ...] = ()

    @property
    def paper(self) -> str:
        """Where the measure comes from."""
        return PAPERS[self.name]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "name": self.name,
            "values": [v.to_json() for v in self.values],
            "plain": list(self.plain),
            "nulls": [n.to_json() for n in self.nulls],
            "family": self.family.to_json(),
            "control": list(self.control),
            "paper": self.paper,
        }


@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike two models' streams are.

    Attributes:
        sites_a: of the first model, in forward order.
        sites_b: of the second.
        pairs: indices of matched sites, (in `sites_a`, in `sites_b`).
        measures: `cka`, `rsa` and `procrustes` over the pairs.
        cka: debiased linear CKA of all sites against all.
        rsa: RSA likewise.
        n_prompts: rows compared.
        n_groups: what intervals leave out and nulls exchange.
        rsa_kind: which dissimilarity, and which correlation of them.
        provenance: both models, versions, seed.
    """

    sites_a: tuple[Site, ...]
    sites_b: tuple[Site, ...]
    pairs: tuple[tuple[int, int], ...]
    measures: tuple[Measure, ...]
    cka: Float[np.ndarray, "site_a site_b"]
    rsa: Float[np.ndarray, "site_a site_b"]
    n_prompts: int
    n_groups: int
    rsa_kind: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unchanged(self) -> bool:
        """Whether every measure is 1 at every matched site, to rounding.

        Rotations and isotropic scales of the streams leave these measures at 1, and so does what
        only happens at other tokens.
        """
        found = [v for m in self.measures for v in m.plain if not np.isnan(v)]
        return bool(found) and min(found) >= 1 - SAME

    def measure(self, name: str) -> Measure:
        """One of the measures.

        Raises:
            MethodError: no such measure.
        """
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise MethodError(f"no measure '{name}'; there are {', '.join(TITLES)}")

    def least(self, name: str = "cka") -> tuple[Site, Estimate]:
        """The first model's site at which the two differ most, and the measure there."""
        values = self.measure(name).values
        index = min(
            range(len(values)),
            key=lambda i: np.inf if np.isnan(values[i].value) else values[i].value,
        )
        return self.sites_a[self.pairs[index][0]], values[index]

    def table(self) -> str:
        """One row a matched pair of sites, as markdown."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        names = [self.provenance.get(k, {}).get("name", k) for k in ("a", "b")]
        lines = [
            f"{names[0]} against {names[1]}: {self.n_prompts} prompts in {self.n_groups} groups, "
            f"{len(self.pairs)} matched sites"
        ]
        if self.unchanged:
            return "\n".join([*lines, "every measure is 1 at every site: unchanged"])
        for measure in self.measures:
            site, value = self.least(measure.name)
            lines.append(
                f"{TITLES[measure.name]}: lowest {_shown(value)} at {site}; re-paired "
                f"prompts give up to {measure.family.q95:.3g} (95th percentile, largest of all "
                "sites, uncorrected)"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "sites_a": [str(s) for s in self.sites_a],
            "sites_b": [str(s) for s in self.sites_b],
            "pairs": [list(p) for p in self.pairs],
            "measures": [m.to_json() for m in self.measures],
            "cka": self.cka.tolist(),
            "rsa": self.rsa.tolist(),
            "rsa_kind": self.rsa_kind,
            "n_prompts": self.n_prompts,
            "n_groups": self.n_groups,
            "unchanged": self.unchanged,
            "unit": "dimensionless, 1 where equal up to rotation and scale",
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"Similarity({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Representational similarity", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        head = ["sites"]
        for measure in self.measures:
            title = TITLES[measure.name]
            head += [title, "uncorrected / re-paired"]
            head += [f"{title} to control"] if measure.control else []
        rows = []
        for i, (p, q) in enumerate(self.pairs):
            a, b = self.sites_a[p], self.sites_b[q]
            row = [str(a) if a == b else f"{a} / {b}"]
            for measure in self.measures:
                row += [_shown(measure.values[i])]
                row += [f"{measure.plain[i]:.4f} / {measure.nulls[i].q95:.3f}"]
                row += [f"{measure.control[i]:.3g}"] if measure.control else []
            rows.append(row)
        return head, rows


def _shown(value: Estimate) -> str:
    """Four decimals: what matters here is how far below 1."""
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"
