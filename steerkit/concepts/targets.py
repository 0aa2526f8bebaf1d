"""What a derivative is taken of: a number a prompt, from the logits after its last token."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from steerkit.errors import MethodError
from steerkit.lenses.metrics import Metric, first_token
from steerkit.prompts import Prompt, groups_of
from steerkit.protocols import Model

Quantity = Literal["log_prob", "logit"]
Target = str | int | tuple[str | int, str | int] | Metric
"""An answer, of whose first token a `Quantity` is taken; two answers, for the difference of their
logits; or a function `(logits [row d_vocab], prompt of each row) -> [row]`."""


def target_metric(
    model: Model, prompts: Sequence[Prompt], target: Target, quantity: Quantity
) -> tuple[Metric, str]:
    """What is differentiated, and its name.

    Raises:
        MethodError: an unknown quantity, more than two answers, or two that begin alike.
        PromptError: an answer without tokens.
    """
    if quantity not in get_args(Quantity):
        raise MethodError(f"the quantity is 'log_prob' or 'logit'; got '{quantity}'")
    if callable(target):
        return target, str(getattr(target, "__name__", "metric"))
    answers = target if isinstance(target, tuple) else (target,)
    if len(answers) > 2:
        raise MethodError(f"a target is one answer or two; got {len(answers)}")
    tokens = torch.tensor([[first_token(model, p, a) for a in answers] for p in prompts])
    if len(answers) == 2 and bool((tokens[:, 0] == tokens[:, 1]).any()):
        raise MethodError(
            f"the two answers {answers} begin with the same token after some prompt, so the "
            "difference of their logits is always 0; give answers that differ in it"
        )

    def metric(logits: Tensor, rows: Tensor) -> Tensor:
        own = tokens.to(logits.device)[rows.to(logits.device)]
        if len(answers) == 1 and quantity == "log_prob":
            logits = logits.log_softmax(-1)
        picked = logits.gather(1, own)
        return picked[:, 0] - picked[:, 1] if len(answers) == 2 else picked[:, 0]

    if len(answers) == 2:
        return metric, f"logit({answers[0]}) - logit({answers[1]})"
    return metric, f"{quantity}({answers[0]})"


def prompt_groups(prompts: Sequence[Prompt], groups: Sequence[str] | None) -> tuple[str, ...]:
    """What prompts belong together: as given, else their own `group`, else each alone.

    Raises:
        MethodError: not one group a prompt.
    """
    if groups is None:
        return groups_of(prompts)
    if len(groups) != len(prompts):
        raise MethodError(f"{len(prompts)} prompts need {len(prompts)} groups; got {len(groups)}")
    return tuple(groups)
