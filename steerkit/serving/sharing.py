"""When requests may share the cached prefix of their prompts."""

from collections.abc import Sequence

from steerkit.batch import Positions
from steerkit.program import Program, ProgramTable


def may_share(table: ProgramTable | None, slots: Sequence[int]) -> bool:
    """Whether a cached block means the same to every request that has the same tokens so far.

    Keys and values carry what was done to the stream. So all requests must run the same
    program, and that program must do the same to a token wherever the prompt of its request
    ends: rules that count from there (`prompt`, `last_prompt`, `generated`, negative indices),
    masks of single prompts, and latches do not. Unsteered requests always share.
    """
    if table is None:
        return True
    running = {slot if slot and any(table.slots[slot - 1].values()) else 0 for slot in slots}
    if len(running) > 1:
        return False
    slot = running.pop()
    return not slot or all(_of_prefix(program) for program in table.slots[slot - 1].values())


def _of_prefix(program: Program) -> bool:
    """Whether what the program does to a token depends on nothing but the tokens up to it."""
    return not program.latches and all(
        _fixed(rule) and not (gate is not None and gate.latch)
        for group in program.groups
        for rule, gate in zip(group.positions, group.every_gate, strict=True)
    )


def _fixed(rule: Positions) -> bool:
    return rule.rule == "all" or (rule.rule == "indices" and min(rule.indices) >= 0)
