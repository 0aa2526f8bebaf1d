"""Second moments of the differences within pairs, whose two rows may come far apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

WAITING, ONE_SIDED, PAIRED = range(3)
"""A group of one row; of several rows of one label; of one row of either label."""


@dataclass(eq=False)
class PairMoments:
    """Sum of d d' over pairs, d = positive - negative row, about zero, float64.

    A pair is a group of one positive and one negative row. A group with both labels and more
    rows makes `mixed` true: then there are no pairs at all, as in `pairs.label_pairs`.

    Attributes:
        n: pairs.
        second: the sums, `[site d_model d_model]`.
        mixed: whether some group has both labels and more than two rows.
        state: of every group seen.
        waiting: the label and row of groups that have one row, `(label, [site d_model])`, in
            the dtype it came in.
    """

    n: int
    second: Float[Tensor, "site d_model d_model"]
    mixed: bool = False
    state: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, tuple[int, Tensor]] = field(default_factory=dict)

    @classmethod
    def empty(cls, sites: int, d_model: int) -> "PairMoments":
        """No pairs yet."""
        return cls(0, torch.zeros(sites, d_model, d_model, dtype=torch.float64))

    def update(
        self,
        values: Float[Tensor, "row site d_model"],
        labels: Sequence[int],
        groups: Sequence[str],
    ) -> None:
        """Add rows; those whose mates are not there yet are kept until they come."""
        differences = []
        for row, (label, group) in enumerate(zip(labels, groups, strict=True)):
            if self.mixed:
                break
            before = self.state.get(group)
            if before is None:
                self.state[group] = WAITING
                self.waiting[group] = (label, values[row].clone())
            elif before == PAIRED:
                self._mix()
            elif before == ONE_SIDED:
                self._one_sided(group, label)
            elif self.waiting[group][0] == label:
                self.state[group] = ONE_SIDED
                # Its label is all that is still needed.
                self.waiting[group] = (label, values[row, :0].clone())
            else:
                mate = self.waiting.pop(group)[1]
                self.state[group] = PAIRED
                # The sign is squared away.
                differences.append(values[row].double() - mate.double())
        if differences and not self.mixed:
            self._add(torch.stack(differences))

    def merge(self, other: "PairMoments") -> "PairMoments":
        """Both together; groups that wait in both become pairs."""
        found = replace(
            self,
            n=self.n + other.n,
            second=self.second + other.second,
            mixed=self.mixed or other.mixed,
            state=dict(self.state),
            waiting=dict(self.waiting),
        )
        if found.mixed:
            found._mix()
            return found
        for group, state in other.state.items():
            mine = self.state.get(group)
            if mine is None:
                found.state[group] = state
                if group in other.waiting:
                    found.waiting[group] = other.waiting[group]
            elif PAIRED in (mine, state):
                found._mix()
                return found
            elif state == WAITING:
                label, row = other.waiting[group]
                found.update(row[None], [label], [group])
            else:
                label, _ = other.waiting[group]
                found._one_sided(group, label)
                found.state[group] = ONE_SIDED
                found.waiting[group] = other.waiting[group]
            if found.mixed:
                return found
        return found

    @property
    def n_bytes(self) -> int:
        """Memory of the sums and of the rows that wait."""
        return self.second.nbytes + sum(row.nbytes for _, row in self.waiting.values())

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and what a JSON text holds."""
        single = [g for g, s in self.state.items() if s == WAITING and not self.mixed]
        rows = [self.waiting[g][1] for g in single]
        none = torch.zeros(0, *self.second.shape[:2], dtype=torch.float64)
        about = {
            "n": self.n,
            "mixed": self.mixed,
            "state": self.state,
            "labels": {g: label for g, (label, _) in self.waiting.items()},
            "waiting": single,
        }
        return {"pairs": self.second, "waiting": torch.stack(rows) if rows else none}, about

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> "PairMoments":
        """The inverse of `to_file`."""
        second = tensors["pairs"]
        rows = dict(zip(about["waiting"], tensors["waiting"], strict=True))
        none = second[:0, 0]
        waiting = {g: (label, rows.get(g, none)) for g, label in about["labels"].items()}
        return cls(about["n"], second.clone(), about["mixed"], dict(about["state"]), waiting)

    def __repr__(self) -> str:
        if self.mixed:
            return "no pairs (a group holds several rows of both labels)"
        single = sum(s == WAITING for s in self.state.values())
        return f"{self.n} pairs" + (f", {single} rows without mates" if single else "")

    def _add(self, differences: Float[Tensor, "pair site d_model"]) -> None:
        self.n += len(differences)
        for site in range(len(self.second)):
            d = differences[:, site]
            self.second[site].addmm_(d.T, d)

    def _one_sided(self, group: str, label: int) -> None:
        if self.waiting[group][0] != label:
            self._mix()

    def _mix(self) -> None:
        self.n, self.mixed = 0, True
        self.second = torch.zeros_like(self.second)
        self.state, self.waiting = {}, {}
