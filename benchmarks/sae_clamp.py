"""Setting features of a sparse autoencoder: their sparse form against running the autoencoder.

    python benchmarks/sae_clamp.py [--quick] [--threads 2] [--repeats 11]

A random JumpReLU autoencoder of 16,384 features on 256 tokens of width 512. The base encodes,
sets the features, decodes, and adds back what the reconstruction missed; `SetFeatures` is equal
to that and touches the set features alone. Both are eager. What a clamp costs a whole decode
step is in `decode.py`. Writes `results/sae_clamp.json`.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timing
import torch
from torch import Tensor

from steerkit.interventions import SetFeatures
from steerkit.kernels.reference import apply, pack
from steerkit.program import Program
from steerkit.site import Site

BASE = "encode, set, decode"
CALLS = 10
"""Of each form in a round, so that neither is measured on what the other left in the caches."""


class Shape(NamedTuple):
    """An autoencoder and what it runs on."""

    features: int
    d_model: int
    tokens: int


class Autoencoder(NamedTuple):
    """Random weights of usual scale."""

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    threshold: float = 0.5

    def act(self, h: Tensor) -> Tensor:
        """Features of a stream."""
        p = h @ self.encoder.T + self.bias
        return torch.where(p > self.threshold, p, 0)

    def set(self, h: Tensor, features: Tensor, target: float) -> Tensor:
        """The stream with features set, the reconstruction error kept."""
        active = self.act(h)
        missed = h - active @ self.decoder
        active[:, features] = target
        return active @ self.decoder + missed


def arms(shape: Shape) -> dict[str, Callable[[], Any]]:
    """The full form, and the sparse one for several numbers of features."""
    draw = torch.Generator().manual_seed(0)
    encoder, decoder = (
        torch.randn(shape.features, shape.d_model, generator=draw) / shape.d_model**0.5
        for _ in range(2)
    )
    sae = Autoencoder(encoder, torch.randn(shape.features, generator=draw) * 0.1, decoder)
    h = torch.randn(1, shape.tokens, shape.d_model, generator=draw)
    numbers = torch.randperm(shape.features, generator=draw)
    absolute = torch.arange(shape.tokens)[None]
    length, row = torch.tensor([shape.tokens]), torch.zeros(1, dtype=torch.long)
    out: dict[str, Callable[[], Any]] = {}
    for m in (4, 16):
        chosen = numbers[:m]

        def full(chosen: Tensor = chosen) -> Tensor:
            return sae.set(h[0], chosen, 2.0)

        features = SetFeatures(
            encoder=sae.encoder[chosen].double(),
            bias=sae.bias[chosen].double(),
            decoder=sae.decoder[chosen].double(),
            target=2.0,
            threshold=sae.threshold,
            sites=[0],
        )
        # Lowered and packed once, as views do; what is timed is what each pass does.
        packed = pack((Program(), features.lower(Site(0))), h.device, h.dtype)

        def sparse(packed: Any = packed) -> Tensor:
            return apply(packed, h, absolute=absolute, prompt_len=length, row=row, slot=(1,))

        error = float((sparse()[0] - full()).norm() / full().norm())
        if not error < 1e-5:
            raise SystemExit(f"{m} features: the two forms differ by {error:.2e}")
        if not out:
            out = {BASE: full, f"{BASE}, again (A/A)": full}
        out[f"SetFeatures, {m} features"] = sparse
    return out


def main() -> None:
    """Check, time, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny and few; proves it runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=11)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    shape = Shape(256, 64, 16) if given.quick else Shape(16_384, 512, 256)
    before = timing.machine()
    with torch.no_grad():
        measured = {
            name: partial(timing.repeated, form, CALLS) for name, form in arms(shape).items()
        }
        times = timing.measure(measured, repeats=2 if given.quick else given.repeats, warmup=2)
    table = timing.rows(times, BASE)
    timing.show(f"{shape.features} features of width {shape.d_model}", table)
    before["load_average_after"] = list(os.getloadavg())
    name = "sae_clamp-quick" if given.quick else "sae_clamp"
    part = {
        f"F{shape.features}_d{shape.d_model}_T{shape.tokens}": {"machine": before, "rows": table}
    }
    print(timing.update(name, part))


if __name__ == "__main__":
    main()
