"""What comparisons of two models share: prompts with their groups, one tokenizer, provenance."""

from collections.abc import Mapping, Sequence
from typing import Any

from steerkit import __version__
from steerkit.errors import ModelError, PromptError
from steerkit.prompts import Contrast, Prompt, groups_of
from steerkit.protocols import Model

Prompts = Contrast | Sequence[Prompt | str | Mapping[str, Any]]


def read_prompts(
    prompts: Prompts, *, answers: bool = False
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """The prompts, each once, and the group of each.

    A prompt that occurs twice would be its own nearest neighbour in every model. With `answers`,
    the same prompt with another answer is another one.

    Raises:
        PromptError: there are none.
    """
    if isinstance(prompts, Contrast):
        read, groups = prompts.prompts, prompts.groups
    else:
        read = tuple(Prompt.of(p) for p in prompts)
        groups = groups_of(read)
    if not read:
        raise PromptError("there are no prompts to compare the models on; give at least one")
    seen: set[tuple[Any, ...]] = set()
    kept = []
    for i, p in enumerate(read):
        key = (p.text, p.system, p.shots, p.template, p.answer if answers else "")
        if key not in seen:
            seen.add(key)
            kept.append(i)
    return tuple(read[i] for i in kept), tuple(groups[i] for i in kept)


def require_one_tokenizer(
    a: Model, b: Model, prompts: Sequence[Prompt], *, rendered: bool = False
) -> None:
    """Refuse two models that do not read the same ids as the same text.

    Sizes, the whole table of tokens where there is one, and the ids of some of the prompts, raw
    (chat templates may differ) are compared; with `rendered`, every prompt as each model would
    be asked it, chat template included.

    Raises:
        ModelError: they differ; says in what.
    """
    pair = f"{a.info.name} and {b.info.name}"
    advice = "token ids mean different things to them; compare models of one tokenizer"
    if a.info.d_vocab != b.info.d_vocab:
        raise ModelError(
            f"{pair} have vocabularies of {a.info.d_vocab} and {b.info.d_vocab} tokens: {advice}"
        )
    first, second = (_table(m) for m in (a, b))
    if first is not None and second is not None and first != second:
        odd = sorted(t for t in first.keys() | second.keys() if first.get(t) != second.get(t))
        raise ModelError(
            f"the tokenizers of {pair} give {len(odd)} tokens different ids, such as {odd[0]!r} "
            f"({first.get(odd[0])} and {second.get(odd[0])}): {advice}"
        )
    raw = [Prompt(p.text, template="raw") for p in prompts[:8]]
    for prompt, x, y in zip(raw, a.tokenize(raw), b.tokenize(raw), strict=True):
        if x != y:
            raise ModelError(
                f"the tokenizers of {pair} split {prompt.text[:40]!r} differently, into "
                f"{len(x)} and {len(y)} tokens: {advice}"
            )
    if rendered and a.tokenize(prompts) != b.tokenize(prompts):
        raise ModelError(
            f"{pair} render the same prompts differently, by other chat templates; give them the "
            "same tokenizer.chat_template, or prompts with template='raw'"
        )


def require_one_shape(a: Model, b: Model, why: str) -> None:
    """Refuse two models whose states at a site are not vectors of one space.

    Args:
        a: one model.
        b: the other.
        why: what is done with states, such as `a shift is a difference of states`.

    Raises:
        ModelError: another width or depth: layer 3 of 4 is not layer 3 of 12.
    """
    for what, mine, theirs in (
        ("width", a.info.d_model, b.info.d_model),
        ("layers", a.info.n_layers, b.info.n_layers),
    ):
        if mine != theirs:
            raise ModelError(
                f"{why}: {a.info.name} has {what} {mine}, {b.info.name} {theirs}; compare a model "
                "with one fine-tuned from it"
            )


def provenance(a: Model, b: Model, **settings: Any) -> dict[str, Any]:
    """Both models, what steers them, and how they were compared."""
    return {
        "a": a.info.to_json(),
        "b": b.info.to_json(),
        "steering": [list(getattr(m, "steering", ())) for m in (a, b)],
        "steerkit": __version__,
        **settings,
    }


def _table(model: Model) -> dict[str, int] | None:
    tokenizer: Any = getattr(model, "tokenizer", None)
    return dict(tokenizer.get_vocab()) if hasattr(tokenizer, "get_vocab") else None
