"""Answers of several views of one network in one batch: rows carry programs."""

from collections.abc import Sequence
from dataclasses import replace

from steerkit.models.view import LanguageModel
from steerkit.program import ProgramTable
from steerkit.prompts import Prompt
from steerkit.protocols import Completion, Model


def generate_together(
    asked: Sequence[tuple[Model, Prompt]], *, max_new_tokens: int = 32, token_budget: int = 4096
) -> list[Completion]:
    """Greedy answers, each of its own view to its own prompt, in their order.

    Views of one network share batches: a plain row runs slot 0, which is the untouched network
    bit for bit at the same batch shape, so that the answers are those of each view alone
    wherever rounding decides no token. Other models answer on their own.

    Args:
        asked: views, each with a prompt; a view with several programs runs its first.
        max_new_tokens: of each answer, at most.
        token_budget: padded tokens of a batch.

    Raises:
        PromptError: a prompt that leaves no room in the context for the answer.
    """
    apart: dict[int, list[int]] = {}
    for i, (view, _) in enumerate(asked):
        apart.setdefault(id(getattr(view, "engine", view)), []).append(i)
    found: dict[int, Completion] = {}
    for network in apart.values():
        views = {id(asked[i][0]): asked[i][0] for i in network}
        for view, slots in _joined(list(views.values())):
            rows = [i for i in network if id(asked[i][0]) in slots]
            said = view.generate(
                [asked[i][1] for i in rows],
                max_new_tokens=max_new_tokens,
                slots=[slots[id(asked[i][0])] for i in rows],
                token_budget=token_budget,
            )
            found.update(zip(rows, said, strict=True))
    return [found[i] for i in range(len(asked))]


def _joined(views: Sequence[Model]) -> list[tuple[Model, dict[int, int]]]:
    """A view that runs all of these, and each one's slot there; several where none can."""
    steered = [view for view in views if view.table is not None]
    plain = {id(view): 0 for view in views if view.table is None}
    if not steered:
        return [(views[0], plain)]
    if len(steered) == 1:
        return [(steered[0], {**plain, id(steered[0]): 1})]
    if any(type(view) is not LanguageModel for view in steered):
        # A compiled view holds slots of its own capacity, which is not ours to fill.
        first = (steered[0], {**plain, id(steered[0]): 1})
        return [first, *((view, {id(view): 1}) for view in steered[1:])]
    programs = [view.table.slots[0] for view in steered if view.table is not None]
    words = tuple(view.steering[0] for view in steered if isinstance(view, LanguageModel))
    whole = replace(steered[0], table=ProgramTable(tuple(programs)), steering=words)  # type: ignore[type-var]
    return [(whole, {**plain, **{id(view): i for i, view in enumerate(steered, 1)}})]
