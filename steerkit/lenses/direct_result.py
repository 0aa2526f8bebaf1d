"""The sum that makes up a logit difference or a projection, component by component."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from steerkit.errors import MethodError
from steerkit.lenses.tables import html_table, markdown
from steerkit.statistics import Estimate, Floats, cluster_mean


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """What each component adds, on every prompt; a row's values add up to its total.

    Attributes:
        kind: `logit difference` of two answers, or `projection` on a direction.
        unit: of the values.
        components: `embedding`, `attn_out@0`, `mlp_out@0`, ...; with heads `head0@0`, ... and
            `attn_bias@0` (what the projection and a post-norm add to the heads); `block@0`, ...
            where a network's blocks do not expose their parts; `bias` of the final norm and the
            unembedding; `interventions` of a steered view.
        values: `[prompt component]`.
        total: what the model itself gives, `[prompt]`.
        groups: what intervals resample, one a prompt.
        promoted: of a direction: tokens that it reads towards (first) and away.
        provenance: model, position, versions.
    """

    kind: str
    unit: str
    components: tuple[str, ...]
    values: Floats
    total: Floats
    groups: tuple[str, ...]
    promoted: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Largest |sum - total|, relative to the sum of the components' sizes."""
        gap = np.abs(self.values.sum(1) - self.total)
        return float((gap / np.maximum(np.abs(self.values).sum(1), 1e-30)).max())

    @cached_property
    def estimates(self) -> tuple[Estimate, ...]:
        """Mean contribution of each component over prompts, with its interval by group."""
        return tuple(cluster_mean(column, self.groups, unit=self.unit) for column in self.values.T)

    @property
    def whole(self) -> Estimate:
        """Mean total over prompts."""
        return cluster_mean(self.total, self.groups, unit=self.unit)

    def estimate(self, component: str) -> Estimate:
        """Mean contribution of one component.

        Raises:
            MethodError: no such component.
        """
        if component not in self.components:
            from steerkit.registry import suggest

            raise MethodError(f"no component '{component}'; {suggest(component, self.components)}")
        return self.estimates[self.components.index(component)]

    @property
    def ranked(self) -> list[tuple[str, Estimate]]:
        """Components by the size of their mean contribution, largest first."""
        both = zip(self.components, self.estimates, strict=True)
        return sorted(both, key=lambda two: -abs(two[1].value))

    def table(self, n: int = 10) -> str:
        """The `n` largest components as a markdown table."""
        return markdown(*self._rows(n))

    def summary(self) -> str:
        """The total and its largest parts, in a few lines of plain text."""
        first = ", ".join(f"{name} {e.value:+.3g}" for name, e in self.ranked[:3])
        lines = [
            f"{self.kind} {self.whole} {self.unit} on {len(self.total)} prompts "
            f"in {len(set(self.groups))} groups",
            f"largest contributions: {first}",
        ]
        if self.promoted[0]:
            lines.append(f"promotes {' '.join(self.promoted[0][:8])}")
            lines.append(f"suppresses {' '.join(self.promoted[1][:8])}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "kind": self.kind,
            "unit": self.unit,
            "components": list(self.components),
            "estimates": [e.to_json() for e in self.estimates],
            "values": self.values.tolist(),
            "total": self.total.tolist(),
            "groups": list(self.groups),
            "promoted": [list(side) for side in self.promoted],
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"LogitAttribution({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Direct logit attribution", self.summary(), *self._rows(10))

    def _rows(self, n: int) -> tuple[list[str], list[list[str]]]:
        share = self.whole.value or float("nan")
        rows = [[name, str(e), f"{e.value / share:+.1%}"] for name, e in self.ranked[:n]]
        return ["component", f"mean ({self.unit})", "share of the total"], rows
