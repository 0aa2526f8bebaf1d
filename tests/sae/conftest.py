"""Autoencoders of SAELens with random or planted weights, in folders of its format."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

D, F = 12, 40

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
    "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
    "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": 4}),
    "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
    "normalised": (
        sae_lens.StandardSAE,
        sae_lens.StandardSAEConfig,
        {"normalize_activations": "layer_norm"},
    ),
}

Make = Callable[..., Any]


@pytest.fixture
def make() -> Make:
    """A random SAE of a kind, as SAELens' own object."""

    def make(kind: str = "standard", d: int = D, f: int = F, seed: int = 0, **metadata: Any) -> Any:
        build, config, extra = KINDS[kind]
        named = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny", **metadata}
        sae = build(config(d_in=d, d_sae=f, metadata=SAEMetadata(**named), **extra))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sae.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn.abs() if name == "threshold" else drawn / d**0.5)
            sae.W_dec.copy_(sae.W_enc.T)
        return sae

    return make


@pytest.fixture
def saved(make: Make, tmp_path: Path) -> Callable[..., Path]:
    """The same, in a folder."""

    def saved(kind: str = "standard", **options: Any) -> Path:
        folder = tmp_path / kind
        make(kind, **options).save_model(folder)
        return folder

    return saved
