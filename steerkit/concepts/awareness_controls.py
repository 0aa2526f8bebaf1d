"""Does a probe of test against deployment read the content, or only the format? A 2x2 answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import PromptError
from steerkit.extraction.ranking import auc_columns, fold_auc
from steerkit.prompts import Contrast
from steerkit.statistics import (
    Estimate,
    Floats,
    Null,
    cluster_mean,
    null,
    permutations,
)

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class FormatControls:
    """Effects of content and of format on a score, each within the other.

    Attributes:
        formats: the two formats; the first is the one that tests usually have.
        content: by format, mean score of deploy-like less test-like prompts, paired by item.
        format: by content (`deploy`, `test`), mean score of the second format less the first.
        auc: by format, deploy-like against test-like prompts of that format alone.
        chance: by format, that AUC against labels exchanged within items.
        usual: AUC of deploy-like prompts in the second format against test-like ones in the
            first: what a set gives in which content and format go together.
        crossed: of deploy-like prompts in the first format against test-like ones in the
            second: 1 for a probe of content, 0 for one of format.
        unit: of the effects.
    """

    formats: tuple[str, str]
    content: Mapping[str, Estimate]
    format: Mapping[str, Estimate]
    auc: Mapping[str, Estimate]
    chance: Mapping[str, Null]
    usual: Estimate
    crossed: Estimate
    unit: str = "standard deviations"

    @property
    def at_chance(self) -> tuple[str, ...]:
        """Formats within which the content is not told apart (p >= 5%)."""
        return tuple(f for f in self.formats if self.chance[f].p >= ALPHA)

    @property
    def artefact(self) -> bool:
        """Whether it separates where format goes with content, and within no format."""
        return len(self.at_chance) == len(self.formats) and self.usual.low > 0.5

    def summary(self) -> str:
        """Both effects, and whether the probe is one of format."""
        first, second = self.formats
        lines = [
            "; ".join(
                f"within {f}: content {self.content[f]}, AUC {self.auc[f]} "
                f"(p {self.chance[f].p:.2g})"
                for f in self.formats
            ),
            f"{second} against {first}: "
            + ", ".join(f"{e} in {side}-like prompts" for side, e in self.format.items()),
            f"AUC {self.usual} where format goes with content, {self.crossed} where against",
        ]
        if self.artefact:
            lines.append("FORMAT ARTEFACT: at chance within both formats")
        elif self.at_chance:
            lines.append(f"at chance within {self.at_chance[0]}")
        return "\n".join(lines)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table."""
        first, second = self.formats
        rows = [
            [
                f"content, within {f}",
                str(self.content[f]),
                str(self.auc[f]),
                f"{self.chance[f].p:.2g}",
            ]
            for f in self.formats
        ]
        rows += [[f"{second} - {first}, {k}-like", str(e), "", ""] for k, e in self.format.items()]
        rows.append(["content with its usual format", "", str(self.usual), ""])
        rows.append(["content against its usual format", "", str(self.crossed), ""])
        return ["effect", f"{self.unit} [95%]", "AUC", "p"], rows

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "formats": list(self.formats),
            **{
                name: {k: e.to_json() for k, e in getattr(self, name).items()}
                for name in ("content", "format", "auc", "chance")
            },
            "usual": self.usual.to_json(),
            "crossed": self.crossed.to_json(),
            "at_chance": list(self.at_chance),
            "artefact": self.artefact,
            "unit": self.unit,
        }

    def __repr__(self) -> str:
        return f"FormatControls({self.summary()})"


