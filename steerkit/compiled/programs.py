"""The programs of a step, as blocks of a copied network look them up while it runs."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steerkit.compiled.latches import Decided, LatchTable, decide
from steerkit.compiled.requests import Requests
from steerkit.kernels.device import DeviceTable, TableTensors
from steerkit.kernels.static import Rows, prepare, rows_program
from steerkit.models.hooks import Visit
from steerkit.site import Site


class Programs:
    """Table and requests, joined once a step: `begin`, the visits of all sites, `end`.

    Everything here is traced. What a step holds is let go at its end, since whatever outlived
    it would become an output of the graph.
    """

    def __init__(self, table: DeviceTable, latches: LatchTable, requests: Requests) -> None:
        self.table, self.latches, self.requests = table, latches, requests
        self._rows: Rows | None = None
        self._decided: Decided | None = None
        self._request: Tensor | None = None
        self._absolute: Tensor | None = None
        tensors = table.tensors
        self._sites = [
            replace(tensors, codes=tensors.codes[:, n : n + 1]) for n in range(len(table.sites))
        ]

    def visits(self, sites: Sequence[Site]) -> dict[Site, Visit]:
        """What happens at each site."""

        def visit(number: int) -> Visit:
            return lambda stream: self._steer(stream, number)

        return {site: visit(self.table.number(site)) for site in sites}

    def begin(self, absolute: Tensor, *, deciding: bool) -> None:
        """Begin a step over these positions `[row pos]`; `deciding` where prompts may end in it."""
        requests = self.requests
        order = torch.arange(absolute.shape[0], device=absolute.device)
        self._request = order[:, None].expand_as(absolute)
        self._absolute = absolute
        if deciding and self.table.capacity.latches:
            self._decided = Decided(requests.registers, requests.sums)
        else:
            self._rows = self._prepare(self.table.tensors, requests.registers)

    def end(self) -> None:
        """End the step."""
        if self._decided is not None:
            self.requests.registers.copy_(self._decided.registers)
            self.requests.sums.copy_(self._decided.sums)
        self._rows = self._decided = self._request = self._absolute = None

    def _steer(self, h: Tensor, site: int) -> Tensor:
        if self._rows is not None:
            rows, active = self._rows, self._rows.active[site]
        else:
            rows = self._deciding(h, site)
            active = rows.active[0]
        return rows_program(h, rows.slot, active, self.table.tensors, site)

    def _deciding(self, h: Tensor, site: int) -> Rows:
        """What acts at a site, once the latches that are decided there are."""
        assert self._decided is not None and self._absolute is not None
        requests = self.requests
        self._decided = decide(
            self._decided,
            self.latches,
            site,
            h,
            requests.slot,
            self._absolute,
            requests.prompt_len,
        )
        return self._prepare(self._sites[site], self._decided.registers)

    def _prepare(self, tensors: TableTensors, registers: Tensor) -> Rows:
        assert self._request is not None and self._absolute is not None
        return prepare(
            tensors,
            self._request,
            self._absolute,
            self.requests.slot,
            self.requests.prompt_len,
            registers,
        )
