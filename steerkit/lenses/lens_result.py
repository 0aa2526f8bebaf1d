"""What the logit lens saw: predictions at every site and position of every prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from steerkit.errors import MethodError
from steerkit.lenses.tables import html_table, markdown
from steerkit.site import Site
from steerkit.statistics import Estimate, cluster_mean


@dataclass(frozen=True, eq=False)
class LogitLens:
    """Predictions read off the states of a model; NaN (-1 for a token) where a prompt is short.

    Attributes:
        sites: in forward order.
        positions: counted from the end, -1 the last prompt token.
        prompts: the tokens of each prompt at those positions, as text, the last at -1.
        tokens: ids of the tokens that were followed, one row a prompt.
        words: token id -> text.
        groups: what intervals resample, one a prompt.
        entropy: of the prediction, in nats.
        kl: KL(the model's own prediction || the lens), in nats.
        top_tokens: ids of the likeliest tokens, likeliest first.
        top_probs: their probabilities.
        logits: of the tokens that were followed.
        probs: their probabilities.
        ranks: their ranks, from 1.
        provenance: model, versions, and whether the tail was applied directly.
    """

    sites: tuple[Site, ...]
    positions: tuple[int, ...]
    prompts: tuple[tuple[str, ...], ...]
    tokens: Int[np.ndarray, "prompt followed"]
    words: Mapping[int, str]
    groups: tuple[str, ...]
    entropy: Float[np.ndarray, "prompt site pos"]
    kl: Float[np.ndarray, "prompt site pos"]
    top_tokens: Int[np.ndarray, "prompt site pos top"]
    top_probs: Float[np.ndarray, "prompt site pos top"]
    logits: Float[np.ndarray, "prompt site pos followed"]
    probs: Float[np.ndarray, "prompt site pos followed"]
    ranks: Float[np.ndarray, "prompt site pos followed"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def top(self, prompt: int, site: Site | str, position: int = -1) -> list[tuple[str, float]]:
        """The likeliest tokens at a site of one prompt, with their probabilities."""
        i, j = self._at(site, position)
        if (
            not -len(self.prompts) <= prompt < len(self.prompts)
            or self.top_tokens[prompt, i, j, 0] < 0
        ):
            raise MethodError(f"prompt {prompt} has no position {position}")
        tokens, probs = self.top_tokens[prompt, i, j], self.top_probs[prompt, i, j]
        return [(self.words[int(t)], float(p)) for t, p in zip(tokens, probs, strict=True)]

    def mean(self, what: str, site: Site | str, position: int = -1, followed: int = 0) -> Estimate:
        """Mean over prompts of `entropy`, `kl`, `logits`, `probs` or `ranks`, by group.

        Raises:
            MethodError: something that the lens does not hold.
        """
        if what not in ("entropy", "kl", "logits", "probs", "ranks"):
            raise MethodError(f"the lens has no '{what}'; entropy, kl, logits, probs or ranks")
        i, j = self._at(site, position)
        values = getattr(self, what)[:, i, j]
        if values.ndim == 2:
            if not 0 <= followed < values.shape[1]:
                raise MethodError(
                    f"no followed token {followed}: {values.shape[1]} were given as tokens="
                )
            values = values[:, followed]
        unit = {"entropy": "nats", "kl": "nats", "logits": "nats", "probs": "probability"}
        return cluster_mean(values, self.groups, unit=unit.get(what, "rank"))

    def table(self) -> str:
        """One row a site at the last prompt token, means over prompts, as markdown."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What was read, in a few lines of plain text."""
        final = self.top_tokens[:, :, -1, 0]
        agrees = (final == final[:, -1:]).mean(0)
        settled = next(
            (str(s) for i, s in enumerate(self.sites) if (agrees[i:] >= 0.5).all()), "none"
        )
        return (
            f"{len(self.prompts)} prompts, {len(self.sites)} sites x {len(self.positions)} "
            f"positions\nfirst site from which on most prompts' top token is that of "
            f"{self.sites[-1]}: {settled}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; NaN where a prompt is too short."""
        arrays = ("entropy", "kl", "top_tokens", "top_probs", "logits", "probs", "ranks", "tokens")
        return {
            "sites": [str(s) for s in self.sites],
            "positions": list(self.positions),
            "prompts": [list(p) for p in self.prompts],
            "words": {str(k): v for k, v in self.words.items()},
            "groups": list(self.groups),
            **{name: getattr(self, name).tolist() for name in arrays},
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"LogitLens({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Logit lens", self.summary(), *self._rows())

    def _at(self, site: Site | str, position: int) -> tuple[int, int]:
        names = [str(s) for s in self.sites]
        if str(site) not in names or position not in self.positions:
            raise MethodError(
                f"the lens has no {site} at position {position}; it has {names[0]} to {names[-1]} "
                f"at {self.positions[0]} to {self.positions[-1]}"
            )
        return names.index(str(site)), self.positions.index(position)

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        position, m = self.positions[-1], self.tokens.shape[1]
        head = ["site", "entropy (nats)", "KL to the end (nats)", "commonest top token"]
        shared = [len(set(self.tokens[:, f].tolist())) == 1 for f in range(m)]
        for f in range(m):
            word = self.words[int(self.tokens[0, f])] if shared[f] else f"token {f}"
            head += [f"p({word})", f"rank of {word}"]
        rows = []
        for i, site in enumerate(self.sites):
            best = self.top_tokens[:, i, -1, 0]
            best = best[best >= 0]
            tokens, counts = np.unique(best, return_counts=True)
            share = f"{self.words[int(tokens[counts.argmax()])]} ({counts.max()}/{len(best)})"
            row = [
                str(site),
                str(self.mean("entropy", site, position)),
                str(self.mean("kl", site, position)),
                share,
            ]
            for f in range(m):
                row += [
                    str(self.mean("probs", site, position, f)),
                    f"{np.nanmedian(self.ranks[:, i, -1, f]):g}",
                ]
            rows.append(row)
        return head, rows
