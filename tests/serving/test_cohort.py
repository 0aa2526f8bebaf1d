"""Rows that are picked do what rows that are put together do."""

import itertools
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.interventions import AddKeepingNorm, InOrder, Rotate, When
from steerkit.kernels.place import Place
from steerkit.kernels.plan import plan_of
from steerkit.kernels.reference import pack, steer
from steerkit.serving.cohort import Cohort, PassPlace
from steerkit.site import Site

SITE = Site(1)


@pytest.fixture(scope="module")
def view(llama, direction) -> Any:
    """Slots of many kinds: rules, masks, gates, latches, several groups, nothing."""

    def d(seed: int, layer: int = 1) -> Any:
        return direction(llama, layer, seed=seed)

    mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    return llama.with_rows(
        [sk.Add(d(1))],
        [sk.Add(d(2), positions="generated"), sk.Ablate(d(3), positions="prompt")],
        [],
        [InOrder(sk.Ablate(d(4)), AddKeepingNorm(d(5), positions=[0, -1]))],
        [sk.Clamp(d(6), low=0.0, high=1.0)],
        [sk.Add(d(7), positions=mask)],
        [sk.Add(d(8)).when(When(d(9), above=0.0, on="token"))],
        [sk.Add(d(10)).when(When(d(11, 0), above=0.0, on="mean_prompt"))],
        [Rotate((d(12), d(13)), to=40.0)],
        [sk.Add(d(14)).when(When(d(15, 1), above=0.0, on="last_prompt")), sk.Ablate(d(16))],
    )


def run(plan: Any, stream: torch.Tensor, kind: Any) -> Any:
    n, width = stream.shape[:2]
    absolute = torch.arange(width).expand(n, width) + torch.arange(n)[:, None]
    lengths = torch.tensor([3 + i % 4 for i in range(n)])
    # Only the first two prompts have a row in the mask.
    place = kind(lambda: absolute, lengths, torch.arange(n) % 2)
    latches = {name: torch.ones(n, dtype=torch.int8) for name in LATCHES}
    return steer(plan, stream, place, latches), latches


LATCHES: list[str] = []


@pytest.fixture(scope="module")
def additions(llama, direction) -> Any:
    """Slots that only add, by rules that some of them share."""
    rules = ("all", "prompt", "all", "generated", "prompt", [0, -1], "all", "last_prompt", "all")
    rows = [[sk.Add(direction(llama, 1, seed=i), positions=p)] for i, p in enumerate(rules)]
    return llama.with_rows(*rows, [])


@pytest.mark.parametrize("name, site", [("view", Site(0)), ("view", SITE), ("additions", SITE)])
def test_picked_rows_equal_rows_put_together(request, name, site):
    view = request.getfixturevalue(name)
    last = len(view.table)
    LATCHES[:] = [latch.name for program in view.table.at(Site(0)) for latch in program.latches]
    packed = pack(view.table.at(site), "cpu", torch.float64)
    every = tuple(range(last))
    cohort = Cohort(packed, (*every, *every))
    generator = torch.Generator().manual_seed(5)
    drawn = [
        tuple(torch.randint(0, last, (n,), generator=generator).tolist()) for n in (2, 5, 9, 30)
    ]
    pairs = itertools.combinations(every, 2)
    for slots in [*drawn, *pairs, (0, 3), (3, 3), (1, 1), every, drawn[1], drawn[3]]:
        stream = torch.randn(len(slots), 7, 32, generator=generator, dtype=torch.float64)
        want, decided = run(plan_of(packed, slots), stream, Place)
        found, registers = run(cohort.plan(slots), stream, PassPlace)
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(registers[name], decided[name]) for name in decided)


def test_a_mask_is_not_asked_about_requests_of_other_slots(view, llama, direction):
    packed = pack(view.table.at(SITE), "cpu", torch.float32)
    cohort = Cohort(packed, (1, 2, 6))
    stream = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(2))
    place = PassPlace(
        lambda: torch.zeros(3, 1, dtype=torch.long), torch.full((3,), 4), torch.tensor([7, 8, 1])
    )
    steer(cohort.plan((1, 2, 6)), stream, place, {})
    steer(cohort.plan((1, 2)), stream[:2], place.some(torch.tensor([0, 1])), {})
