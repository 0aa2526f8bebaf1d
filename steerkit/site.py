"""Where in a model: a layer and a stream, by TransformerLens' names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering
from typing import Literal, get_args

from steerkit.errors import SiteError
from steerkit.registry import suggest

Stream = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]

STREAMS: tuple[Stream, ...] = get_args(Stream)
"""The five streams in the order in which a sequential block computes them.

They are defined by the additive identity resid_mid = resid_pre + attn_out and
resid_post = resid_mid + mlp_out, not by module names: in post-norm blocks attn_out and
mlp_out are the contributions after the post-norm.
"""


@total_ordering
@dataclass(frozen=True)
class Site:
    """One stream of one block. Layers count from 0; `resid_post@3` is the output of block 3.

    >>> str(Site(3))
    'resid_post@3'
    >>> Site.parse("attn_out@0") < Site.parse("resid_mid@0") < Site.parse("resid_pre@1")
    True
    """

    layer: int
    stream: Stream = "resid_post"

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise SiteError(f"no stream named '{self.stream}'; {suggest(self.stream, STREAMS)}")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise SiteError(f"a layer is an int counted from 0; got {self.layer!r}")
        if self.layer < 0:
            raise SiteError(
                f"layers count from 0; got {self.layer}. Negative layers are refused because "
                "'the last layer' means different things in different tools"
            )

    @classmethod
    def parse(cls, text: "str | int | Site") -> "Site":
        """Read `stream@layer`, or a bare layer, which means its resid_post."""
        if isinstance(text, Site):
            return text
        if isinstance(text, int):
            return cls(text)
        match = re.fullmatch(r"(?:([A-Za-z_]+)@)?(-?\d+)", text.strip())
        if match is None:
            raise SiteError(f"a site reads 'stream@layer', such as 'resid_post@3'; got '{text}'")
        return cls(int(match[2]), match[1] or "resid_post")  # type: ignore[arg-type]

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: the order in which a forward pass reaches the sites."""
        return self.layer, STREAMS.index(self.stream)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Site):
            return NotImplemented
        return self.order < other.order

    def __str__(self) -> str:
        return f"{self.stream}@{self.layer}"


def sites_of(
    layers: Iterable[int] | None, streams: str | Iterable[str], n_layers: int
) -> tuple[Site, ...]:
    """All sites of the given streams at the given layers (all layers when None), in order."""
    wanted = (streams,) if isinstance(streams, str) else tuple(streams)
    chosen = range(n_layers) if layers is None else tuple(layers)
    return tuple(
        sorted({Site(layer, stream) for layer in chosen for stream in wanted})  # type: ignore[arg-type]
    )
