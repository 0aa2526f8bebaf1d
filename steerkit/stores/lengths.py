"""Whether a prompt fits into a model, and the longest beginning of one that does."""

from collections.abc import Callable
from dataclasses import replace

from steerkit.errors import PromptError
from steerkit.prompts import Prompt
from steerkit.protocols import Model

Problem = Callable[[Prompt], str]
"""Says why a prompt cannot be run; empty where it can."""


def fits(model: Model, max_tokens: int | None = None) -> Problem:
    """Whether a prompt can be run by a model, in at most so many tokens (its context by default).

    Texts that cannot be too long are not tokenised: a token holds at least one byte.
    """
    most = min(max_tokens or model.info.n_ctx, model.info.n_ctx)
    around: dict[str, int] = {}

    def problem(prompt: Prompt) -> str:
        if not prompt.system and not prompt.shots:
            if prompt.template not in around:
                probe = model.tokenize([Prompt("a", template=prompt.template)])[0]
                around[prompt.template] = 2 * len(probe) + 2
            size = len(prompt.text.encode(errors="replace")) + len(prompt.answer.encode())
            if size + around[prompt.template] <= most:
                return ""
        try:
            length = len(model.tokenize([prompt])[0])
        except PromptError as error:
            return str(error).replace("prompt 0", "its text", 1)
        return f"it has {length} tokens, more than max_tokens={most}" if length > most else ""

    return problem


def shortened(prompt: Prompt, problem: Problem) -> Prompt | None:
    """The longest beginning of a prompt's text that can be run; None if not even one letter."""
    fine, much = 0, len(prompt.text)
    while much - fine > 1:
        middle = (fine + much) // 2
        if problem(replace(prompt, text=prompt.text[:middle])):
            much = middle
        else:
            fine = middle
    shorter = replace(prompt, text=prompt.text[:fine])
    return shorter if shorter.text.strip() else None
