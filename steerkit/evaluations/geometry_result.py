"""What the latent geometry of a contrast is."""

from dataclasses import asdict, dataclass
from typing import Any

from steerkit.lenses.tables import html_table, markdown
from steerkit.site import Site
from steerkit.statistics import Estimate, Null


@dataclass(frozen=True)
class Index:
    """One cluster index beside what permuted labels give.

    Attributes:
        name: of the index.
        value: with its interval over groups; none for `dunn`, which two rows decide.
        z: standard deviations from the mean of the null, positive where the classes lie further
            apart than by chance.
        null: the index under permuted labels, in its own units; `q95` and `maximum` are those
            furthest apart.
    """

    name: str
    value: Estimate
    z: float
    null: Null


@dataclass(frozen=True)
class SiteGeometry:
    """One site by itself."""

    site: Site
    weight: float
    quality: Estimate
    auc: Estimate


@dataclass(frozen=True, eq=False)
class AlignmentQuality:
    """How far apart the two sides lie, of 100, beside everything that the number could be about.

    Attributes:
        quality: share of variance between the sides, of 100; 0 is chance, 100 one point a side.
        null: the same under permuted labels.
        indices: the four cluster indices of the same rows.
        auc: held-out AUC of the mean difference on the same rows.
        auc_null: its permuted labels.
        along: share of the variance within the sides that lies along the line between them;
            with the AUC it is all that the index holds (see `summary`).
        text_auc: held-out AUC of the words alone, on the same folds.
        text_quality: the index of the prompts' TF-IDF rows.
        against: the index in the other model; None without one.
        gain: index here less index there, paired by prompt.
        against_name: of the other model.
        sites: each site by itself.
        n: rows of the positive and the negative side that were compared.
        left_out: rows not used, to have as many of either side.
        space: where indices were taken.
        pooling: how tokens became rows.
        model: its name.
        seed: of everything random.
    """

    quality: Estimate
    null: Null
    indices: tuple[Index, ...]
    auc: Estimate
    auc_null: Null
    along: float
    text_auc: Estimate | None
    text_quality: Estimate | None
    against: Estimate | None
    gain: Estimate | None
    against_name: str
    sites: tuple[SiteGeometry, ...]
    n: tuple[int, int]
    left_out: int
    space: str
    pooling: str
    model: str
    seed: int

    def index(self, name: str) -> Index:
        """One of the four by name."""
        return next(i for i in self.indices if i.name == name)

    def table(self) -> str:
        """Every index with its interval and its null, as a markdown table."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """The index beside chance, the plain probe, the words and the other model."""
        lines = [
            f"{self.model}: alignment quality {self.quality} of 100 (p = {self.null.p:.3g} against "
            f"permuted labels), {self.n[0]} + {self.n[1]} prompts, {self.space}, "
            f"'{self.pooling}', {len(self.sites)} sites",
            f"held-out AUC of a plain probe on the same states {self.auc}; {self.along:.1%} of "
            "the variance within the sides lies along the line between them",
        ]
        if self.text_auc is not None and self.text_quality is not None:
            lines.append(f"the words alone: AUC {self.text_auc}, index {self.text_quality}")
        if self.against is not None and self.gain is not None:
            lines.append(
                f"'{self.against_name}' on the same prompts: {self.against}; gain {self.gain}"
            )
        else:
            lines.append(
                "topics lie apart in any model: without against= nothing says that this is "
                "alignment"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        whole = asdict(self)
        for made, site in zip(whole["sites"], self.sites, strict=True):
            made["site"] = str(site.site)
        return {
            **whole,
            "sites": list(whole["sites"]),
            "indices": list(whole["indices"]),
            "n": list(self.n),
            "unit": "of 100",
            "source": "arXiv:2506.13901, rebuilt",
        }

    def __repr__(self) -> str:
        return f"AlignmentQuality({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("alignment quality", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        null = self.null
        rows = [
            ["alignment quality", str(self.quality), f"{null.mean:.3g}", "", f"{null.p:.3g}"],
            [
                "held-out AUC",
                str(self.auc),
                f"{self.auc_null.mean:.3g}",
                "",
                f"{self.auc_null.p:.3g}",
            ],
        ]
        for index in self.indices:
            shown = f"{index.value.value:.3g}" if index.name == "dunn" else str(index.value)
            name = index.name.replace("_", "-")
            rows.append(
                [name, shown, f"{index.null.mean:.3g}", f"{index.z:.2f}", f"{index.null.p:.3g}"]
            )
        return ["measure", "value [95%]", "mean of permuted labels", "z", "p"], rows


@dataclass(frozen=True)
class BeyondAuc:
    """What the index says of an outcome of several models that their AUC does not.

    Attributes:
        partial: Spearman correlation of index and outcome with the AUC's ranks taken out of
            both; its interval is its range when one model is left out, not a 95% one.
        null: its size under permuted outcomes.
        quality: Spearman correlation of the index alone with the outcome.
        auc: of the AUC alone.
    """

    partial: Estimate
    null: Null
    quality: float
    auc: float

    def summary(self) -> str:
        """In one line."""
        return (
            f"{self.partial.n} models: Spearman with the outcome {self.quality:.2f} (index), "
            f"{self.auc:.2f} (AUC); index with the AUC taken out {self.partial.value:.2f} "
            f"(leaving one out {self.partial.low:.2f} to {self.partial.high:.2f}), "
            f"p = {self.null.p:.3g}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"BeyondAuc({self.summary()})"
