"""Adam on one vector, under a norm limit, stopped early on pairs that it is not fitted to."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions
from steerkit.errors import DirectionError
from steerkit.gradients.objective import both_ways, exact_loss, loss_and_gradient, plain_log_probs
from steerkit.gradients.preferences import Pairs
from steerkit.protocols import Model
from steerkit.site import Site

BETAS = (0.9, 0.999)
EPSILON = 1e-12


@dataclass(frozen=True)
class Recipe:
    """How a vector is trained.

    Attributes:
        beta: how steeply log-probability ratios count in the loss.
        bidirectional: whether -v has to do the opposite.
        largest: norm limit of v, in activation units.
        step: norm of a full step of Adam, as a fraction of the norm limit.
        epochs: at most.
        batch_size: pairs a step.
        patience: epochs without a better validation loss before training stops.
        token_budget: padded tokens of a forward pass.
        seed: of the order of pairs and of the signs.
    """

    beta: float
    bidirectional: bool
    largest: float
    step: float
    epochs: int
    batch_size: int
    patience: int
    token_budget: int
    seed: int


@dataclass(frozen=True)
class Epoch:
    """Where training stood: mean losses in nats (log 2 is that of no vector), and the norm."""

    epoch: int
    training: float
    validation: float
    norm: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def fit_vector(
    model: Model, training: Pairs, validation: Pairs, site: Site, positions: Positions, how: Recipe
) -> tuple[Float[Tensor, "d_model"], tuple[Epoch, ...], int]:
    """The vector of the epoch with the smallest validation loss, all epochs, and its number.

    Raises:
        DirectionError: no epoch is better on the validation pairs than no vector.
    """
    budget = how.token_budget
    plain = [plain_log_probs(model, part, token_budget=budget) for part in (training, validation)]
    signs: Sequence[int] = (1, -1) if how.bidirectional else (1,)
    generator = torch.Generator().manual_seed(how.seed)
    vector = torch.zeros(model.info.d_model, dtype=torch.float64)
    adam = _Adam(vector, how.step * how.largest / len(vector) ** 0.5)
    nothing = float(torch.log(torch.tensor(2.0, dtype=torch.float64)))
    curve = [Epoch(0, nothing, nothing, 0.0)]
    best, kept = 0, vector
    for number in range(1, how.epochs + 1):
        order = torch.randperm(len(training), generator=generator).tolist()
        losses = []
        for first in range(0, len(order), how.batch_size):
            some = order[first : first + how.batch_size]
            turned = both_ways(len(some), generator) if how.bidirectional else torch.ones(
                len(some), dtype=torch.float64
            )  # fmt: skip
            loss, slope = loss_and_gradient(
                model, training.take(some), plain[0][some], vector, turned, site, positions,
                beta=how.beta, token_budget=budget,
            )  # fmt: skip
            losses += [loss] * len(some)
            vector = _inside(adam.stepped(vector, slope), how.largest)
        held = exact_loss(
            model, validation, plain[1], vector, site, positions,
            signs=signs, beta=how.beta, token_budget=budget,
        )  # fmt: skip
        curve.append(Epoch(number, sum(losses) / len(losses), held, float(vector.norm())))
        if held < curve[best].validation:
            best, kept = number, vector
        if number - best >= how.patience:
            break
    if best == 0:
        raise DirectionError(
            f"no vector at {site} lowered the loss on {len(validation)} validation pairs below "
            f"that of no vector (best {min(e.validation for e in curve[1:]):.4g} against "
            f"{nothing:.4g}): give more pairs, another site or positions, a larger norm limit or "
            "a smaller step"
        )
    return kept, tuple(curve), best


def _inside(vector: Tensor, largest: float) -> Tensor:
    """The vector, shortened to the norm limit where it is longer."""
    return vector * min(1.0, largest / max(float(vector.norm()), 1e-300))


class _Adam:
    """Adam's moments for one vector (Kingma and Ba 2015, arXiv:1412.6980), the second one shared.

    With a second moment a coordinate the first steps are the signs of the gradient, which turns
    a vector towards a corner of axes that mean nothing in a stream. With the mean over
    coordinates a step points where its gradients did, in whatever basis.
    """

    def __init__(self, like: Tensor, rate: float) -> None:
        self.rate, self.count = rate, 0
        self.first, self.second = torch.zeros_like(like), 0.0

    def stepped(self, vector: Tensor, slope: Tensor) -> Tensor:
        """The vector after one step against the slope."""
        a, b = BETAS
        self.count += 1
        self.first = a * self.first + (1 - a) * slope
        self.second = b * self.second + (1 - b) * float(slope.square().mean())
        mean = self.first / (1 - a**self.count)
        spread = (self.second / (1 - b**self.count)) ** 0.5
        return vector - self.rate * mean / (spread + EPSILON)
