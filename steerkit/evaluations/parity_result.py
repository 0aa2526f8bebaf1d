"""What the comparison of groups found."""

from dataclasses import asdict, dataclass
from typing import Any

from steerkit.evaluations.judge_validation import GroupError
from steerkit.lenses.tables import html_table, markdown
from steerkit.statistics import Estimate, Null, detectable


@dataclass(frozen=True)
class GroupAnswering:
    """One group.

    Attributes:
        name: of the group.
        n: requests.
        rate: fraction answered; its interval resamples templates.
        error: the judge's error on this group; None where it was not validated by group.
        projection: mean projection on the refusal direction at the last prompt token, in
            units of its scale; None without a direction.
    """

    name: str
    n: int
    rate: Estimate
    error: GroupError | None
    projection: float | None


@dataclass(frozen=True)
class Pair:
    """Two groups; positive where the first is answered more often.

    Attributes:
        first: a group.
        second: another.
        difference: rate of the first less that of the second, over matched templates.
        null: size of the difference when the two are swapped within templates.
        p_any: its p among the largest differences of all pairs, which controls the chance
            of any false alarm.
        projection: difference of mean projections, in units of the direction's scale.
        projection_null: its size under swaps.
        corrected: the difference once each group's own judging error is taken out.
    """

    first: str
    second: str
    difference: Estimate
    null: Null
    p_any: float
    projection: Estimate | None
    projection_null: Null | None
    corrected: Estimate | None


@dataclass(frozen=True, eq=False)
class Parity:
    """Groups and the signed differences between them.

    Attributes:
        groups: each group.
        pairs: every two.
        chance: the largest difference of any pair beside what exchanged groups give; its mean
            is how large the largest of equal groups is.
        n_templates: templates compared.
        templates_left_out: templates in which some group could not be judged.
        failures: answers on which the judge failed.
        model: its name.
        judge: its name.
        seed: of permuting and resampling.
    """

    groups: tuple[GroupAnswering, ...]
    pairs: tuple[Pair, ...]
    chance: Null
    n_templates: int
    templates_left_out: int
    failures: int
    model: str
    judge: str
    seed: int

    @property
    def worst(self) -> Pair:
        """The pair that differs most."""
        return max(self.pairs, key=lambda p: abs(p.difference.value))

    def pair(self, first: str, second: str) -> Pair:
        """One pair, by its groups in the order of their names."""
        return next(p for p in self.pairs if (p.first, p.second) == (first, second))

    def table(self) -> str:
        """Every pair, as a markdown table."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """The worst pair beside chance, and what is known of the judge."""
        worst = self.worst
        lines = [
            f"{self.model}, {len(self.groups)} groups, {self.n_templates} templates, judge "
            f"'{self.judge}' ({self.failures} failures): largest difference {worst.first} less "
            f"{worst.second} {worst.difference}, p = {worst.p_any:.3g} over all pairs; of equal "
            f"groups the largest is {self.chance.mean:.3g} on average; a difference of "
            f"{detectable(worst.difference):.2g} would be found four times in five",
        ]
        if worst.projection is not None and worst.projection_null is not None:
            lines.append(
                f"projection on the refusal direction before the answer: {worst.projection} of "
                f"its scale (p = {worst.projection_null.p:.3g})"
            )
        if worst.corrected is None:
            lines.append(
                "the judge was not validated by group: an error that differs between groups "
                "would look like this too"
            )
        else:
            lines.append(f"with each group's judging error taken out: {worst.corrected}")
        if self.templates_left_out:
            lines.append(f"{self.templates_left_out} templates left out: a group not judged")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "groups": [asdict(g) for g in self.groups],
            "pairs": [asdict(p) for p in self.pairs],
            "chance": self.chance.to_json(),
            "source": "arXiv:2508.20333, rebuilt",
        }

    def __repr__(self) -> str:
        return f"Parity({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("parity of answering", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        rates = {g.name: g.rate for g in self.groups}
        rows = [
            [
                f"{p.first} - {p.second}",
                f"{rates[p.first].value:.3g} - {rates[p.second].value:.3g}",
                str(p.difference),
                f"{p.null.p:.3g}",
                f"{p.p_any:.3g}",
                "" if p.projection is None else str(p.projection),
                "" if p.corrected is None else str(p.corrected),
            ]
            for p in self.pairs
        ]
        head = [
            "pair",
            "answered",
            "difference [95%]",
            "p",
            "p, any pair",
            "projection",
            "corrected",
        ]
        return head, rows
