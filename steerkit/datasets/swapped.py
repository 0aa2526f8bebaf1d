"""Matched contrasts for concepts: the same sentences about the concept and about another."""

import random
from collections.abc import Sequence

from steerkit.errors import PromptError
from steerkit.prompts import Contrast, Prompt


def swapped(
    name: str,
    words: Sequence[str],
    others: Sequence[str],
    templates: Sequence[str],
    *,
    n: int = 2,
    seed: int = 0,
) -> Contrast:
    """Pairs of sentences that differ in one word: of the concept, and another one.

    A prompt's group is its template, its category the word.

    Args:
        name: of the concept.
        words: that name it.
        others: that do not; words of the concept among them are passed over.
        templates: sentences with `{w}` in them; each is a group.
        n: pairs a template.
        seed: which words are drawn. Words are used equally often, as far as that goes.

    Raises:
        PromptError: no words, no others, or a template without `{w}`.
    """
    rest = [w for w in others if w not in words]
    if not words or not rest or not templates or any("{w}" not in t for t in templates):
        raise PromptError(
            f"the concept '{name}' needs words, other words, and templates that hold '{{w}}'; got "
            f"{len(words)}, {len(rest)} and {len(templates)}"
        )
    rng = random.Random(f"{seed}/{name}/swapped")
    used, unlike = _cycle(words, len(templates) * n, rng), _cycle(rest, len(templates) * n, rng)
    pairs = [
        tuple(
            Prompt(t.replace("{w}", w), group=t, category=w, template="raw")
            for w in (used.pop(), unlike.pop())
        )
        for t in templates
        for _ in range(n)
    ]
    return Contrast.of([p for p, _ in pairs], [q for _, q in pairs], paired=True, name=name)


def _cycle(words: Sequence[str], n: int, rng: random.Random) -> list[str]:
    """`n` words in random order, each as often as any other, to one."""
    out: list[str] = []
    while len(out) < n:
        out += rng.sample(list(words), len(words))
    return out[:n]
