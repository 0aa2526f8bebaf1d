"""A sparse autoencoder at a site of a model: SAELens' object, with what is known about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.direction import Direction
from steerkit.errors import ActivationError, ModelError
from steerkit.interventions import Add, SetFeatures
from steerkit.interventions.operator import PositionsLike
from steerkit.protocols import ModelInfo
from steerkit.site import Site


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A sparse autoencoder (SAE): h ~ sum_j f_j(h) d_j + b, with few f_j above 0.

    Attributes:
        sae: SAELens' object; `encode` and `decode` are its own.
        site: the stream that it reads and writes.
        name: where it came from.
        info: the model that it was checked against, or None.
        claims: what its file says of itself: `l0`, `k`, `model_name`, `hook_name`, ...
        checks: what loading found: what was compared, and what was measured.
    """

    sae: Any
    site: Site
    name: str
    info: ModelInfo | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return int(self.sae.cfg.d_in)

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.sae.cfg.d_sae)

    @property
    def architecture(self) -> str:
        """`standard`, `jumprelu`, `topk`, `gated`, ..."""
        return str(self.sae.cfg.architecture())

    def encode(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_sae"]:
        """Features of activations, by SAELens' own `encode`; float32 on the CPU, dense.

        Raises:
            ActivationError: activations of another width.
        """
        return self._through(x, reconstruct=False)[0]

    def reconstruct(
        self, x: Float[Tensor, "*lead d_model"]
    ) -> tuple[Float[Tensor, "*lead d_sae"], Float[Tensor, "*lead d_model"]]:
        """Features and reconstruction of activations, float32 on the CPU.

        In one call, because SAEs that normalise their input keep its norm from `encode` for
        `decode`.
        """
        features, out = self._through(x, reconstruct=True)
        assert out is not None
        return features, out

    def decoder(self, feature: int) -> Float[Tensor, "d_model"]:
        """What a feature writes per unit of its activation.

        For SAEs that normalise their input, at a token of the norm that they normalise to.

        Raises:
            ModelError: no such feature.
        """
        self.require(feature)
        return self._written(self.sae.W_dec[feature])

    def decoders(self) -> Float[Tensor, "d_sae d_model"]:
        """What each feature writes per unit of its activation."""
        return self._written(self.sae.W_dec)

    def set(
        self,
        features: int | Sequence[int],
        target: float | Sequence[float] = 0.0,
        *,
        strength: float = 1.0,
        positions: PositionsLike = "all",
    ) -> SetFeatures:
        """Clamp features to values at the SAE's site, with its reconstruction error kept.

        Raises:
            InterventionError: an SAE for which that is no sum over features (see `SetFeatures`).
        """
        return SetFeatures.of(
            self.sae,
            features,
            target,
            strength=strength,
            positions=positions,
            sites=self.site,
            trained_on=self.info.fingerprint if self.info else None,
        )

    def scale(
        self, features: int | Sequence[int], factor: float, *, positions: PositionsLike = "all"
    ) -> SetFeatures:
        """Multiply features, where they are on, with the reconstruction error kept.

        A factor of 0 switches them off, of 1 leaves the stream untouched, of 2 doubles them;
        the further parts of `SetFeatures` towards 0.

        Raises:
            InterventionError: an SAE for which that is no sum over features.
        """
        return self.set(features, 0.0, strength=1.0 - factor, positions=positions)

    def shift(
        self,
        amounts: Mapping[int, float],
        *,
        strength: float = 1.0,
        positions: PositionsLike = "all",
    ) -> Add:
        """Add amounts to features, on or off (a sparse delta), with the error kept.

        What decoding the features plus their amounts gives, and so exact for every SAE that
        decodes by its rows. Amounts are in units of the features and may be negative; those
        of features that are off then write against their rows.

        Raises:
            ModelError: no such feature, no amounts, or the SAE was loaded without a model.
        """
        if not amounts:
            raise ModelError("a sparse delta needs at least one feature and its amount")
        self.require(*amounts)
        rows = torch.stack([self.decoder(i) * float(a) for i, a in amounts.items()])
        written = rows.double().sum(0)
        size = float(written.norm())
        if not size > 0:
            raise ModelError("the amounts of this delta write nothing: they are 0 or cancel out")
        named = ", ".join(f"{i} by {a:+g}" for i, a in amounts.items())
        return Add(
            Direction(
                unit=(written / size).float(),
                scale=size,
                site=self.site,
                method="sae_feature",
                concept=f"feature {named}",
                positive_mean=size,
                negative_mean=0.0,
                model=self._known_model(),
                pooling="all",
                provenance={"sae": self.name, "amounts": {str(i): a for i, a in amounts.items()}},
            ),
            strength,
            positions,
        )

    def direction(self, feature: int, typical: float, *, concept: str = "") -> Direction:
        """A feature as a direction to steer along: its decoder row.

        Args:
            feature: its number.
            typical: an activation of the feature, such as its mean while active; one strength
                of `Add` then writes what the feature writes at that activation.
            concept: what it is called; by default by its number.

        The class means are those of the feature's own contribution: `typical` times the
        decoder's norm while active, 0 while not.

        Raises:
            ModelError: no such feature, or the SAE was loaded without a model.
            DirectionError: `typical` is not above 0.
        """
        model = self._known_model()
        row = self.decoder(feature)
        size = float(row.norm())
        return Direction(
            unit=row / size,
            scale=typical * size,
            site=self.site,
            method="sae_feature",
            concept=concept or f"feature {feature}",
            positive_mean=typical * size,
            negative_mean=0.0,
            model=model,
            pooling="all",
            provenance={"sae": self.name, "feature": feature, "typical": typical},
        )

    def require(self, *features: int) -> None:
        """Raise where a feature does not exist.

        Raises:
            ModelError: naming the first.
        """
        bad = [i for i in features if not 0 <= i < self.d_sae]
        if bad:
            raise ModelError(f"no feature {bad[0]}; {self.name} has features 0..{self.d_sae - 1}")

    def to_json(self) -> dict[str, Any]:
        """What it is, claims and checks."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "site": str(self.site),
            "d_model": self.d_model,
            "d_sae": self.d_sae,
            "model": self.info.to_json() if self.info else None,
            "claims": dict(self.claims),
            "checks": dict(self.checks),
        }

    def __repr__(self) -> str:
        measured = "".join(
            f", {name} {self.checks[name]:.3g}"
            for name in ("l0", "variance_explained")
            if name in self.checks
        )
        return (
            f"Autoencoder({self.name}, {self.architecture}, {self.d_sae} features of "
            f"{self.site}{measured})"
        )

    def _known_model(self) -> ModelInfo:
        if self.info is None:
            raise ModelError(
                f"{self.name} was loaded without a model, so a direction could not say whose it "
                "is; use load_sae(..., model=model)"
            )
        return self.info

    def _written(self, rows: Tensor) -> Tensor:
        rows = rows.detach().float().cpu()
        if getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False):
            # Such a decoder counts as normalised: activations carry its length already.
            return rows / rows.norm(dim=-1, keepdim=True)
        return rows

    def _through(self, x: Tensor, *, reconstruct: bool) -> tuple[Tensor, Tensor | None]:
        if x.shape[-1] != self.d_model:
            raise ActivationError(
                f"{self.name} reads activations of width {self.d_model}; got {x.shape[-1]}"
            )
        with torch.no_grad():
            features = self.sae.encode(x.to(self.sae.device, self.sae.dtype))
            # Decoded in any case: an SAE that normalises leaves the norm behind otherwise.
            out = self.sae.decode(features) if reconstruct or self._remembers else None
        dense = features.to_dense() if features.is_sparse else features
        return dense.float().cpu(), None if out is None else out.float().cpu()

    @property
    def _remembers(self) -> bool:
        return self.sae.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale")
