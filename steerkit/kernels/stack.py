"""A field of the groups of many rows, side by side as one tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steerkit.program import Group


class Stack:
    """Stacks what each row's group says, on the device and in the dtype of the computation.

    A single group has no row axis. Thousands of rows may share a few programs: each is
    looked at once, then gathered. Rows without a group, and short ones, are filled up.
    """

    def __init__(
        self, groups: Sequence[Group | None], device: torch.device, dtype: torch.dtype
    ) -> None:
        distinct = {id(group): group for group in groups}
        number = {key: i for i, key in enumerate(distinct)}
        self.device = device
        self.width = max(len(group) for group in groups if group is not None)
        self._dtype = dtype
        self._distinct = tuple(distinct.values())
        self._which = torch.tensor([number[id(group)] for group in groups], device=device)

    def __call__(self, field: Callable[[Group], Tensor], fill: float = 0.0) -> Tensor:
        """`field` of each group, `[term ...]`, as `[row term ...]`.

        Numbers, one a term, come as `[row 1 term]`, so that they meet coefficients
        `[row pos term]`.
        """
        found = [None if group is None else field(group) for group in self._distinct]
        shape = next(part for part in found if part is not None).shape[1:]
        out = torch.full((len(found), self.width, *shape), fill, dtype=torch.float64)
        for i, part in enumerate(found):
            if part is not None:
                out[i, : len(part)] = part
        out = out.to(self.device, self._dtype)
        if len(self._which) == 1:
            return out[0]
        out = out[self._which]
        return out if shape else out[:, None]
