"""Features of autoencoders, set by a sum and by a full encode and decode."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.errors import InterventionError
from steerkit.interventions import SetFeatures
from steerkit.site import Site

D, F = 12, 30


@dataclass
class Autoencoder:
    """A ReLU or JumpReLU autoencoder with the attributes of SAELens' ones, written out."""

    kind: str = "standard"
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        self.W_enc = torch.randn(D, F, generator=g, dtype=torch.float64) / D**0.5
        self.W_dec = torch.randn(F, D, generator=g, dtype=torch.float64) / D**0.5
        self.b_enc = torch.randn(F, generator=g, dtype=torch.float64)
        self.b_dec = torch.randn(D, generator=g, dtype=torch.float64)
        # Some thresholds are negative, which ReLU makes zero.
        self.threshold = torch.rand(F, generator=g, dtype=torch.float64) * 2 - 0.5
        self.cfg = SimpleNamespace(
            **{
                "architecture": lambda: self.kind,
                "d_sae": F,
                "apply_b_dec_to_input": True,
                "normalize_activations": "none",
                "reshape_activations": "none",
                "metadata": SimpleNamespace(hook_name="blocks.2.hook_resid_post"),
                **self.settings,
            }
        )

    def encode(self, x: Tensor) -> Tensor:
        if self.cfg.apply_b_dec_to_input:
            x = x - self.b_dec
        pre = x @ self.W_enc + self.b_enc
        on = pre > self.threshold if self.kind == "jumprelu" else pre > 0
        return pre.clamp(min=0) * on

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec + self.b_dec


def changed(sae: Any, h: Tensor, features: Any, target: Any, strength: float = 1.0) -> Tensor:
    """Encode, set, decode, add the reconstruction error back."""
    f = sae.encode(h)
    to = f.clone()
    to[..., features] += strength * (torch.as_tensor(target).to(f) - f[..., features])
    return sae.decode(to) + (h - sae.decode(f))


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_equals_a_full_encode_and_decode(
    steer: Any, batch: Any, h: Any, kind: str, subtracts: bool, strength: float
) -> None:
    sae = Autoencoder(kind, settings={"apply_b_dec_to_input": subtracts})
    for features, target in (([4], 3.0), ([4, 0, 29], [0.0, 2.0, 0.5]), (list(range(F)), 0.0)):
        made = SetFeatures.of(sae, features, target, strength=strength)
        wanted = changed(sae, h, features, target, strength)
        out = steer(made, h)
        torch.testing.assert_close(out[batch.mask], wanted[batch.mask], rtol=0, atol=1e-11)
        assert not torch.equal(out[batch.mask], h[batch.mask])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_equals_saelens_own(steer: Any, batch: Any, h: Any, kind: str) -> None:
    lens = pytest.importorskip("sae_lens")
    make, config = {
        "standard": (lens.StandardSAE, lens.StandardSAEConfig),
        "jumprelu": (lens.JumpReLUSAE, lens.JumpReLUSAEConfig),
    }[kind]
    metadata = lens.saes.sae.SAEMetadata(hook_name="blocks.2.hook_resid_post")
    sae = make(config(d_in=D, d_sae=F, dtype="float64", metadata=metadata))
    ours = Autoencoder(kind)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(getattr(ours, name))
        wanted = changed(sae, h, [3, 8], [1.5, 0.0])
    out = steer(SetFeatures.of(sae, [3, 8], [1.5, 0.0]), h)
    torch.testing.assert_close(out[batch.mask], wanted[batch.mask], rtol=0, atol=1e-10)
    topk = lens.TopKSAE(lens.TopKSAEConfig(d_in=D, d_sae=F, k=4))
    with pytest.raises(InterventionError, match="its architecture is 'topk'"):
        SetFeatures.of(topk, 0)


def test_a_feature_that_is_off_and_set_to_zero_changes_nothing(steer: Any, batch: Any) -> None:
    sae = Autoencoder()
    off = torch.zeros(*batch.tokens.shape, D, dtype=torch.float64) - 9 * sae.W_enc[:, 5]
    assert (sae.encode(off)[batch.mask][:, 5] == 0).all()
    torch.testing.assert_close(steer(SetFeatures.of(sae, 5), off), off, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_mlp_out", Site(3, "mlp_out")),
        ("blocks.3.hook_resid_pre", Site(3, "resid_pre")),
        ("blocks.3.hook_out", Site(3)),
        ("model.layers.11", Site(11)),
        ("transformer.h.0", Site(0)),
    ],
)
def test_the_site_is_that_of_the_hook_point(hook: str, site: Site) -> None:
    sae = Autoencoder(settings={"metadata": SimpleNamespace(hook_name=hook)})
    assert SetFeatures.of(sae, 0).sites == (site,)
    assert SetFeatures.of(sae, 0, sites=[1]).sites == (Site(1),)


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        ("topk", {}, "architecture is 'topk', whose features depend on each other"),
        ("gated", {}, "architecture is 'gated'"),
        ("transcoder", {}, "architecture is 'transcoder'"),
        ("standard", {"normalize_activations": "layer_norm"}, "normalises its input"),
        ("standard", {"normalize_activations": "expected_average_only_in"}, "fold a constant"),
        ("standard", {"reshape_activations": "hook_z"}, "reshapes its input"),
        ("standard", {"metadata": SimpleNamespace(hook_name="blocks.1.attn.hook_z")}, "sites="),
    ],
)
def test_what_would_not_be_exact_is_refused(kind: str, settings: Any, text: str) -> None:
    with pytest.raises(InterventionError, match=text):
        SetFeatures.of(Autoencoder(kind, settings=settings), 0)


def test_refused(steer: Any) -> None:
    sae = Autoencoder()
    with pytest.raises(InterventionError, match=r"no feature 30; .* features 0\.\.29"):
        SetFeatures.of(sae, [3, 30])
    with pytest.raises(InterventionError, match="a feature is set twice"):
        SetFeatures.of(sae, [3, 3])
    with pytest.raises(InterventionError, match="never negative, but a target is -1"):
        SetFeatures.of(sae, [3], -1.0)
    with pytest.raises(InterventionError, match="target of set_features is one finite number, or"):
        SetFeatures.of(sae, [3, 4], [1.0, 2.0, 3.0])
    sae.activation_fn = torch.nn.Tanh()
    with pytest.raises(InterventionError, match="its activation is Tanh, not ReLU"):
        SetFeatures.of(sae, 3)


def test_says_which_features_and_targets() -> None:
    made = SetFeatures.of(Autoencoder(), [7, 3], [2.0, 0.0], positions="generated", strength=0.5)
    assert str(made) == "set_features 7 to 2, 3 to 0 at resid_post@2, generated, strength 0.5"
    assert "and 26 more" in str(SetFeatures.of(Autoencoder(), range(F)))
