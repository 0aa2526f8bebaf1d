"""Vectors of words in sentences, from a model's stream."""

from collections.abc import Sequence

import numpy as np

from steerkit.captures import capture
from steerkit.captures.pooling import Span
from steerkit.concepts.association import weat
from steerkit.concepts.association_result import Association
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.site import Site
from steerkit.statistics import Floats

BLEACHED = (
    "this is {w} .",
    "that is {w} .",
    "there is {w} .",
    "here is {w} .",
    "this will be {w} .",
)
"""Sentences that say nothing about the word."""


def embed_words(
    model: Model,
    words: Sequence[str],
    site: Site | str | int,
    *,
    templates: Sequence[str] = BLEACHED,
    read: str = "word",
    token_budget: int = 4096,
) -> dict[str, Floats]:
    """One vector for each word and template, `[template d_model]` by word.

    Args:
        model: plain or steered.
        words: any texts.
        site: where to read.
        templates: sentences with `{w}` in them.
        read: `word` (the mean over the word's own tokens, the last time it occurs), or `last`
            or `mean_prompt` for the sentence. A causal model's word sees only what precedes it:
            with `word`, templates that differ after it alone give the same vector.
        token_budget: padded tokens of a batch.

    Raises:
        MethodError: no words, a template without `{w}`, or an unknown way to read.
        PromptError: a word that the tokenizer turns into nothing that can be found again.
    """
    chosen = tuple(dict.fromkeys(words))
    if not chosen or not templates or any("{w}" not in t for t in templates):
        raise MethodError("embedding needs words, and templates that hold '{w}'")
    if read not in ("word", "last", "mean_prompt"):
        raise MethodError(f"read is 'word', 'last' or 'mean_prompt'; got '{read}'")
    pairs = [(w, t) for w in chosen for t in templates]
    prompts = [Prompt(t.replace("{w}", w), template="raw") for w, t in pairs]
    positions = Span(tuple(w for w, _ in pairs)) if read == "word" else read
    try:
        acts = capture(
            model, prompts, sites=site, positions=positions, token_budget=token_budget,
            progress=False,
        )  # fmt: skip
    except PromptError as error:
        raise PromptError(
            f"a word cannot be read in its sentence: {error}. Leave out words that the tokenizer "
            "does not know"
        ) from error
    values = acts.values[:, 0].double().numpy().reshape(len(chosen), len(templates), -1)
    return {w: np.ascontiguousarray(v) for w, v in zip(chosen, values, strict=True)}


def seat(
    model: Model,
    x: Sequence[str],
    y: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
    *,
    site: Site | str | int,
    templates: Sequence[str] = BLEACHED,
    read: str = "last",
    n_permutations: int = 9_999,
    n_resamples: int = 1_000,
    seed: int = 0,
) -> Association:
    """WEAT over sentences about words: SEAT. Sentences of one word stay together.

    The published test permutes sentences one by one, as if those of one word were independent;
    here words are permuted and resampled whole. With `read="word"` it is the contextual-word
    test, which needs no sentence vector.

    Source: May et al. 2019 (arXiv:1903.10561); Kurita et al. 2019 for words in templates.

    Raises:
        MethodError, PromptError: as `embed_words` and `weat`.
    """
    vectors = embed_words(model, [*x, *y, *a, *b], site, templates=templates, read=read)
    return weat(
        vectors, x, y, a, b,
        n_permutations=n_permutations, n_resamples=n_resamples, seed=seed, name="seat",
    )  # fmt: skip
