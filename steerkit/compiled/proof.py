"""The self-test of a compiled step: a canary program moves its rows' logits, and no others.

A gate that is closed or a clamp that is satisfied rightly moves nothing, so what a user's
programs do is no proof that they ran. The canary is a large addition.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from steerkit.batch import Positions
from steerkit.errors import HookError
from steerkit.program import Group, Opcode, Program
from steerkit.site import Site

SIZE = 100.0
"""Standard deviation of the canary's entries: far beyond what rounding could swallow."""


def canary(d_model: int) -> Program:
    """An addition at every token that no network overlooks."""
    row = torch.randn(1, d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = Group(
        opcodes=(Opcode.CONSTANT,),
        read=torch.zeros_like(row),
        offset=torch.zeros(1, dtype=torch.float64),
        write=SIZE * row,
        params=torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64),
        positions=(Positions(),),
    )
    return Program((group,))


def prove(
    name: str,
    sites: Sequence[Site],
    d_model: int,
    rows: int,
    write: Callable[[Mapping[Site, Program]], object],
    run: Callable[[Sequence[bool]], Tensor],
) -> None:
    """Prove that every site of a steered step is live and that slot 0 is untouched.

    Args:
        name: of the step, for errors.
        sites: where programs run.
        d_model: width of the stream.
        rows: of a batch.
        write: puts programs into the slot that is kept for canaries.
        run: logits of a fixed batch `[row ...]` whose flagged rows are at that slot.

    Raises:
        HookError: a canary that moved nothing, or moved a row at slot 0.
    """
    nowhere = [False] * rows
    flags = [row % 2 == 1 for row in range(rows)] if rows > 1 else [True]
    program = canary(d_model)
    plain = run(nowhere)
    for site in sites:
        write({site: program})
        found = run(flags)
        for row, flagged in enumerate(flags):
            same = torch.equal(found[row], plain[row])
            if same == flagged:
                what = "did not move" if flagged else "moved a row at slot 0 of"
                raise HookError(
                    f"the {name} of this compiled model is not steered as it should be: a canary "
                    f"at {site} {what} the logits (row {row}); use the eager path"
                )
    write({})
    if not torch.equal(run(nowhere), plain):
        raise HookError(f"the {name} of this compiled model is not repeatable; use the eager path")
