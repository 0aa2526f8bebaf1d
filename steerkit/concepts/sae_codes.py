"""A concept as what changes in a sparse autoencoder's code when the concept is written in.

For a probe w.a + b, each neutral activation a is moved along the probe's normal by as little as
brings the probe to probability p0, and not at all where it is there already:

    a~ = a + max(0, logit(p0) - b - w.a) w / |w|^2,    C = mean_a [f(a~) - f(a)]

with f the encoder. C is sparse: concepts that share no latent have a cosine of exactly 0, so how
many latents are active belongs to every number. Two variants: the difference of mean codes of the
sentences that the probe was fitted to, and what the encoder's weights read along w (not sparse).

Source: BiasLens (arXiv:2505.15524) with the minimal perturbation of SCAV (arXiv:2404.12038),
reconstructed; see `biases`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.captures import capture
from steerkit.concepts.cavs import Cavs
from steerkit.errors import DirectionError, MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.registry import suggest
from steerkit.site import Site

if TYPE_CHECKING:
    from steerkit.sae import Autoencoder

Variant = Literal["perturbation", "difference", "encoder"]
ELEMENTS = 2**24
"""Features held at a time while perturbed activations are encoded."""


@dataclass(frozen=True, eq=False)
class SaeCodes:
    """The representation of `bias_lens(..., represent=SaeCodes.of(model, sae, neutral))`.

    Attributes:
        autoencoders: by site.
        neutral: activations that perturbations start from, by site: `[neutral d_model]`.
        variant: `perturbation`, as published; `difference` of mean codes; `encoder` weights.
        probability: p0.
    """

    autoencoders: Mapping[Site, "Autoencoder"]
    neutral: Mapping[Site, Float[Tensor, "neutral d_model"]]
    variant: Variant = "perturbation"
    probability: float = 0.95

    @classmethod
    def of(
        cls,
        model: Model,
        autoencoders: "Autoencoder | Sequence[Autoencoder]",
        neutral: Sequence[Prompt | str],
        *,
        positions: str | int = "last",
        variant: Variant = "perturbation",
        probability: float = 0.95,
    ) -> "SaeCodes":
        """Capture what the neutral prompts leave at the autoencoders' sites.

        Args:
            model: whose streams the autoencoders read.
            autoencoders: one, or one a site.
            neutral: prompts that show none of the concepts; 50 to 100 are enough. The cost is
                theirs times that of encoding every probe: resamples, permutations, random.
            positions: the token that is read, as for the concepts.
            variant: see `SaeCodes`.
            probability: p0, above 0.5.

        Raises:
            MethodError: no neutral prompts, two autoencoders at a site, an unknown variant, a
                probability outside (0.5, 1).
            DirectionError: an autoencoder of another model.
        """
        several = list(autoencoders) if isinstance(autoencoders, Sequence) else [autoencoders]
        _check(several, len(neutral), variant, probability)
        for one in several:
            if one.info is not None and one.info.fingerprint != model.info.fingerprint:
                raise DirectionError(
                    f"{one.name} was loaded with {one.info.name} ({one.info.fingerprint[:12]}), "
                    f"not with {model.info.name} ({model.info.fingerprint[:12]}); load it with "
                    "the model it is used on"
                )
        sites = sorted(one.site for one in several)
        acts = capture(model, list(neutral), sites=sites, positions=positions, progress=False)
        return cls(
            {one.site: one for one in several},
            {site: acts.at(site).double() for site in sites},
            variant,
            probability,
        )

    @property
    def name(self) -> str:
        """What it is called."""
        words = {
            "perturbation": f"SAE codes, perturbed to p = {self.probability:g}",
            "difference": "SAE codes, difference of means",
            "encoder": "SAE encoder weights",
        }
        return words[self.variant]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where there are autoencoders."""
        return tuple(sorted(self.autoencoders))

    def __call__(self, site: Site, cavs: Cavs) -> Float[Tensor, "d_sae fit"]:
        """One code a probe, float64; zero where no latent changes."""
        one = self.autoencoders[site]
        if self.variant == "difference":
            return one.encode(cavs.rows.float()).double().T @ cavs.contrast
        if self.variant == "encoder":
            return one.sae.W_enc.detach().cpu().double().T @ cavs.weights
        return self._perturbed(one, self.neutral[site], cavs)

    def _perturbed(self, one: "Autoencoder", a: Tensor, cavs: Cavs) -> Tensor:
        size = cavs.weights.norm(dim=0)
        units = cavs.weights / size
        goal = math.log(self.probability / (1 - self.probability))
        steps = ((goal - cavs.biases - a @ cavs.weights) / size).clamp(min=0)
        before = one.encode(a.float())
        found = torch.empty(one.d_sae, len(size), dtype=torch.float64)
        at_once = max(1, ELEMENTS // (len(a) * one.d_sae))
        for first in range(0, len(size), at_once):
            some = slice(first, first + at_once)
            moved = a[:, None] + steps[:, some, None] * units.T[some]
            codes = one.encode(moved.flatten(0, 1).float()).reshape(*moved.shape[:2], -1)
            # Rows that were there already have not moved, not even by rounding.
            change = torch.where(steps[:, some, None] > 0, codes - before[:, None], 0.0)
            found[:, some] = change.double().mean(0).T
        return found


def _check(
    several: Sequence["Autoencoder"], n_neutral: int, variant: str, probability: float
) -> None:
    if variant not in get_args(Variant):
        raise MethodError(
            f"no SAE representation '{variant}'; {suggest(variant, get_args(Variant))}"
        )
    sites = [one.site for one in several]
    if not sites or len({*sites}) < len(sites):
        raise MethodError(
            "give one autoencoder a site; got "
            f"{', '.join(f'{one.name} at {one.site}' for one in several) or 'none'}"
        )
    if not n_neutral:
        raise MethodError("there are no neutral prompts for a perturbation to start from")
    if not 0.5 < probability < 1:
        raise MethodError(
            f"the probability that a perturbation reaches lies between 0.5 and 1; got {probability}"
        )
