"""Where the columns of one pass stand, and which of them position rules select.

Every site of a pass asks the same questions, so the answers are worked out once.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerkit.batch import Positions
from steerkit.kernels.tables import Rules, Terms


class Selection(NamedTuple):
    """The tokens at which groups of terms act."""

    active: tuple[Bool[Tensor, "row pos term_or_1"], ...]
    """Of each group."""
    touched: Bool[Tensor, "row pos"]
    """Where any term of any group acts."""
    first: int
    end: int
    """First column that is touched, and the one after the last."""
    full: bool
    """Whether every token between them is."""


class Place:
    """Where the columns of one pass stand.

    Args:
        absolute: position of each token in its own row, negative on padding; worked out
            when first asked for.
        prompt_len: tokens of each row's prompt.
        row: which of the caller's prompts each row is.
        whole: known to hold no padding.
    """

    def __init__(
        self,
        absolute: Callable[[], Int[Tensor, "row pos"]],
        prompt_len: Int[Tensor, "row"],
        row: Int[Tensor, "row"],
        *,
        whole: bool = False,
    ) -> None:
        self._absolute = absolute
        self.prompt_len = prompt_len
        self.row = row
        self.whole = whole
        self._active: dict[Positions, Bool[Tensor, "row pos 1"]] = {}
        self._selected: dict[Positions, Selection] = {}
        self._some: dict[int, tuple[Tensor, Place]] = {}

    @cached_property
    def absolute(self) -> Int[Tensor, "row pos"]:
        """Position of each token in its own row; negative on padding."""
        return self._absolute()

    def to(self, device: torch.device) -> "Place":
        """The same place for streams on another device."""
        return Place(
            lambda: self.absolute.to(device),
            self.prompt_len.to(device),
            self.row.to(device),
            whole=self.whole,
        )

    def some(self, rows: Int[Tensor, "some"]) -> "Place":
        """The place of some of the rows."""
        if id(rows) not in self._some:
            part = type(self)(
                lambda: self.absolute[rows],
                self.prompt_len[rows],
                self.row[rows],
                whole=self.whole,
            )
            self._some[id(rows)] = (rows, part)
        return self._some[id(rows)][1]

    def active(self, rules: Rules) -> Bool[Tensor, "row pos term_or_1"]:
        """Where the terms of a group act; one column for all terms where they share a rule."""
        if rules.which is not None:
            return rules.active(self.absolute, self.prompt_len, self.row)
        (rule,) = rules.distinct
        if rule not in self._active:
            self._active[rule] = rules.active(self.absolute, self.prompt_len, self.row)
        return self._active[rule]

    def selection(
        self, groups: Sequence[Terms], shared: Positions | None, *, look: bool
    ) -> Selection:
        """Where these groups act, as far as it is a matter of positions.

        Args:
            groups: in order.
            shared: the rule of all their terms, where it is the same.
            look: whether to look which columns are touched. That is free on a CPU; an
                accelerator would have to be waited for.
        """
        if shared is not None and shared in self._selected:
            return self._selected[shared]
        found = selection([self.active(terms.rules) for terms in groups], look=look)
        if shared is not None:
            self._selected[shared] = found
        return found


def selection(active: Sequence[Bool[Tensor, "row pos term_or_1"]], *, look: bool) -> Selection:
    """What the groups of these masks touch."""
    masks = [a[..., 0] if a.shape[-1] == 1 else a.any(-1) for a in active]
    touched = masks[0] if len(masks) == 1 else torch.stack(masks).any(0)
    return Selection(tuple(active), touched, *(_span(touched) if look else _all_columns(touched)))


def _all_columns(touched: Bool[Tensor, "row pos"]) -> tuple[int, int, bool]:
    return 0, touched.shape[1], False


def _span(touched: Bool[Tensor, "row pos"]) -> tuple[int, int, bool]:
    """First and end column that are touched, and whether every token between them is.

    A rule such as last_prompt then costs one column.
    """
    if touched.all():
        return 0, touched.shape[1], True
    if touched.shape[1] == 1:
        return 0, int(touched.any()), False
    columns = touched.any(0).nonzero()
    if not len(columns):
        return 0, 0, False
    first, end = int(columns[0]), int(columns[-1]) + 1
    return first, end, bool(touched[:, first:end].all())
