"""The preference loss of an added vector, and its gradient through the frozen model.

    z_i = s_i beta ([log p_v(chosen) - log p(chosen)] - [log p_v(rejected) - log p(rejected)])
    loss = mean_i -log sigmoid(z_i)

p_v is the model with s_i v added to the stream, p the model without; log-probabilities are sums
over an answer's tokens. s_i = 1 is the loss of direct preference optimisation with a vector in the
place of weights; s_i drawn from {-1, 1} asks that -v do the opposite, which is bi-directional
preference optimisation (Cao et al. 2024, arXiv:2406.00045).

No graph runs through the vector itself. The loss depends on it by h' = h + s v at the chosen
tokens alone, so its gradient is the sum over those tokens of s times the gradient by h'.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Batch, Positions, plan
from steerkit.errors import ActivationError, MethodError
from steerkit.gradients.preferences import Pairs
from steerkit.program import Group, Opcode, Program
from steerkit.protocols import Intervention, Model
from steerkit.scoring import answer_log_probs, answer_log_probs_by_slot
from steerkit.site import Site

VECTORS = 32
"""Vectors whose programs are held at a time while many are measured."""


@dataclass(frozen=True, eq=False)
class AddedVector:
    """h + vector at a site's chosen tokens: an intervention without a `Direction`, in float64."""

    vector: Float[Tensor, "d_model"]
    site: Site
    positions: Positions
    strength: float = 1.0
    fingerprint: str | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def lower(self, site: Site) -> Program:
        """A constant along the vector."""
        row = self.vector.detach().cpu().double()[None]
        params = torch.tensor([[self.strength, 0.0, 0.0]], dtype=torch.float64)
        zero = torch.zeros(1, dtype=torch.float64)
        return Program((Group((Opcode.CONSTANT,), row, zero, row, params, (self.positions,)),))


def plain_log_probs(
    model: Model, pairs: Pairs, *, token_budget: int
) -> Float[Tensor, "pair answer"]:
    """log p of the chosen and the rejected answer of each pair, in nats; float64."""
    found = answer_log_probs(model, pairs.items, token_budget=token_budget)
    return torch.stack([x.sum() for x in found]).reshape(len(pairs), 2)


def margins(
    model: Model,
    pairs: Pairs,
    vectors: Float[Tensor, "vector d_model"],
    site: Site,
    positions: Positions,
    *,
    token_budget: int,
) -> Float[Tensor, "vector pair"]:
    """log p(chosen) - log p(rejected) of each pair under each added vector, in nats."""
    found = []
    for first in range(0, len(vectors), VECTORS):
        rows: list[tuple[Intervention]] = [
            (AddedVector(v, site, positions),) for v in vectors[first : first + VECTORS]
        ]
        slots = range(1, len(rows) + 1)
        each = answer_log_probs_by_slot(
            model.with_rows(*rows), pairs.items, slots, token_budget=token_budget
        )
        found += [torch.stack([x.sum() for x in slot]).reshape(len(pairs), 2) for slot in each]
    both = torch.stack(found)
    return both[..., 0] - both[..., 1]


