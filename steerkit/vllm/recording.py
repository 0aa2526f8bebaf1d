"""A worker's side of captures: which tokens of a pass are kept, and writing them to files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.site import Site
from steerkit.vllm.capturing import Capture
from steerkit.vllm.layers import boundary
from steerkit.vllm.records import MEAN, append
from steerkit.vllm.registrations import Artefacts
from steerkit.vllm.requests import Asked

ELEMENTS = 2**26
"""Logits held at a time."""


class Steering(Protocol):
    """The step of a pass, as far as recording has to look between its sites."""

    def at(self, hidden: Tensor, residual: Tensor | None, boundary: int) -> None:
        """All that happens at a boundary."""
        ...

    def at_site(self, hidden: Tensor, residual: Tensor | None, site: Site) -> None:
        """What happens at one of its sites."""
        ...


class Recording:
    """The step of a pass that keeps streams of some tokens around the steering it wraps.

    Args:
        steering: what else happens in this pass.
        token: places of the tokens in the packed stream.
        wanted: sites, each with whether it is read before the steering there.
    """

    def __init__(
        self,
        steering: Steering | None,
        token: Int[Tensor, "kept"],
        wanted: Sequence[tuple[Site, bool]],
    ) -> None:
        self._steering, self._token = steering, token
        self._wanted = frozenset(wanted)
        self._places = {boundary(site) for site, _ in wanted}
        self.streams: dict[tuple[Site, bool], Float[Tensor, "kept d_model"]] = {}

    def at(self, hidden: Tensor, residual: Tensor | None, place: int) -> None:
        """Steer, and keep what was wanted before and after each site's share of it."""
        if place not in self._places:
            if self._steering is not None:
                self._steering.at(hidden, residual, place)
            return
        # In the order in which they act: the output of one layer, then the input of the next.
        for site in ([Site(place - 1, "resid_post")] if place else []) + [Site(place, "resid_pre")]:
            self._keep(hidden, residual, site, before=True)
            if self._steering is not None:
                self._steering.at_site(hidden, residual, site)
            self._keep(hidden, residual, site, before=False)

    def _keep(self, hidden: Tensor, residual: Tensor | None, site: Site, *, before: bool) -> None:
        if (site, before) in self._wanted:
            part = hidden[self._token].float()
            if residual is not None:
                part = part + residual[self._token].float()
            self.streams[site, before] = part


@dataclass
class _Mean:
    """A mean over a prompt that comes in chunks."""

    total: Float[Tensor, "site d_model"] | None = None
    """Float64, on the CPU."""
    tokens: int = 0
    """Summed so far; a prompt that starts over is not summed again."""


@dataclass(frozen=True)
class _Share:
    """What one capture keeps of a pass: positions, and where they are among the kept tokens."""

    capture: Capture
    prompt_len: int
    positions: Sequence[int]
    at: Sequence[int]


class Recorder:
    """The captures of one engine's requests.

    Args:
        artefacts: in whose folder captures are written.
        d_vocab: of the model.
        writes: whether this is the rank that writes; the others only compute logits with it.
    """

    def __init__(self, artefacts: Artefacts, d_vocab: int, *, writes: bool = True) -> None:
        self._artefacts, self._d_vocab, self._writes = artefacts, d_vocab, writes
        self._requests: dict[str, tuple[Asked, int]] = {}
        self._means: dict[str, _Mean] = {}
        self._shares: list[_Share] = []
        self._token: Tensor | None = None
        self._recording: Recording | None = None

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __contains__(self, name: object) -> bool:
        return name in self._requests

    def follow(self, name: str, asked: Asked, prompt_len: int) -> None:
        """Take in a request that has captures."""
        self._requests.setdefault(name, (asked, prompt_len))

    def finished(self, requests: Any) -> None:
        """Forget requests that the runner has no more."""
        for name in [name for name in self._requests if name not in requests]:
            for capture in self._requests.pop(name)[0].captures:
                self._means.pop(capture.name, None)

    def step(
        self,
        rows: Mapping[str, tuple[int, int, int]],
        steering: Steering | None,
        device: torch.device,
    ) -> Recording | None:
        """The step of a pass; None where none of its tokens is kept.

        Args:
            rows: requests of the pass: their first token in the stream, their end, and the
                position of the first.
            steering: what else happens.
            device: where the stream is.
        """
        self._shares, kept = [], list[int]()
        for name, (asked, prompt_len) in self._requests.items():
            if name not in rows:
                continue
            start, end, first = rows[name]
            for capture in asked.captures:
                positions = capture.taken(first, first + end - start, prompt_len)
                if positions:
                    at = range(len(kept), len(kept) + len(positions))
                    kept += [start + position - first for position in positions]
                    self._shares.append(_Share(capture, prompt_len, positions, at))
        self._recording = None
        if not self._shares:
            return None
        self._token = torch.tensor(kept, device=device)
        wanted = [
            (site, share.capture.before)
            for share in self._shares
            for site in (share.capture.where if self._writes else ())
        ]
        self._recording = Recording(steering, self._token, wanted)
        return self._recording

    def write(self, hidden: Tensor, compute_logits: Any) -> None:
        """Write what the pass that just ran has kept.

        Args:
            hidden: what the model gave, `[token d_model]`.
            compute_logits: the model's own; every rank must call it alike.
        """
        if self._recording is None or self._token is None:
            return
        streams = {key: kept.cpu() for key, kept in self._recording.streams.items()}
        for share in self._shares:
            capture, at = share.capture, slice(share.at[0], share.at[-1] + 1)
            found = None
            if capture.sites and self._writes:
                sites = [(site, capture.before) for site in capture.where]
                found = torch.stack([streams[site][at] for site in sites], 1)
            if not capture.logits:
                self._put(share, share.positions, found, None)
                continue
            rows = max(1, ELEMENTS // self._d_vocab)
            for i in range(0, len(share.positions), rows):
                logits = compute_logits(hidden[self._token[at][i : i + rows]])
                if self._writes:
                    # Some networks pad their vocabulary.
                    taken = logits[:, : self._d_vocab].float().cpu()
                    part = None if found is None else found[i : i + rows]
                    self._put(share, share.positions[i : i + rows], part, taken)
        self._recording = None

    def _put(
        self,
        share: _Share,
        positions: Sequence[int],
        streams: Tensor | None,
        logits: Tensor | None,
    ) -> None:
        if not self._writes:
            return
        name = share.capture.name
        if share.capture.pool:
            assert streams is not None
            mean = self._means.setdefault(name, _Mean())
            new = [i for i, position in enumerate(positions) if position >= mean.tokens]
            if not new:
                return
            added = streams[new].double().sum(0)
            mean.total = added if mean.total is None else mean.total + added
            mean.tokens += len(new)
            if mean.tokens < share.prompt_len:
                return
            positions, streams = [MEAN], (mean.total / mean.tokens).float()[None]
        append(name, self._artefacts, positions, streams, logits)
