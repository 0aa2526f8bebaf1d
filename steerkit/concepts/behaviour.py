"""What a model does, in log-probabilities: the yardstick of scores that read its states."""

from collections.abc import Mapping, Sequence

import torch

from steerkit.errors import MethodError
from steerkit.lenses.metrics import first_token
from steerkit.prompts import Prompt
from steerkit.protocols import Model


def answer_gaps(
    model: Model,
    prompts: Mapping[str, Sequence[Prompt | str]],
    answers: tuple[str | int, str | int],
    *,
    token_budget: int = 4096,
) -> dict[str, float]:
    """Mean log-probability of the first answer minus that of the second, in nats, by concept.

    Args:
        model: plain or steered.
        prompts: for each concept, beginnings that either answer could follow.
        answers: of which the first tokens are compared.
        token_budget: padded tokens of a batch.

    Raises:
        MethodError: a concept without prompts.
    """
    empty = [name for name, asked in prompts.items() if not asked]
    if empty:
        raise MethodError(f"no prompts for {', '.join(empty[:5])}; give at least one")
    flat = [Prompt.of(p).with_answer("") for asked in prompts.values() for p in asked]
    tokens = torch.tensor([[first_token(model, p, a) for a in answers] for p in flat])
    gaps = torch.empty(len(flat), dtype=torch.float64)
    for batch in model.batches(flat, token_budget=token_budget):
        logits = model.run(batch, logits="last").logits
        assert logits is not None
        rows = batch.rows.cpu()
        # The normalisation is the same for both and drops out.
        two = logits[:, -1].double().cpu().gather(1, tokens[rows])
        gaps[rows] = two[:, 0] - two[:, 1]
    sizes = [len(asked) for asked in prompts.values()]
    return {name: float(part.mean()) for name, part in zip(prompts, gaps.split(sizes), strict=True)}
