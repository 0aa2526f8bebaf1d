"""What an association test found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steerkit.lenses.tables import html_table, markdown
from steerkit.statistics import Estimate


@dataclass(frozen=True, eq=False)
class Association:
    """Effect size of a WEAT or SEAT, its interval and its p.

    Attributes:
        name: of the test.
        effect: d in standard deviations, with the interval over words of all four sets.
        p: two-sided, over partitions of the target words.
        p_greater: one-sided, as published.
        exact: whether all partitions were looked at.
        n_partitions: how many were.
        centred: d after the mean over all words was taken out: where it differs much from d,
            a common direction of the space had carried the effect, or hidden it.
        scores: association s of each target word.
        without: d without each target word.
        sizes: words of x, y, a and b that have vectors.
        missing: words that have none.
        items_a_word: fewest and most vectors of a word.
        provenance: seeds and the like.
    """

    name: str
    effect: Estimate
    p: float
    p_greater: float
    exact: bool
    n_partitions: int
    centred: float
    scores: Mapping[str, float]
    without: Mapping[str, float]
    sizes: tuple[int, int, int, int]
    missing: tuple[str, ...] = ()
    items_a_word: tuple[int, int] = (1, 1)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """The target words by their association, as a markdown table."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """Effect, p and what they rest on, in a few lines of plain text."""
        low, high = min(self.without.values()), max(self.without.values())
        how = "exact" if self.exact else "sampled"
        lines = [
            f"{self.name}: d = {self.effect}, p = {self.p:.3g} two-sided ({how}, "
            f"{self.n_partitions:,} partitions)",
            f"{' + '.join(map(str, self.sizes))} words; without any one target word d is "
            f"{low:.3g} to {high:.3g}; mean-centred {self.centred:.3g}",
        ]
        if self.missing:
            lines.append(f"no vectors for {', '.join(self.missing)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **{k: v for k, v in self.__dict__.items() if k != "effect"},
            "effect": self.effect.to_json(),
            "scores": dict(self.scores),
            "without": dict(self.without),
            "sizes": list(self.sizes),
            "missing": list(self.missing),
            "items_a_word": list(self.items_a_word),
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"Association({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table(self.name, self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        n_x = self.sizes[0]
        rows = [
            [word, "x" if i < n_x else "y", f"{s:+.4f}", f"{self.without[word]:.3g}"]
            for i, (word, s) in enumerate(self.scores.items())
        ]
        return ["word", "set", "association s", "d without it"], rows


@dataclass(frozen=True, eq=False)
class ContextualAssociation:
    """Effect size over words that occur in many contexts.

    Attributes:
        form: `sound`, or `ceat_repo` for what the published code computes.
        effect: d of the words' mean associations, with a bootstrap over words and contexts;
            of `ceat_repo` the combined effect size with its own (too narrow) interval.
        p: two-sided over partitions of words; of `ceat_repo` the published one-sided one.
        draws: d of each draw of one context a word: 2.5%, 50% and 97.5% quantiles.
        n_draws: how many.
        sizes: words of x, y, a and b.
        missing: words that have no vectors.
        items_a_word: fewest and most contexts of a word.
    """

    form: str
    effect: Estimate
    p: float
    draws: tuple[float, float, float]
    n_draws: int
    sizes: tuple[int, int, int, int]
    missing: tuple[str, ...] = ()
    items_a_word: tuple[int, int] = (1, 1)

    def summary(self) -> str:
        """Effect, p and the spread over contexts, in two lines of plain text."""
        low, middle, high = self.draws
        return (
            f"contextual WEAT ({self.form}): d = {self.effect}, p = {self.p:.3g}\n"
            f"one context a word: d {middle:.3g}, 95% of {self.n_draws:,} draws in "
            f"{low:.3g} to {high:.3g}; {self.items_a_word[0]} to {self.items_a_word[1]} "
            "contexts a word"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "effect": self.effect.to_json(),
            "draws": list(self.draws),
            "sizes": list(self.sizes),
            "missing": list(self.missing),
            "items_a_word": list(self.items_a_word),
        }

    def __repr__(self) -> str:
        return f"ContextualAssociation({self.summary()})"
