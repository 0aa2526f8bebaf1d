"""What a store holds, as a hash: everything that the bytes of its shards depend on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from steerkit.captures.job import describe, table_sha256
from steerkit.captures.pooling import Pooling, Span
from steerkit.errors import MethodError
from steerkit.protocols import Model
from steerkit.site import Site

OWN = ("sites", "dtype")
"""In what the groups of one store may differ; in all else they are alike."""


@dataclass(frozen=True)
class Spec:
    """One group of sites of a store: sites that were captured in one pass, and how.

    Attributes:
        dataset: fingerprint of the prompts and their metadata.
        model: fingerprint of the model.
        processing: what was done to its weights.
        model_dtype: in which dtype it ran.
        steering: hash of the interventions in force; empty for a plain model.
        interventions: the same in words.
        pooling: the rule, whether the BOS is left out, and the norm ratio of sinks.
        before: whether streams were read before interventions.
        token_budget: padded tokens a batch held; batches are made inside each shard, so that a
            shard is the same bits whichever worker runs it.
        rows_per_shard: prompts a shard holds.
        sites: the sites, in forward order.
        dtype: how values are stored.
    """

    dataset: str
    model: str
    processing: str
    model_dtype: str
    steering: str
    interventions: tuple[str, ...]
    pooling: Mapping[str, Any]
    before: bool
    token_budget: int
    rows_per_shard: int
    sites: tuple[str, ...]
    dtype: str

    @classmethod
    def of(
        cls,
        model: Model,
        dataset: str,
        sites: tuple[Site, ...],
        pooling: Pooling,
        *,
        before: bool,
        token_budget: int,
        rows_per_shard: int,
        dtype: str,
    ) -> "Spec":
        """The spec of a capture of these sites with this model."""
        return cls(
            dataset,
            model.info.fingerprint,
            model.info.processing,
            model.info.dtype,
            table_sha256(model.table),
            describe(model),
            _pooling_to_json(pooling),
            before,
            token_budget,
            rows_per_shard,
            tuple(str(site) for site in sites),
            dtype,
        )

    @property
    def sha256(self) -> str:
        """Hash of the spec."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def common(self) -> dict[str, Any]:
        """What all groups of a store share."""
        return {key: value for key, value in self.to_json().items() if key not in OWN}

    @property
    def rule(self) -> Pooling:
        """The pooling."""
        rule = self.pooling["rule"]
        if isinstance(rule, Mapping):
            rule = Span(rule["span"], rule["occurrence"])
        return Pooling(rule, self.pooling["exclude_bos"], self.pooling["sink_ratio"])

    def name(self, start: int, stop: int) -> str:
        """The file of rows `start` to `stop`, relative to the store's folder."""
        return f"shards/{self.dataset[:8]}-{self.sha256[:16]}-{start:010d}-{stop:010d}.safetensors"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        data = asdict(self)
        return {**data, "sites": list(self.sites), "interventions": list(self.interventions)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Spec":
        """The inverse of `to_json`."""
        lists = ("sites", "interventions")
        return cls(**{**data, **{name: tuple(data[name]) for name in lists}})


def _pooling_to_json(pooling: Pooling) -> dict[str, Any]:
    rule: Any = pooling.rule
    if isinstance(rule, Span):
        if not isinstance(rule.text, str):
            raise MethodError(
                "a store takes one span text for all prompts; got one a prompt. Capture them "
                "with sk.capture, or write the span into a column and capture positions='all'"
            )
        rule = {"span": rule.text, "occurrence": rule.occurrence}
    return {"rule": rule, "exclude_bos": pooling.exclude_bos, "sink_ratio": pooling.sink_ratio}