def loss_and_gradient(
    model: Model,
    pairs: Pairs,
    plain: Float[Tensor, "pair answer"],
    vector: Float[Tensor, "d_model"],
    signs: Float[Tensor, "pair"],
    site: Site,
    positions: Positions,
    *,
    beta: float = 1.0,
    token_budget: int = 4096,
) -> tuple[float, Float[Tensor, "d_model"]]:
    """The mean preference loss of pairs and its gradient by the vector, both float64.

    Args:
        model: plain or steered; it needs no parameter that takes gradients.
        pairs: what to prefer.
        plain: `plain_log_probs` of the same pairs.
        vector: v.
        signs: 1 or -1 for each pair: whether v or -v is added.
        site: where.
        positions: which tokens.
        beta: how steeply log-probability ratios count.
        token_budget: padded tokens of a batch.

    Raises:
        ActivationError: a loss or gradient that is not finite.
        MethodError: a network without gradient, or no token to add the vector at.
    """
    view = model.with_rows(
        (AddedVector(vector, site, positions),), (AddedVector(-vector, site, positions),)
    )
    total, slope = 0.0, torch.zeros(len(vector), dtype=torch.float64)
    for batch, owner in _batches(model, pairs, token_budget):
        signed = signs[owner]
        slots = [1 if sign > 0 else 2 for sign in signed.tolist() for _ in (0, 1)]
        run = view.run(batch, sites=[site], pool=_leaf, logits="answer", slots=slots, grad=True)
        stream = run.streams[site]
        chosen = positions.select(batch.absolute, batch.prompt_len, batch.rows)
        if not bool(chosen.any(1).all()):
            raise MethodError(
                f"the position rule '{positions}' chooses no token of some prompt, so that nothing "
                "would be added there; choose tokens that every prompt has"
            )
        with torch.enable_grad():
            found = _answer_sums(run.logits, batch).reshape(-1, 2)
            ratio = found - plain[owner].to(found)
            z = beta * signed.to(found) * (ratio[:, 0] - ratio[:, 1])
            loss = -torch.nn.functional.logsigmoid(z).sum()
        if not loss.requires_grad:
            raise MethodError(f"the answers of {model.info.name} do not depend on {site}")
        (by_stream,) = torch.autograd.grad(loss, [stream])
        each = torch.where(chosen[..., None], by_stream.double(), 0.0).sum(1).cpu()
        slope += (each * signed.repeat_interleave(2)[:, None]).sum(0)
        total += float(loss.detach())
    total, slope = total / len(pairs), slope / len(pairs)
    if not (torch.isfinite(slope).all() and total == total and abs(total) != float("inf")):
        raise ActivationError(
            f"the preference loss at {site} is {total:.4g} and its gradient is not finite; lower "
            "the norm limit, or load the model with dtype='float32'"
        )
    return total, slope


def _leaf(stream: Tensor, batch: Batch) -> Tensor:
    """The stream, from which gradients are taken even where no parameter takes any."""
    return stream if stream.requires_grad else stream.requires_grad_()


def _batches(model: Model, pairs: Pairs, token_budget: int) -> Iterator[tuple[Batch, Tensor]]:
    """Batches that hold both answers of a pair side by side, and the pairs in them."""
    lengths = [max(len(pairs.items[2 * i]), len(pairs.items[2 * i + 1])) for i in range(len(pairs))]
    for some in plan(lengths, max(1, token_budget // 2)):
        rows = [2 * i + side for i in some for side in (0, 1)]
        # Padding is masked, so the pad id never matters.
        items = [pairs.items[row] for row in rows]
        batch = Batch.collate(items, pad_id=0, rows=rows, device=model.info.device)
        yield batch, torch.tensor(some)


def _answer_sums(logits: Tensor | None, batch: Batch) -> Float[Tensor, "row"]:
    """log p of each row's answer, differentiable."""
    assert logits is not None
    width = batch.answer_width
    read = logits[:, -width - 1 : -1]
    read = read.to(torch.promote_types(read.dtype, torch.float32)).log_softmax(-1)
    taken = read.gather(-1, batch.tokens[:, batch.width - width :, None])[..., 0]
    mask = batch.answer_mask[:, batch.width - width :]
    return torch.where(mask, taken.double(), 0.0).sum(1)


def both_ways(n: int, generator: torch.Generator) -> Float[Tensor, "pair"]:
    """A sign for each pair, 1 or -1 with equal chance."""
    return torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1


def exact_loss(
    model: Model,
    pairs: Pairs,
    plain: Float[Tensor, "pair answer"],
    vector: Float[Tensor, "d_model"],
    site: Site,
    positions: Positions,
    *,
    signs: Sequence[int],
    beta: float,
    token_budget: int,
) -> float:
    """The mean loss over pairs and the given signs, without drawing any; no gradients."""
    rows = torch.stack([sign * vector for sign in signs])
    found = margins(model, pairs, rows, site, positions, token_budget=token_budget)
    z = beta * torch.tensor(signs)[:, None] * (found - (plain[:, 0] - plain[:, 1]))
    return float(-torch.nn.functional.logsigmoid(z).mean())
