"""K4 under Triton's interpreter: selected rows into a ring, and where in it they go."""

from typing import Any

import pytest
import torch

from steerkit.kernels import dispatch
from steerkit.kernels.static import places

pytestmark = pytest.mark.usefixtures("interpreter")


@pytest.mark.parametrize("path", ["triton", "torch"])
@pytest.mark.parametrize("d_model", [1, 5, 123, 1000])
@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_go_to_their_places_and_nowhere_else(
    stream_of: Any, bits_of: Any, path: Any, d_model: int, into: Any
) -> None:
    for tokens in (0, 1, 33):
        h = stream_of(tokens, d_model, dtype=torch.float32)
        # Every second token has a place; what has none may hold anything.
        place = torch.full((tokens,), -1)
        place[::2] = torch.randperm(20, generator=torch.Generator().manual_seed(0))[
            : len(place[::2])
        ]
        h[1::2] = torch.nan
        ring = torch.full((21, d_model), torch.nan, dtype=into)
        before = ring.clone()
        dispatch.capture_rows(h, place, ring, path=path)
        assert dispatch.last_path("capture_rows") == path
        # The interpreter cuts off where a GPU rounds.
        tolerance = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}[into]
        torch.testing.assert_close(
            ring[place[::2]].float(), h[::2], rtol=tolerance, atol=tolerance**2
        )
        rest = torch.ones(21, dtype=torch.bool)
        rest[place[::2]] = False
        rest[20] = False
        assert torch.equal(bits_of(ring[rest]), bits_of(before[rest]))


@pytest.mark.parametrize("path", ["triton", "torch"])
def test_any_layout_and_places_outside_the_ring(stream_of: Any, path: Any) -> None:
    h = stream_of(16, 12).T
    place = torch.tensor([3, -1, 99, 0, -5, 2, 1, 5, 4, 6, 7, 8])
    ring = torch.zeros(10, 16, dtype=torch.float64)
    dispatch.capture_rows(h.view(3, 4, 16), place.view(3, 4), ring, path=path)
    kept = (place >= 0) & (place < 9)
    assert torch.equal(ring[place[kept]], h[kept])


def test_places_go_round_and_keep_the_newest() -> None:
    written = torch.zeros((), dtype=torch.long)
    yes, no = True, False
    assert places(torch.tensor([yes, no, yes]), written, 4).tolist() == [0, -1, 1]
    assert places(torch.tensor([[no, no], [yes, yes]]), written, 4).tolist() == [[-1, -1], [2, 3]]
    assert places(torch.tensor([yes]), written, 4).tolist() == [0]
    assert int(written) == 5
    assert places(torch.ones(6).bool(), written, 4).tolist() == [-1, -1, 3, 0, 1, 2]
    assert int(written) == 11
    assert places(torch.zeros(3).bool(), written, 4).tolist() == [-1] * 3


@pytest.mark.filterwarnings("ignore")
def test_the_operator_is_sound(stream_of: Any) -> None:
    from steerkit.kernels.fused.capture_rows import capture_rows_

    place = torch.tensor([0, -1, 2])
    torch.library.opcheck(capture_rows_, (stream_of(3, 4), place, torch.zeros(5, 4)))
