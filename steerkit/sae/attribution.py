"""`feature_attribution`: which features carry a difference of two answers' logits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.captures.job import Prompts
from steerkit.captures.pooling import Pooling
from steerkit.errors import MethodError, PromptError
from steerkit.lenses.metrics import AnswerMetric, Answers, first_tokens
from steerkit.models.patching import visited
from steerkit.prompts import groups_of
from steerkit.sae.autoencoder import Autoencoder
from steerkit.sae.rows import prompts_of, require_model
from steerkit.statistics import Estimate, cluster_mean, group_codes

if TYPE_CHECKING:
    from steerkit.models.view import LanguageModel


@dataclass(frozen=True, eq=False)
class FeatureAttribution:
    """How much features carry of logit(towards) - logit(away), to first order.

    Attributes:
        values: `[prompt d_sae]`, sum over tokens of f_j x (d_j . gradient), nats.
        features: those of largest mean on one half of the groups, either sign.
        estimates: of each, its mean on the other half, with its interval.
        metric: mean of the logit difference itself.
        sae: the autoencoder's name.
    """

    values: Float[Tensor, "prompt d_sae"]
    features: tuple[int, ...]
    estimates: tuple[Estimate, ...]
    metric: float
    sae: str

    def summary(self) -> str:
        """The listed features and what they carry."""
        listed = "\n".join(
            f"feature {i}: {e} nats" for i, e in zip(self.features, self.estimates, strict=True)
        )
        return (
            f"logit difference {self.metric:.3g} nats on average, carried to first order by\n"
            + (listed)
        )

    def to_json(self) -> dict[str, Any]:
        """The listed features; not the values of every prompt."""
        return {
            "sae": self.sae,
            "metric": self.metric,
            "features": list(self.features),
            "estimates": [e.to_json() for e in self.estimates],
        }

    def __repr__(self) -> str:
        return f"FeatureAttribution({self.summary()})"


def feature_attribution(
    sae: Autoencoder,
    model: "LanguageModel",
    prompts: Prompts,
    answers: Answers,
    *,
    n: int = 10,
    exclude_bos: bool = True,
    token_budget: int = 4096,
    seed: int = 0,
) -> FeatureAttribution:
    """Attribute logit(towards) - logit(away), after the last prompt token, to features.

    One forward and one backward pass: a feature's activation times the slope of the metric
    along its decoder row, summed over tokens: the first-order effect of having the feature
    where it would be 0, with the SAE's error kept. Large features may not obey first order:
    confirm them with `sae.set(feature, 0.0)`.

    Args:
        sae: the autoencoder.
        model: the model.
        prompts: what to run.
        answers: (towards, away), or one such two for each prompt; texts or token ids.
        n: how many features to list: chosen on half of the groups, measured on the other.
        exclude_bos: a special token that stands first does not count.
        token_budget: padded tokens a batch may hold.
        seed: of the halves and the intervals.

    Raises:
        PromptError: answers that begin with the same token, or fewer than two groups.
        MethodError: an SAE that normalises by token, whose features write in units that vary.
        DirectionError: another model than the one the SAE was loaded for.

    Source: Marks et al. 2024, sparse feature circuits (arXiv:2403.19647).
    """
    if sae.sae.cfg.normalize_activations != "none":
        raise MethodError(
            f"{sae.name} normalises its input ('{sae.sae.cfg.normalize_activations}'), so what a "
            "feature writes varies with the token; attribute with an SAE that does not"
        )
    require_model(sae, model.info)
    read = prompts_of(model, prompts)
    groups = tuple(getattr(prompts, "groups", ())) or groups_of(read)
    code = group_codes(groups)
    if code.max() < 1:
        raise PromptError(
            "all prompts are of one group; give at least two, to choose and to measure"
        )
    bare = [p.with_answer("") for p in read]
    metric = AnswerMetric(first_tokens(model, bare, answers))
    pooling = Pooling.of("all", exclude_bos=exclude_bos)
    rows = sae.decoders()
    values, level = torch.zeros(len(read), sae.d_sae), 0.0
    for batch in model.batches(bare, token_budget=token_budget):
        inside = pooling.select(batch, bare, model.decode)
        seen = visited(model, batch, keep=[sae.site], logits="last", grad=True)
        stream = seen.streams[sae.site]
        wanted = metric(seen.logits[:, -1], batch.rows)
        (slope,) = torch.autograd.grad(wanted.sum(), stream)
        level += float(wanted.detach().double().sum())
        carried = sae.encode(stream.detach()[inside]) * (slope[inside].float().cpu() @ rows.T)
        owner = batch.rows[inside.nonzero()[:, 0]].cpu()
        values.index_add_(0, owner, carried)
    choose = np.isin(code, np.random.default_rng(seed).permutation(code.max() + 1)[::2])
    strength = values[torch.from_numpy(choose)].double().mean(0).abs()
    listed = strength.argsort(descending=True, stable=True)[:n].tolist()
    held = [g for g, c in zip(groups, choose, strict=True) if not c]
    rest = values[torch.from_numpy(~choose)].double().numpy()
    return FeatureAttribution(
        values=values,
        features=tuple(listed),
        estimates=tuple(cluster_mean(rest[:, i], held, seed=seed, unit="nats") for i in listed),
        metric=level / len(read),
        sae=sae.name,
    )