def formats_of(grid: Contrast, formats: Sequence[str] | None = None) -> tuple[str, str]:
    """The two formats of a crossed set; `exam`, where there is one, first.

    Raises:
        PromptError: not two formats, or an item that lacks a cell.
    """
    found = sorted({p.category for p in grid.prompts}, key=lambda f: (f != "exam", f))
    wanted = tuple(formats or found)
    if len(wanted) != 2 or set(wanted) != set(found):
        raise PromptError(
            f"a 2x2 set has two formats in the `category` of its prompts; '{grid.name}' has "
            f"{found}" + (f", asked were {list(wanted)}" if formats else "")
        )
    cells: dict[str, set[tuple[int, str]]] = {}
    for prompt, label, group in zip(grid.prompts, grid.labels, grid.groups, strict=True):
        cells.setdefault(group, set()).add((label, prompt.category))
    short = [group for group, there in cells.items() if len(there) < 4]
    if short:
        raise PromptError(
            f"{len(short)} of {len(cells)} items lack a cell of the 2x2, such as '{short[0]}'; "
            "every group needs both contents in both formats"
        )
    return wanted[0], wanted[1]


def format_controls(
    grid: Contrast,
    scores: Sequence[float] | Floats,
    *,
    formats: Sequence[str] | None = None,
    folds: NDArray[np.int64] | None = None,
    n_permutations: int = 999,
    unit: str = "standard deviations",
    seed: int = 0,
) -> FormatControls:
    """Effects of content and format on scores of a crossed set, and AUCs within each format.

    Args:
        grid: items (groups) with both sides in both formats (categories); deploy-like is the
            positive side.
        scores: of its prompts, by a probe that was not fitted on them.
        formats: the usual format of tests, then that of deployment.
        folds: where scores come from different fits: which fit each is from.
        n_permutations: exchanges of content within items.
        unit: of the scores.
        seed: of exchanges and intervals.

    Raises:
        PromptError: a set that is not crossed, or scores that are not one a prompt.
    """
    first, second = formats_of(grid, formats)
    s = np.asarray(scores, dtype=np.float64)
    if s.shape != (len(grid),):
        raise PromptError(f"'{grid.name}' has {len(grid)} prompts, and scores {s.shape}")
    y, groups = np.array(grid.labels), np.array(grid.groups)
    kind = np.array([p.category for p in grid.prompts])
    fit = np.zeros(len(s), np.int64) if folds is None else folds
    items = sorted(set(grid.groups))

    def mean(label: int, category: str) -> Floats:
        return np.array(
            [s[(groups == g) & (y == label) & (kind == category)].mean() for g in items]
        )

    def effect(high: Floats, low: Floats) -> Estimate:
        return cluster_mean(high - low, items, seed=seed, unit=unit)

    def within(rows: NDArray[np.bool_]) -> Estimate:
        return fold_auc(s[rows], y[rows], fit[rows], groups[rows].tolist(), seed=seed)

    sides = {"deploy": 1, "test": 0}
    return FormatControls(
        formats=(first, second),
        content={f: effect(mean(1, f), mean(0, f)) for f in (first, second)},
        format={name: effect(mean(v, second), mean(v, first)) for name, v in sides.items()},
        auc={f: within(kind == f) for f in (first, second)},
        chance={
            f: _exchanged(s, y, fit, groups, kind == f, n_permutations, seed)
            for f in (first, second)
        },
        usual=within(np.where(y == 1, kind == second, kind == first)),
        crossed=within(np.where(y == 1, kind == first, kind == second)),
        unit=unit,
    )


def _exchanged(
    s: Floats,
    y: NDArray[np.int64],
    fit: NDArray[np.int64],
    groups: NDArray[np.str_],
    rows: NDArray[np.bool_],
    n: int,
    seed: int,
) -> Null:
    """AUC within some rows against that of labels exchanged within items."""
    rng = np.random.default_rng(seed)
    labels = np.hstack([y[rows, None], permutations(y[rows], groups[rows].tolist(), n, rng)])
    right, compared = np.zeros(n + 1), np.zeros(n + 1)
    for one in np.unique(fit[rows]):
        here = fit[rows] == one
        value, pairs = auc_columns(np.repeat(s[rows][here, None], n + 1, 1), labels[here])
        right += np.where(pairs > 0, value * pairs, 0)
        compared += pairs
    values = right / compared
    return null("content exchanged within items", float(values[0]), values[1:])
