"""Which rows are pairs."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def label_pairs(groups: Sequence[str], labels: Tensor) -> Int[Tensor, "pair 2"]:
    """The two rows of each pair; rows of groups with one label are in none.

    There are none at all unless every group with both labels is a pair.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    y = labels.tolist()
    mixed = [m for m in members.values() if len({y[i] for i in m}) == 2]
    if any(len(m) > 2 for m in mixed):
        mixed = []
    return torch.tensor(mixed, dtype=torch.long).reshape(-1, 2)
