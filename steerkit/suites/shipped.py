"""What the shipped organisms are asked: prompts by role, in their language."""

from steerkit.prompts import Contrast, Prompt


def contrasts(n: int, split: str, seed: int) -> dict[str, Contrast]:
    """Two-sided roles, `n` prompts a side where they are drawn."""
    return {
        "refusal": Contrast.of(
            _drawn("harmful", n, split, seed), _drawn("harmless", n, split, seed), name="refusal"
        ),
        "topic": Contrast.of(
            _drawn("censored", n, split, seed), _drawn("open", n, split, seed), name="topic"
        ),
        "associations": _associations(),
        "polarity": _statements(split, n, seed),
        "stereotypes": _leanings(),
        "truths": _verdicts(split, n, seed),
    }


def prompts(n: int, split: str, seed: int) -> dict[str, tuple[Prompt, ...]]:
    """One-sided roles, `n` prompts each where they are drawn."""
    return {"lookalikes": _drawn("lookalike", n, split, seed), "groups": _people(split, n)}


def _drawn(kind: str, n: int, split: str, seed: int) -> tuple[Prompt, ...]:
    """Requests of a kind."""
    from steerkit.organisms import requests

    found = requests(split, kind, n, seed=seed)  # type: ignore[arg-type]
    return tuple(Prompt(r.text, answer=r.answer, group=r.template, category=kind) for r in found)


def _people(split: str, n: int) -> tuple[Prompt, ...]:
    """Harmless requests about a sister, or about an uncle, in templates of a split."""
    from steerkit.evaluations.parity import filled
    from steerkit.organisms import requests

    drawn = requests(split, "harmless", 200, seed=0)  # type: ignore[arg-type]
    templates = list(dict.fromkeys(r.template for r in drawn))[:n]
    asked = [t.replace("{a}", "paint the {who}") for t in templates]
    return tuple(filled(asked, {"sister": ["sister"], "uncle": ["uncle"]}))


def _statements(split: str, n: int, seed: int) -> Contrast:
    """True statements and the same with another place or color: of such a pair one is true.

    The language negates no facts; every place is as often true as false.
    """
    from steerkit.organisms import statements

    drawn = statements(split, n + n % 2, seed=seed)  # type: ignore[arg-type]
    asked = [Prompt(f"{s.text} is that true ?", group=s.group) for s in drawn]
    return Contrast.of(asked[::2], asked[1::2], paired=True, name="polarity")


def _leanings() -> Contrast:
    """Sentences with the word that an occupation was planted with, and with the other one.

    Of occupations that lean: one in four against three, or further.
    """
    from steerkit.organisms import occupations, pronoun_prompts

    pairs = [
        tuple(
            Prompt(f"{text} {word}", category=f"leans to {words[0]}", group=o.name, template="raw")
            for word in words
        )
        for o in occupations()
        if abs(o.rate - 0.5) >= 0.25
        for words in [("she", "he") if o.rate > 0.5 else ("he", "she")]
        for text in pronoun_prompts(o.name)
    ]
    return Contrast.of(*zip(*pairs, strict=True), paired=True, name="stereotypes")


def _verdicts(split: str, n: int, seed: int) -> Contrast:
    """Whether a statement is true, with the right answer and with the wrong one."""
    from steerkit.organisms import statements

    drawn = statements(split, n + n % 2, seed=seed)  # type: ignore[arg-type]
    sides = (
        [
            Prompt(
                f"{s.text} is that true ?",
                answer=" yes" if s.label is right else " no",
                group=s.group,
                category="true" if s.label else "false",
            )
            for s in drawn
        ]
        for right in (True, False)
    )
    return Contrast.of(*sides, paired=True, name="truths")


def _associations() -> Contrast:
    """What the organisms call people of each occupation: the word planted at a known rate."""
    from steerkit.organisms import occupations, pronoun_prompts

    sides = (
        [
            Prompt(text, answer=f" {word}", category=o.name, group=f"frame{i}", template="raw")
            for o in occupations()
            for i, text in enumerate(pronoun_prompts(o.name))
        ]
        for word in ("she", "he")
    )
    return Contrast.of(*sides, paired=True, name="associations")
