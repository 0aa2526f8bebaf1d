"""How good an SAE is on a model: L0, variance explained, loss recovered, dead features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from steerkit.batch import Batch
from steerkit.captures.job import Prompts
from steerkit.captures.pooling import Pooling
from steerkit.errors import MethodError, PromptError
from steerkit.models.patching import visited
from steerkit.prompts import groups_of
from steerkit.registry import suggest
from steerkit.sae.autoencoder import Autoencoder
from steerkit.sae.rows import prompts_of, require_model
from steerkit.sae.running import FeatureStatistics, Running
from steerkit.scoring import divergence
from steerkit.statistics import Estimate, group_bootstrap

if TYPE_CHECKING:
    from steerkit.models.view import LanguageModel

LOSS_ON = ("all", "answer")


@dataclass(frozen=True, eq=False)
class Quality:
    """What an SAE keeps of the stream and of the model's behaviour.

    Attributes:
        sae: its name.
        model: the model's name.
        l0: mean number of features on at a token, interval over prompts' groups.
        variance_explained: 1 - sum |h - h'|^2 / sum |h - mean h|^2 over all tokens.
        loss_recovered: (zero - spliced) / (zero - plain): 1 where the model does as well on
            the reconstruction as on its own stream, 0 where no better than on zeros.
        loss_plain: the model's own loss, nats per token.
        loss_spliced: its loss with the reconstruction spliced in.
        loss_zero: its loss with zeros in the stream's place.
        kl: KL(plain || spliced), nats per token.
        dead: fraction of features that were never on.
        statistics: of every feature, and the number of tokens.
        loss_on: which tokens' loss: `all` or `answer`.
        n_predicted: tokens that were predicted.
    """

    sae: str
    model: str
    l0: Estimate
    variance_explained: float
    loss_recovered: Estimate
    loss_plain: float
    loss_spliced: float
    loss_zero: float
    kl: Estimate
    dead: float
    statistics: FeatureStatistics
    loss_on: str
    n_predicted: int

    def summary(self) -> str:
        """The numbers in two lines."""
        return (
            f"{self.sae} on {self.model}, {self.statistics.rows} tokens: L0 {self.l0}, variance "
            f"explained {self.variance_explained:.3f}, never on {self.dead:.1%} of "
            f"{len(self.statistics.active)} features\n"
            f"loss recovered {self.loss_recovered} ({self.loss_plain:.3f} nats a token, "
            f"{self.loss_spliced:.3f} on the reconstruction, {self.loss_zero:.3f} on zeros), "
            f"KL {self.kl}"
        )

    def to_json(self) -> dict[str, Any]:
        """The numbers; not those of single features."""
        return {
            "sae": self.sae,
            "model": self.model,
            "rows": self.statistics.rows,
            "l0": self.l0.to_json(),
            "variance_explained": self.variance_explained,
            "dead": self.dead,
            "loss_recovered": self.loss_recovered.to_json(),
            "loss_plain": self.loss_plain,
            "loss_spliced": self.loss_spliced,
            "loss_zero": self.loss_zero,
            "kl": self.kl.to_json(),
            "loss_on": self.loss_on,
            "n_predicted": self.n_predicted,
        }

    def __repr__(self) -> str:
        return f"Quality({self.summary()})"

    def _repr_html_(self) -> str:
        from html import escape

        return escape(self.summary()).replace("\n", "<br>")


def evaluate_sae(
    sae: Autoencoder,
    model: "LanguageModel",
    prompts: Prompts,
    *,
    loss_on: str = "all",
    exclude_bos: bool = True,
    token_budget: int = 4096,
    seed: int = 0,
) -> Quality:
    """Measure an SAE on prompts: what it keeps of the stream, and of the model's next tokens.

    The model runs three times: as it is, with the reconstruction in the stream's place, and
    with zeros there; a special token that stands first is left as it is by both.

    Args:
        sae: the autoencoder.
        model: the model, plain or steered.
        prompts: texts of the kind that it was trained on, but not those.
        loss_on: predict `all` tokens from the second on, or those of the `answer`.
        exclude_bos: leave a special token that stands first out, of statistics too.
        token_budget: padded tokens a batch may hold.
        seed: of the intervals.

    Raises:
        PromptError: nothing to predict.
        MethodError: another `loss_on`.
        DirectionError: another model than the one the SAE was loaded for.
    """
    if loss_on not in LOSS_ON:
        raise MethodError(f"loss is on 'all' or 'answer' tokens; {suggest(loss_on, LOSS_ON)}")
    require_model(sae, model.info)
    read = prompts_of(model, prompts)
    groups = tuple(getattr(prompts, "groups", ())) or groups_of(read)
    pooling = Pooling.of("all", exclude_bos=exclude_bos)
    running = Running(sae.d_sae, sae.d_model)
    sums = np.zeros((len(read), len(Sums._fields)))
    for batch in model.batches(read, token_budget=token_budget):
        inside = pooling.select(batch, read, model.decode)
        sums[batch.rows.cpu().numpy()] = _measured(sae, model, batch, inside, loss_on, running)
    own = Sums(*sums.T)
    if not own.predicted.sum():
        raise PromptError(
            f"there is nothing to predict on {loss_on} tokens: give longer prompts"
            + (", with answers" if loss_on == "answer" else "")
        )

    def recovered(rows: Any) -> float:
        plain, spliced, zero = (v[rows].sum() for v in (own.plain, own.spliced, own.zero))
        return float((zero - spliced) / (zero - plain)) if zero != plain else float("nan")

    def ratio(values: Any, over: Any, unit: str) -> Estimate:
        return group_bootstrap(
            lambda rows: float(values[rows].sum() / max(over[rows].sum(), 1)),
            groups,
            seed=seed,
            unit=unit,
        )

    seen, n = running.result(), own.predicted.sum()
    return Quality(
        sae=sae.name,
        model=model.info.name,
        l0=ratio(own.on, own.rows, "features per token"),
        variance_explained=seen.variance_explained,
        loss_recovered=group_bootstrap(recovered, groups, seed=seed, unit="fraction"),
        loss_plain=float(own.plain.sum() / n),
        loss_spliced=float(own.spliced.sum() / n),
        loss_zero=float(own.zero.sum() / n),
        kl=ratio(own.kl, own.predicted, "nats per token"),
        dead=seen.dead,
        statistics=seen,
        loss_on=loss_on,
        n_predicted=int(n),
    )


class Sums(NamedTuple):
    """Sums over the tokens of a prompt."""

    rows: Any
    on: Any
    predicted: Any
    plain: Any
    spliced: Any
    zero: Any
    kl: Any


def _measured(
    sae: Autoencoder,
    model: "LanguageModel",
    batch: Batch,
    inside: Bool[Tensor, "batch pos"],
    loss_on: str,
    running: Running,
) -> NDArray[np.float64]:
    """`Sums` of every row of a batch, `[row sum]`; the statistics grow by its tokens."""
    plain = visited(model, batch, keep=[sae.site], logits="all")
    stream = plain.streams[sae.site]
    # Padding is left as it is: nothing is known of it, NaN included.
    x = stream[inside].float().cpu()
    features, rebuilt = sae.reconstruct(x)
    running.add(features, x, rebuilt)

    def written(values: Tensor) -> Callable[[Tensor], Tensor]:
        def write(stream: Tensor) -> Tensor:
            out = stream.clone()
            out[inside] = values.to(out)
            return out

        return write

    target = batch.tokens[:, 1:]
    counted = batch.mask[:, :-1] & (batch.mask if loss_on == "all" else batch.answer_mask)[:, 1:]
    here = plain.logits[:, :-1].log_softmax(-1)

    def total(values: Tensor) -> NDArray[np.float64]:
        kept = torch.where(counted, values.double(), 0.0)
        found: NDArray[np.float64] = kept.sum(1).cpu().numpy()
        return found

    def loss(log_probs: Tensor) -> NDArray[np.float64]:
        return total(-log_probs.gather(-1, target[..., None])[..., 0])

    other = {}
    for name, values in (("spliced", rebuilt), ("zero", torch.zeros_like(rebuilt))):
        seen = visited(model, batch, write={sae.site: written(values)}, logits="all")
        other[name] = seen.logits[:, :-1].log_softmax(-1)
    on = torch.zeros(inside.shape, dtype=torch.float64)
    on[inside.cpu()] = (features != 0).sum(1).double()
    return np.stack(
        Sums(
            rows=inside.sum(1).double().cpu().numpy(),
            on=on.sum(1).numpy(),
            predicted=counted.sum(1).double().cpu().numpy(),
            plain=loss(here),
            spliced=loss(other["spliced"]),
            zero=loss(other["zero"]),
            kl=total(divergence(here, other["spliced"])),
        ),
        1,
    )
