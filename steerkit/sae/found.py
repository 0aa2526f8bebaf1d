"""Features that a contrast singles out, with what chance and the words alone give."""

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steerkit.activations import Activations
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.sae.autoencoder import Autoencoder
from steerkit.statistics import Estimate, Null


@dataclass(frozen=True)
class FoundFeature:
    """A feature chosen on one half of the groups and measured on the other.

    Attributes:
        feature: its number.
        sign: +1 if it is more active on positive prompts, -1 if on negative ones; from the
            half that chose it.
        auc: of `sign` x activation on the other half, interval over groups.
        difference: mean activation on positive prompts less that on negative ones, other half,
            in units of the feature.
        density: fraction of all rows at which it is on.
        mean_active: mean activation where it is on.
        permutation: AUC under labels permuted within groups, other half.
        family: like `permutation`, for the largest AUC of all features, either sign: its p is
            corrected for every feature of the SAE (max-T).
        p_holm: the permutation p adjusted over the features that are listed.
    """

    feature: int
    sign: int
    auc: Estimate
    difference: float
    density: float
    mean_active: float
    permutation: Null
    family: Null
    p_holm: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **{k: getattr(self, k) for k in ("feature", "sign", "difference", "density")},
            "mean_active": self.mean_active,
            "auc": self.auc.to_json(),
            "permutation": self.permutation.to_json(),
            "family": self.family.to_json(),
            "p_holm": self.p_holm,
        }


@dataclass(frozen=True, eq=False)
class FoundFeatures:
    """The features that a contrast singles out, best on the choosing half first.

    Attributes:
        items: the features.
        sae: the autoencoder.
        acts: the activations they were found on.
        concept: what the contrast is called.
        search: AUC of the feature that is best on one half, on the other half, when labels are
            permuted before anything is chosen: what the whole search gives by chance.
        text: AUC of the words alone: fitted on the choosing half, measured on the other.
        n_searched: features that are on anywhere in these prompts.
        n_groups: groups on the measuring half.
        rule: what features were ranked by.
    """

    items: tuple[FoundFeature, ...]
    sae: Autoencoder
    acts: Activations = field(repr=False)
    concept: str
    search: Null
    text: Estimate | None
    n_searched: int
    n_groups: int
    rule: str

    def __iter__(self) -> Iterator[FoundFeature]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rank: int) -> FoundFeature:
        return self.items[rank]

    @property
    def best(self) -> FoundFeature:
        """First of the choosing half; its AUC is from the other half and needs no correction."""
        return self.items[0]

    def direction(self, feature: int | None = None) -> Direction:
        """A feature as a direction: its decoder row, turned to the positive side.

        Scale and class means are those of the activations themselves along it, as with every
        other direction, so that strengths compare with those.

        Raises:
            DirectionError: the class means do not differ that way along the decoder row,
                though the feature's activations do.
        """
        chosen = self.best if feature is None else self._listed(feature)
        row = self.sae.decoder(chosen.feature) * chosen.sign
        unit = row / row.norm()
        projections = self.acts.at(self.sae.site).float() @ unit
        positive = self.acts.row_labels == 1
        high, low = (float(projections[side].double().mean()) for side in (positive, ~positive))
        return Direction(
            unit=unit,
            scale=high - low,
            site=self.sae.site,
            method="sae_feature",
            concept=self.concept,
            positive_mean=high,
            negative_mean=low,
            model=self.acts.info,
            pooling=self.acts.pooling,
            polarity=int(np.sign(chosen.auc.value - 0.5)),
            provenance={
                "sae": self.sae.name,
                "feature": chosen.feature,
                "sign": chosen.sign,
                "contrast_sha256": self.acts.contrast_sha256,
            },
        )

    def summary(self) -> str:
        """The best feature against chance and against the words."""
        best = self.best
        words = f"; words alone {self.text}" if self.text else ""
        return (
            f"'{self.concept}' in {self.sae.name} at {self.sae.site}: best of {self.n_searched} "
            f"is feature {best.feature}, AUC {best.auc} on {self.n_groups} groups that did not "
            f"choose it (the same search on permuted labels: 95% below {self.search.q95:.3g}, "
            f"p {self.search.p:.2g}){words}"
        )

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and rows of a table."""
        head = ("feature", "side", "held-out AUC", "p", "p, listed", "p, all", "difference", "on")
        return head, [
            (
                str(f.feature),
                "positive" if f.sign > 0 else "negative",
                str(f.auc),
                f"{f.permutation.p:.2g}",
                f"{f.p_holm:.2g}",
                f"{f.family.p:.2g}",
                f"{f.difference:.3g}",
                f"{f.density:.2%}",
            )
            for f in self.items
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything but activations."""
        return {
            "concept": self.concept,
            "sae": self.sae.to_json(),
            "rule": self.rule,
            "features": [f.to_json() for f in self.items],
            "search": self.search.to_json(),
            "text": self.text.to_json() if self.text else None,
            "n_searched": self.n_searched,
            "n_groups": self.n_groups,
        }

    def __repr__(self) -> str:
        return f"FoundFeatures({self.summary()})"

    def _repr_html_(self) -> str:
        head, rows = self.rows()
        cells = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        return (
            f"<div>{html.escape(self.summary())}</div><table><tr>"
            + "".join(f"<th>{name}</th>" for name in head)
            + f"</tr>{cells}</table>"
        )

    def _listed(self, feature: int) -> FoundFeature:
        for found in self.items:
            if found.feature == feature:
                return found
        raise MethodError(
            f"feature {feature} is not among those found; there are "
            f"{', '.join(str(f.feature) for f in self.items)}"
        )
