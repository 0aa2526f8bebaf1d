"""Run every arm and keep what came out: the only part of an audit that sees models."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from steerkit.audits.arms import Arm
from steerkit.audits.evidence import Item, Side
from steerkit.batch import Batch, Tokenized
from steerkit.direction import Direction
from steerkit.errors import PromptError
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion, Model
from steerkit.scoring import answer_log_probs, kl_per_token

Measured = dict[str, tuple[float, ...]]


def answers(
    arm: Arm, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int, token_budget: int
) -> list[Completion]:
    """The arm's greedy answers, in the order of the prompts."""
    return arm.model.generate(
        [arm.prompt(p) for p in prompts],
        max_new_tokens=max_new_tokens,
        seed=seed,
        token_budget=token_budget,
    )


def items(
    arm: Arm,
    contrast: Contrast,
    references: Sequence[str],
    completions: Sequence[Completion],
    measured: Mapping[int, Measured],
) -> list[Item]:
    """One item a prompt, positives first."""
    found = []
    for i, (prompt, group, label) in enumerate(
        zip(contrast.prompts, contrast.groups, contrast.labels, strict=True)
    ):
        asked = arm.prompt(prompt)
        side: Side = "positive" if label else "negative"
        found.append(
            Item(
                arm=arm.info.name,
                index=i,
                side=side,
                group=group,
                prompt=asked.text,
                system=asked.system,
                shots=asked.shots,
                reference=references[i],
                prompt_tokens=tuple(completions[i].prompt_tokens),
                output=completions[i].text,
                tokens=tuple(completions[i].tokens),
                measured=measured.get(i, {}),
            )
        )
    return found


def text_items(arm: Arm, texts: Sequence[str], first: int, token_budget: int) -> list[Item]:
    """Given texts, scored by the arm's model from their second token on."""
    if not texts:
        return []
    raw = [Prompt(t, template="raw") for t in texts]
    ids = [t.prompt for t in arm.model.tokenize(raw)]
    split = [Tokenized(t[:1], t[1:]) for t in ids]
    scored = answer_log_probs(arm.model, split, token_budget=token_budget)
    return [
        Item(
            arm=arm.info.name,
            index=first + i,
            side="text",
            group=f"text{i}",
            prompt=text,
            prompt_tokens=ids[i],
            measured={"nll": _floats(-scored[i])},
        )
        for i, text in enumerate(texts)
    ]


def divergence(
    plain: Arm,
    arm: Arm,
    plain_answers: Sequence[Completion],
    arm_answers: Sequence[Completion],
    rows: Sequence[int],
    token_budget: int,
) -> dict[int, Measured]:
    """`kl` and `nll` per token of the plain model's own answers, for the given rows.

    The arm reads its own prompt (a system prompt, worked examples) and is then forced
    through the plain model's very tokens.
    """
    rows = [i for i in rows if plain_answers[i].tokens]
    if not rows:
        return {}
    own = [Tokenized(plain_answers[i].prompt_tokens, plain_answers[i].tokens) for i in rows]
    given = [Tokenized(arm_answers[i].prompt_tokens, plain_answers[i].tokens) for i in rows]
    _fits(arm.model, given)
    kl = kl_per_token(plain.model, arm.model, own, given=given, token_budget=token_budget)
    nll = answer_log_probs(arm.model, given, token_budget=token_budget)
    return {row: {"kl": _floats(kl[j]), "nll": _floats(-nll[j])} for j, row in enumerate(rows)}


def against_itself(
    plain: Arm, answers: Sequence[Completion], rows: Sequence[int], token_budget: int
) -> dict[int, Measured]:
    """`kl` and `nll` of the plain arm, in the batches in which the others are measured.

    The same batches, so that a model compared with itself differs by exactly nothing.
    """
    rows = [i for i in rows if answers[i].tokens]
    if not rows:
        return {}
    own = [Tokenized(answers[i].prompt_tokens, answers[i].tokens) for i in rows]
    nll = answer_log_probs(plain.model, own, token_budget=token_budget)
    return {
        row: {"kl": (0.0,) * len(nll[j]), "nll": _floats(-nll[j])} for j, row in enumerate(rows)
    }


def own_surprise(
    plain: Arm,
    plain_answers: Sequence[Completion],
    arm_answers: Sequence[Completion],
    token_budget: int,
) -> dict[int, Measured]:
    """`own_nll`: the plain model's surprise at each token of the arm's own answers."""
    rows = [i for i, c in enumerate(arm_answers) if c.tokens]
    if not rows:
        return {}
    given = [Tokenized(plain_answers[i].prompt_tokens, arm_answers[i].tokens) for i in rows]
    scored = answer_log_probs(plain.model, given, token_budget=token_budget)
    return {row: {"own_nll": _floats(-scored[j])} for j, row in enumerate(rows)}


def projections(
    arm: Arm, prompts: Sequence[Prompt], direction: Direction, token_budget: int
) -> dict[int, Measured]:
    """`projection` of each prompt in class gaps, read after the arm's interventions."""
    gap = direction.positive_mean - direction.negative_mean
    mean = direction.pooling.startswith("mean")

    def pool(stream: Float[Tensor, "batch pos d_model"], batch: Batch) -> Tensor:
        along = stream.float() @ direction.unit.to(stream.device)
        if mean:
            return (along * batch.mask).sum(1) / batch.mask.sum(1)
        return along[:, -1]

    asked = [arm.prompt(p) for p in prompts]
    found: dict[int, Measured] = {}
    for batch in arm.model.batches(asked, token_budget=token_budget):
        run = arm.model.run(batch, sites=[direction.site], pool=pool, logits="none")
        values = (run.streams[direction.site].double().cpu() - direction.negative_mean) / gap
        for row, value in zip(batch.rows.tolist(), values.tolist(), strict=True):
            found[row] = {"projection": (value,)}
    return found


def merged(*parts: Mapping[int, Measured]) -> dict[int, Measured]:
    """Measurements of each row put together."""
    out: dict[int, Measured] = {}
    for part in parts:
        for row, measured in part.items():
            out[row] = {**out.get(row, {}), **measured}
    return out


def comparable(plain: Model, other: Model) -> str:
    """Why KL between the two cannot be taken, or an empty string."""
    if plain.info.d_vocab != other.info.d_vocab:
        return (
            f"{other.info.name} has {other.info.d_vocab} tokens and {plain.info.name} "
            f"{plain.info.d_vocab}: their distributions do not compare"
        )
    return ""


def _fits(model: Model, given: Sequence[Tokenized]) -> None:
    longest = max(len(t) for t in given)
    if longest > model.info.n_ctx:
        raise PromptError(
            f"the plain answers after this arm's longest prompt take {longest} tokens; "
            f"{model.info.name} reads {model.info.n_ctx}: shorten what stands before the prompts, "
            "or lower max_new_tokens"
        )


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
