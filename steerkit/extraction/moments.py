"""Sufficient statistics of labelled rows, fed batch by batch: what extraction keeps of them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from steerkit.activations import Activations
from steerkit.errors import ActivationError
from steerkit.extraction.class_moments import ClassMoments
from steerkit.extraction.pair_moments import PairMoments
from steerkit.files import read_tensors, write_tensors
from steerkit.protocols import ModelInfo
from steerkit.site import Site

KIND = "moments"
SIDES = ("negative", "positive")
"""By label: index 0 and 1 of every statistic."""


@dataclass(eq=False)
class Moments:
    """What `extract_from_moments` needs of labelled rows, at several sites; rows are not kept.

    Feed it batch by batch with `update`, from a capture in parts or a mapped file; join parts
    that were summed apart with `merge`. Memory: 16 d_model^2 bytes a site (33 MB at width
    1,024), 8 more with pairs, and with pairs the rows whose mates are yet to come. Every
    update centres its batch first, so that a large common offset costs no digits.

    Attributes:
        sites: the sites, in forward order.
        info: the model that the rows come from.
        pooling: how tokens became rows.
        parts: the moments of each class at each site, `parts[site][label]`.
        pairs: the differences within pairs, or None where they are not kept.
        contrasts: hashes of the contrasts fed.
    """

    sites: tuple[Site, ...]
    info: ModelInfo
    pooling: str
    parts: list[list[ClassMoments]]
    pairs: PairMoments | None = None
    contrasts: tuple[str, ...] = field(default=())

    @classmethod
    def empty(
        cls, sites: Sequence[Site], info: ModelInfo, pooling: str, *, pairs: bool = False
    ) -> "Moments":
        """No rows yet.

        Args:
            sites: where.
            info: of which model.
            pooling: how tokens become rows.
            pairs: also keep what PCA of differences within pairs needs.
        """
        d = info.d_model
        parts = [[ClassMoments.none(d) for _ in SIDES] for _ in sites]
        return cls(
            tuple(sites), info, pooling, parts, PairMoments.empty(len(sites), d) if pairs else None
        )

    @classmethod
    def of(
        cls,
        acts: Activations | Iterable[Activations],
        sites: Sequence[Site | str | int] | None = None,
        *,
        pairs: bool = False,
        n_rows: int = 1024,
    ) -> "Moments":
        """The moments of labelled activations, or of an iterable of batches of them.

        Args:
            acts: activations, such as a capture that is mapped from disk; or batches of one
                model, pooling and sites, such as captures of parts of a contrast.
            sites: which of their sites; all by default.
            pairs: also keep what PCA of differences within pairs needs.
            n_rows: read at a time.
        """
        found: Moments | None = None
        for batch in (acts,) if isinstance(acts, Activations) else acts:
            wanted = [Site.parse(s) for s in sites] if sites is not None else batch.sites
            found = found or cls.empty(wanted, batch.info, batch.pooling, pairs=pairs)
            for start in range(0, len(batch), n_rows):
                rows = torch.arange(start, min(start + n_rows, len(batch)))
                found.update(batch, rows)
        if found is None:
            raise ActivationError("there are no batches to sum; capture a contrast first")
        return found

    def update(self, acts: Activations, rows: Int[Tensor, "row"] | None = None) -> None:
        """Add labelled activations (or some rows of them) that were not added before.

        Rows of one pair may come in different updates, under the same group name.

        Raises:
            ActivationError: no labels, a site that was not captured, another model or pooling,
                NaN. Nothing is added then.
        """
        self._require_same(acts)
        index = torch.arange(len(acts)) if rows is None else rows
        labels = acts.row_labels[index]
        wrong = sorted(set(labels.tolist()) - {0, 1})
        if wrong:
            raise ActivationError(f"labels are 1 or 0; got {wrong[:5]}")
        places = [acts.sites.index(site) for site in self.sites]
        for place in places:  # all are looked at before any is added; one site at a time
            _require_finite(acts, index, place)
        for classes, place in zip(self.parts, places, strict=True):
            x = acts.values[index, place].to(torch.float64)
            for label in (0, 1):
                mine = x[labels == label]
                if len(mine):
                    classes[label] = classes[label] + ClassMoments.of(mine)
        if self.pairs is not None:
            names = acts.groups or tuple(f"prompt{i}" for i in range(len(acts.prompts)))
            groups = [names[int(i)] for i in acts.prompt_index[index]]
            self.pairs.update(acts.values[index][:, places], labels.tolist(), groups)
        if acts.contrast_sha256 not in self.contrasts:
            self.contrasts += (acts.contrast_sha256,)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both, summed apart; the order does not matter but for rounding.

        Raises:
            ActivationError: other sites, another model or pooling, pairs in one alone.
        """
        theirs, mine = (
            (m.sites, m.info.fingerprint, m.pooling, m.pairs is None) for m in (other, self)
        )
        if mine != theirs:
            raise ActivationError(
                "moments merge where sites, model, pooling and pairs agree; got "
                f"{other!r} beside {self!r}"
            )
        parts = [
            [a + b for a, b in zip(one, two, strict=True)]
            for one, two in zip(self.parts, other.parts, strict=True)
        ]
        pairs = self.pairs.merge(other.pairs) if self.pairs and other.pairs else None
        contrasts = tuple(dict.fromkeys(self.contrasts + other.contrasts))
        return Moments(self.sites, self.info, self.pooling, parts, pairs, contrasts)

    @property
    def n(self) -> tuple[int, int]:
        """Rows added: negative, positive."""
        negative, positive = self.parts[0]
        return negative.n, positive.n

    @property
    def n_bytes(self) -> int:
        """Memory that the statistics take, in bytes; rows that wait for mates included."""
        tensors = [t for site in self.parts for c in site for t in (c.mean, c.scatter, c.skew)]
        return sum(t.nbytes for t in tensors) + (self.pairs.n_bytes if self.pairs else 0)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with a JSON header."""
        every = [c for site in self.parts for c in site]
        tensors = {
            name: torch.stack([getattr(c, name) for c in every])
            for name in ("mean", "scatter", "skew")
        }
        tensors["fourth"] = torch.tensor([c.fourth for c in every], dtype=torch.float64)
        header: dict[str, Any] = {
            "sites": [str(s) for s in self.sites],
            "info": self.info.to_json(),
            "pooling": self.pooling,
            "n": list(self.n),
            "contrasts": list(self.contrasts),
            "pairs": None,
        }
        if self.pairs is not None:
            more, about = self.pairs.to_file()
            text = json.dumps(about, separators=(",", ":")).encode()
            tensors |= more | {"groups": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
            header["pairs"] = True
        return write_tensors(Path(path), KIND, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "Moments":
        """Read a file written by `save`."""
        tensors, header = read_tensors(Path(path), KIND)
        mean, scatter, skew, fourth = (
            tensors[name].unflatten(0, (-1, 2)) for name in ("mean", "scatter", "skew", "fourth")
        )
        parts = [
            [
                ClassMoments(n, mean[i, y], scatter[i, y], skew[i, y], float(fourth[i, y]))
                for y, n in enumerate(header["n"])
            ]
            for i in range(len(header["sites"]))
        ]
        pairs = None
        if header["pairs"]:
            pairs = PairMoments.from_file(tensors, json.loads(bytes(tensors["groups"].numpy())))
        return cls(
            tuple(Site.parse(s) for s in header["sites"]),
            ModelInfo.from_json(header["info"]),
            header["pooling"],
            parts,
            pairs,
            tuple(header["contrasts"]),
        )

    def __repr__(self) -> str:
        negative, positive = self.n
        pairs = f", {self.pairs!r}" if self.pairs else ""
        return (
            f"Moments({len(self.sites)} sites, {positive} positive and {negative} negative rows, "
            f"pooling '{self.pooling}', {self.info.name}{pairs})"
        )

    def _require_same(self, acts: Activations) -> None:
        if acts.info.fingerprint != self.info.fingerprint or acts.pooling != self.pooling:
            raise ActivationError(
                f"these moments are of {self.info.name} ({self.info.fingerprint[:12]}), pooling "
                f"'{self.pooling}'; got activations of {acts.info.name} "
                f"({acts.info.fingerprint[:12]}), pooling '{acts.pooling}': sum them apart"
            )
        missing = [str(s) for s in self.sites if s not in acts.sites]
        if missing:
            raise ActivationError(
                f"these activations have no {', '.join(missing)}; there are "
                f"{', '.join(map(str, acts.sites))}"
            )


def _require_finite(acts: Activations, index: Int[Tensor, "row"], place: int) -> None:
    bad = ~torch.isfinite(acts.values[index, place]).all(1)
    if bad.any():
        prompt = acts.prompts[int(acts.prompt_index[index[bad][0]])].text[:60]
        raise ActivationError(
            f"an activation at {acts.sites[place]} is NaN or infinite, first for prompt "
            f"{prompt!r}; load the model in a wider dtype"
        )
