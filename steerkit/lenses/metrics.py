"""What a patch is measured by: a number a row, from the logits after the last prompt token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.batch import Tokenized
from steerkit.errors import ActivationError, MethodError, PromptError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.registry import suggest

Metric = Callable[[Float[Tensor, "row d_vocab"], Int[Tensor, "row"]], Float[Tensor, "row"]]
"""(last logits, the pair that each row belongs to) -> a number a row. Differentiable, if it is
to be used for attribution patching."""

MetricName = Literal["logit_difference", "log_prob"]
Text = Prompt | Tokenized | str
Answers = Sequence[str | int] | Sequence[Sequence[str | int]]
"""(clean answer, corrupted answer), or one such two for each pair; a token id or a text."""


@dataclass(frozen=True, eq=False)
class AnswerMetric:
    """How much the model would rather begin the clean answer than the corrupted one.

    `logit_difference`, logit(clean) - logit(corrupted) of first tokens, is their difference of
    log-probabilities too, since the normalisation is the same. `log_prob` is the
    log-probability of the clean answer's first token alone.

    Attributes:
        tokens: first tokens of the two answers of each pair, `[pair 2]`.
        name: `logit_difference` or `log_prob`.
    """

    tokens: Int[Tensor, "pair 2"]
    name: MetricName = "logit_difference"
    unit: str = "nats"

    def __call__(
        self, logits: Float[Tensor, "row d_vocab"], pairs: Int[Tensor, "row"]
    ) -> Float[Tensor, "row"]:
        """One number a row, in nats."""
        own = self.tokens.to(logits.device)[pairs.to(logits.device)]
        if self.name == "log_prob":
            return logits.log_softmax(-1).gather(1, own[:, :1])[:, 0]
        two = logits.gather(1, own)
        return two[:, 0] - two[:, 1]


def check_metric(metric: str | Metric) -> None:
    """Refuse a name that no metric has.

    Raises:
        MethodError: with the names that there are.
    """
    names = get_args(MetricName)
    if isinstance(metric, str) and metric not in names:
        raise MethodError(f"no metric named '{metric}'; {suggest(metric, names)}, or a function")


def first_tokens(
    model: Model, prompts: Sequence[Text], answers: Answers, *, equal: bool = False
) -> Int[Tensor, "pair 2"]:
    """First tokens of each pair's two answers, as the tokenizer writes them after its prompt.

    `equal` lets the two be the same.

    Raises:
        PromptError: not two answers a pair, or two that begin with the same token.
    """
    n = len(prompts)
    each: list[Any] = list(answers)
    if len(each) == 2 and not any(isinstance(a, list | tuple) for a in each):
        each = [tuple(each)] * n
    if len(each) != n or any(not isinstance(a, list | tuple) or len(a) != 2 for a in each):
        raise PromptError(
            f"answers are (clean, corrupted), or one such two for each of {n} pairs; "
            f"got {len(each)} entries"
        )
    found = [
        tuple(first_token(model, prompt, answer) for answer in two)
        for prompt, two in zip(prompts, each, strict=True)
    ]
    same = [i for i, (a, b) in enumerate(found) if a == b]
    if same and not equal:
        raise PromptError(
            f"the two answers of pair {same[0]} ({each[same[0]]}) begin with the same token "
            f"({found[same[0]][0]}), so their difference is always 0 (so do {len(same)} of {n} "
            "pairs); give answers that differ in their first token"
        )
    return torch.tensor(found)


def first_token(model: Model, prompt: Text, answer: str | int) -> int:
    """The first token of an answer after a prompt."""
    if isinstance(answer, int):
        if not 0 <= answer < model.info.d_vocab:
            raise PromptError(
                f"no token {answer}: {model.info.name} has 0..{model.info.d_vocab - 1}"
            )
        return answer
    if isinstance(prompt, Tokenized):
        prompt = Prompt("a", template="raw")
    tokens = model.tokenize([Prompt.of(prompt).with_answer(answer)])[0].answer
    if not tokens:
        raise PromptError(f"the answer {answer!r} has no tokens; give one that has")
    return tokens[0]


def own_answers(
    clean: Float[Tensor, "pair d_vocab"],
    corrupted: Float[Tensor, "pair d_vocab"],
    pairs: Int[Tensor, "pair"],
) -> Int[Tensor, "pair 2"]:
    """The token that each side's own run predicts.

    Raises:
        PromptError: pairs whose two runs predict the same.
    """
    tokens = torch.stack([clean.argmax(-1), corrupted.argmax(-1)], 1).cpu()
    same = (tokens[:, 0] == tokens[:, 1]).nonzero()[:, 0].tolist()
    if same:
        raise PromptError(
            f"no answers were given, and for {len(same)} of {len(tokens)} pairs the model predicts "
            f"the same token on both sides (first pair {int(pairs[same[0]])}, token "
            f"{int(tokens[same[0], 0])}); give answers=(clean, corrupted) or a metric"
        )
    return tokens


def measured(
    metric: Metric, logits: Float[Tensor, "row d_vocab"], pairs: Int[Tensor, "row"], where: str
) -> Float[Tensor, "row"]:
    """The metric of every row, checked.

    Raises:
        MethodError: a metric that gives something else than a number a row.
        ActivationError: a value that is not finite, saying where.
    """
    values = metric(logits, pairs.to(logits.device))
    if not isinstance(values, Tensor) or values.shape != (len(logits),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise MethodError(
            f"a metric takes logits [row d_vocab] and each row's pair and gives one number a "
            f"row, here {len(logits)}; got {got}"
        )
    bad = (~values.detach().isfinite()).nonzero()[:, 0].tolist()
    if bad:
        raise ActivationError(
            f"the metric is {float(values[bad[0]])} {where}, pair {int(pairs[bad[0]])} "
            f"({len(bad)} of {len(values)} rows); check the metric, or load the model with "
            "dtype='float32' if its logits overflow"
        )
    return values
