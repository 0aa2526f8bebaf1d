"""Features of a sparse autoencoder, set to values without running the autoencoder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError, SiteError
from steerkit.interventions.operator import (
    OPERATORS,
    Operator,
    PositionsLike,
    SitesLike,
    matrix,
    place,
    terms,
)
from steerkit.program import Group, Opcode
from steerkit.site import Site

EXACT = ("standard", "jumprelu")
"""Architectures whose features do not depend on each other."""
HOOKS = (
    (r"blocks\.(\d+)\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)", None),
    (r"blocks\.(\d+)\.hook_out", "resid_post"),
    (r"blocks\.(\d+)\.hook_in", "resid_pre"),
    # The output of a whole block in Hugging Face's models, whatever the path to its list.
    (r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)", "resid_post"),
)
"""Names of hook points, and the streams that are there."""


@OPERATORS.register("set_features")
@dataclass(frozen=True, init=False, eq=False)
class SetFeatures(Operator):
    """Set features of an autoencoder: h + strength * sum_j (target_j - act(w_j.h + b_j)) d_j.

    Exact for ReLU and JumpReLU: it is what encoding, changing these features, decoding and
    adding back the reconstruction error give, for the price of a dot product and a row each.
    Targets are in units of the autoencoder's activations; 0 switches a feature off.

    Args:
        encoder: w, one row a feature, `[feature d_model]`.
        bias: b, `[feature]`, with the decoder's bias folded in where the autoencoder
            subtracts it from its input (`of` does so).
        decoder: d, one row a feature, `[feature d_model]`.
        target: what to set the features to, one number or one a feature.
        threshold: of JumpReLU, one number or one a feature; 0 is ReLU.
        features: their numbers, to be named by; 0, 1, ... by default.
        strength: the fraction of the way from the activation to the target.
        positions: the tokens it acts on.
        sites: where it acts; there is no default.
        trained_on: fingerprint of the model the autoencoder was trained on, if known; another
            is then refused.

    Raises:
        InterventionError: rows of different shapes, not one target a feature, a target that
            is negative, which no feature can be.
    """

    name: ClassVar[str] = "set_features"

    encoder: Float[Tensor, "feature d_model"]
    bias: Float[Tensor, "feature"]
    decoder: Float[Tensor, "feature d_model"]
    target: tuple[float, ...]
    threshold: tuple[float, ...]
    features: tuple[int, ...]
    strength: float
    positions: Positions
    sites: tuple[Site, ...]
    trained_on: str | None

    def __init__(
        self,
        encoder: Float[Tensor, "feature d_model"],
        bias: Float[Tensor, "feature"],
        decoder: Float[Tensor, "feature d_model"],
        target: float | Sequence[float] = 0.0,
        threshold: float | Sequence[float] = 0.0,
        features: Sequence[int] | None = None,
        strength: float = 1.0,
        positions: PositionsLike = "all",
        sites: SitesLike = None,
        trained_on: str | None = None,
    ) -> None:
        place(self, [], strength, positions, sites)
        rows = matrix("the encoder of set_features", encoder, (None, None))
        n = len(rows)
        values: dict[str, Any] = {
            "encoder": rows,
            "bias": matrix("the bias of set_features", bias, (n,)),
            "decoder": matrix("the decoder of set_features", decoder, tuple(rows.shape)),
            "target": _each("target", target, n),
            "threshold": _each("threshold", threshold, n),
            "features": tuple(range(n)) if features is None else tuple(map(int, features)),
            "trained_on": trained_on,
        }
        if len(values["features"]) != n:
            raise InterventionError(f"{n} features have {len(values['features'])} numbers")
        if len(set(values["features"])) != n:
            raise InterventionError(
                f"a feature is set twice: {list(values['features'])}; name each once"
            )
        if min(values["target"], default=0.0) < 0:
            raise InterventionError(
                f"a feature is never negative, but a target is {min(values['target'])}; to push "
                "against what a feature writes, use Add along its decoder row"
            )
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls,
        sae: Any,
        features: int | Sequence[int],
        target: float | Sequence[float] = 0.0,
        *,
        strength: float = 1.0,
        positions: PositionsLike = "all",
        sites: SitesLike = None,
        trained_on: str | None = None,
    ) -> "SetFeatures":
        """Features of a SAELens autoencoder, at the site that it names unless told otherwise.

        Raises:
            InterventionError: an architecture, normalisation or reshaping of the input for
                which a sum over the features alone is not exact, an unknown feature or site.
        """
        cfg = sae.cfg
        _refuse_inexact(sae)
        chosen = [features] if isinstance(features, int) else [int(i) for i in features]
        bad = [i for i in chosen if not 0 <= i < int(cfg.d_sae)]
        if bad:
            raise InterventionError(
                f"no feature {bad[0]}; this autoencoder has features 0..{int(cfg.d_sae) - 1}"
            )
        with torch.no_grad():
            encoder = sae.W_enc.double()[:, chosen].T
            bias = sae.b_enc.double()[chosen]
            if cfg.apply_b_dec_to_input:
                bias = bias - encoder @ sae.b_dec.double()
            # The gate of JumpReLU closes what ReLU has closed already, whatever its threshold.
            jumps = sae.threshold.double()[chosen].clamp(min=0) if _kind(cfg) == "jumprelu" else 0.0
            return cls(
                encoder=encoder,
                bias=bias,
                decoder=sae.W_dec.double()[chosen],
                target=target,
                threshold=jumps.tolist() if isinstance(jumps, Tensor) else jumps,
                features=chosen,
                strength=strength,
                positions=positions,
                sites=_site_of(cfg) if sites is None else sites,
                trained_on=trained_on,
            )

    @property
    def directions(self) -> tuple[Direction, ...]:
        """None: it has rows of an autoencoder."""
        return ()

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model it was trained on, if known."""
        return self.trained_on

    @property
    def settings(self) -> dict[str, Any]:
        """Targets, thresholds, numbers of the features, and the model."""
        return {
            "target": list(self.target),
            "threshold": list(self.threshold),
            "features": list(self.features),
            "trained_on": self.trained_on,
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The rows of the encoder and decoder, and the bias."""
        return {"encoder": self.encoder, "bias": self.bias, "decoder": self.decoder}

    def describe(self) -> str:
        """One line for tables: features and targets, sites, positions, strength."""
        levels = dict(zip(self.features, self.target, strict=True))
        shown = ", ".join(f"{i} to {t:g}" for i, t in list(levels.items())[:4])
        more = f" and {len(levels) - 4} more" if len(levels) > 4 else ""
        parts = [f"{self.name} {shown}{more} at {' '.join(map(str, self.sites))}"]
        parts.append(str(self.positions))
        return ", ".join(parts + ([f"strength {self.strength:g}"] if self.strength != 1 else []))

    def group(self) -> Group:
        """One term a feature."""
        levels = zip(self.target, self.threshold, strict=True)
        return terms(
            self,
            Opcode.ACTIVATION,
            self.decoder,
            [(target, threshold, self.strength) for target, threshold in levels],
            offset=(-self.bias.double()).tolist(),
            read=self.encoder,
        )


def _each(name: str, value: float | Sequence[float], n: int) -> tuple[float, ...]:
    given = torch.as_tensor(value, dtype=torch.float64).flatten()
    if len(given) not in (1, n) or not torch.isfinite(given).all():
        raise InterventionError(
            f"the {name} of set_features is one finite number, or one for each of the {n} "
            f"features; got {value!r}"
        )
    return tuple(given.expand(n).tolist())


def _kind(cfg: Any) -> str:
    kind = cfg.architecture
    return str(kind() if callable(kind) else kind)


def _refuse_inexact(sae: Any) -> None:
    """Raise where changing features one by one is not what the autoencoder would do."""
    cfg, kind = sae.cfg, _kind(sae.cfg)
    activation = type(getattr(sae, "activation_fn", torch.nn.ReLU())).__name__
    why = ""
    if kind not in EXACT:
        why = (
            f"its architecture is '{kind}', whose features depend on each other or on more than "
            f"one read; known to be exact: {', '.join(EXACT)}. A BatchTopK autoencoder becomes "
            "JumpReLU when it is saved for inference"
        )
    elif activation != "ReLU":
        why = f"its activation is {activation}, not ReLU"
    elif cfg.normalize_activations != "none":
        why = (
            f"it normalises its input ('{cfg.normalize_activations}'): fold a constant factor "
            "into the weights first (fold_activation_norm_scaling_factor); one that depends on "
            "the token cannot be folded"
        )
    elif cfg.reshape_activations != "none":
        why = f"it reshapes its input ('{cfg.reshape_activations}'), which is no stream of d_model"
    if why:
        raise InterventionError(f"features of this autoencoder cannot be set by a sum: {why}")


def site_of_hook(hook: str | None) -> Site:
    """The stream at a hook point, by TransformerLens' or Hugging Face's name for it.

    Raises:
        SiteError: a hook point that is no known stream.

    >>> site_of_hook("blocks.3.hook_resid_post") == site_of_hook("model.layers.3")
    True
    """
    for pattern, stream in HOOKS:
        match = re.fullmatch(pattern, str(hook))
        if match:
            return Site(int(match[1]), stream or match[2])  # type: ignore[arg-type]
    raise SiteError(
        f"the hook point '{hook}' of this autoencoder is no stream that is known; say which it "
        "is with site='resid_post@3' or the like"
    )


def _site_of(cfg: Any) -> Site:
    try:
        return site_of_hook(getattr(getattr(cfg, "metadata", None), "hook_name", None))
    except SiteError as error:
        raise InterventionError(
            f"{error.args[0].partition(';')[0]}; say where to act with sites="
        ) from None
