"""Several features on one page, each with what chance gives beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steerkit.captures.job import Prompts
from steerkit.errors import MethodError
from steerkit.files import write_text
from steerkit.lenses.tables import html_table, markdown
from steerkit.protocols import Model
from steerkit.sae.autoencoder import Autoencoder
from steerkit.sae.cards import FeatureCard, feature_cards
from steerkit.sae.found import FoundFeature, FoundFeatures
from steerkit.statistics import Floats, Null, null


@dataclass(frozen=True, eq=False)
class FeatureView:
    """One feature of a dashboard.

    Attributes:
        card: histogram, contexts, promoted and suppressed tokens.
        promoted: its largest read-out over the vocabulary, against that of random directions
            of the decoder row's norm: what is promoted no more than by chance says nothing.
        suppressed: the same of the smallest read-out, its sign turned.
        found: how it tells the sides of a contrast apart, if it was found by one.
        sides: activation of each prompt of that contrast, positive and negative side.
    """

    card: FeatureCard
    promoted: Null
    suppressed: Null
    found: FoundFeature | None = None
    sides: tuple[Floats, Floats] | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.card.to_json(),
            "promoted": self.promoted.to_json(),
            "suppressed": self.suppressed.to_json(),
            "contrast": self.found.to_json() if self.found else None,
        }


@dataclass(frozen=True, eq=False)
class FeatureDashboard:
    """Features side by side; `write` makes one HTML file that needs no network.

    Attributes:
        views: one a feature, in the order asked for.
        sae: the autoencoder.
        concept: of the contrast they were found by, if any.
        found: that search, if any.
    """

    views: tuple[FeatureView, ...]
    sae: Autoencoder
    concept: str = ""
    found: FoundFeatures | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[FeatureView]:
        return iter(self.views)

    def write(self, path: str | Path) -> Path:
        """Write the page: overview, then histogram, tokens and contexts of every feature.

        Raises:
            OutputError: the file cannot be written.
        """
        from steerkit.plotting.dashboard import dashboard_page

        return write_text(Path(path), dashboard_page(self))

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the overview."""
        head = ["feature", "on", "mean", "largest", "promotes", "p", "peaks at"]
        if self.found is not None:
            head += ["held-out AUC", "p, all features"]
        rows = []
        for view in self.views:
            c, f = view.card, view.found
            first = c.contexts[0] if c.contexts else None
            row = [
                str(c.feature),
                f"{c.density:.2%}",
                f"{c.mean_active:.3g}",
                f"{c.maximum:.3g}",
                " ".join(token.strip() for token, _ in c.towards[:4]),
                f"{view.promoted.p:.2g}",
                (first.tokens[first.peak].strip() or "∅") if first else "never on",
            ]
            if self.found is not None:
                row += [str(f.auc), f"{f.family.p:.2g}"] if f else ["", ""]
            rows.append(row)
        return head, rows

    def table(self) -> str:
        """The overview as a markdown table."""
        return markdown(*self.cells())

    def summary(self) -> str:
        """What is shown, in a line or two."""
        rows = self.views[0].card.rows if self.views else 0
        line = f"{len(self)} features of {self.sae.name} at {self.sae.site} on {rows:,} tokens"
        return f"{line}\n{self.found.summary()}" if self.found is not None else line

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; contexts hold tokens of the prompts."""
        return {
            "kind": "feature_dashboard",
            "sae": self.sae.to_json(),
            "concept": self.concept,
            "features": [view.to_json() for view in self.views],
        }

    def __repr__(self) -> str:
        return f"FeatureDashboard({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Features", self.summary(), *self.cells())


def feature_dashboard(
    sae: Autoencoder,
    model: Model,
    prompts: Prompts,
    features: FoundFeatures | int | Sequence[int],
    *,
    n_contexts: int = 8,
    window: int = 12,
    n_random: int = 499,
    exclude_bos: bool = True,
    token_budget: int = 4096,
    seed: int = 0,
) -> FeatureDashboard:
    """A dashboard of several features: activations, contexts, logits up and down, and nulls.

    Args:
        sae: the autoencoder.
        model: the model to run.
        prompts: what to look through.
        features: their numbers, or what `find_features` gave: then each also shows how it
            tells the sides apart, on groups that did not choose it, against permuted labels.
        n_contexts: prompts shown for each.
        window: tokens shown before and after the peak.
        n_random: random directions whose read-out is the null of promoted tokens.
        exclude_bos: leave a special token that stands first out.
        token_budget: padded tokens a batch may hold.
        seed: of the random directions.

    Raises:
        ModelError: no such feature.
        MethodError: no features, counts out of range, or features found with another SAE.
        DirectionError: another model than the one the SAE was loaded for.
    """
    if n_random < 1:
        raise MethodError(f"the null takes at least one random direction; got {n_random}")
    found = features if isinstance(features, FoundFeatures) else None
    if found is not None and found.sae.name != sae.name:
        raise MethodError(f"the features were found with {found.sae.name}, not with {sae.name}")
    chosen = [f.feature for f in found] if found is not None else features
    cards = feature_cards(
        sae, model, prompts, chosen, n_contexts=n_contexts, window=window,  # type: ignore[arg-type]
        exclude_bos=exclude_bos, token_budget=token_budget,
    )  # fmt: skip
    rows = torch.stack([sae.decoder(card.feature) for card in cards])
    read = model.read_out(rows)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n_random, sae.d_model, generator=generator)
    # A read-out is linear in the length, so that one set of draws serves every row.
    chance = model.read_out(drawn / drawn.norm(dim=1, keepdim=True)).amax(1).double().numpy()
    views = []
    for i, card in enumerate(cards):
        at_norm = chance * float(rows[i].norm())
        mine = None if found is None else next(f for f in found if f.feature == card.feature)
        views.append(
            FeatureView(
                card,
                null("largest read-out of random directions", float(read[i].max()), at_norm),
                null("largest read-out of random directions", float(-read[i].min()), at_norm),
                mine,
                None if found is None else _sides(found, card.feature),
            )
        )
    return FeatureDashboard(tuple(views), sae, found.concept if found else "", found)


def _sides(found: FoundFeatures, feature: int) -> tuple[Floats, Floats]:
    """The largest activation of each prompt of the contrast, by side."""
    acts = found.acts
    values = np.zeros(len(acts.prompts))
    seen = np.zeros(len(acts.prompts), bool)
    for start in range(0, len(acts), 4096):
        part = slice(start, start + 4096)
        here = found.sae.encode(acts.at(found.sae.site)[part])[:, feature].double().numpy()
        owner = acts.prompt_index[part].numpy()
        np.maximum.at(values, owner, here)
        seen[owner] = True
    labels = np.array(acts.labels)
    return values[seen & (labels == 1)], values[seen & (labels == 0)]
