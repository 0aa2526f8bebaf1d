"""Units that give back the vector, bit for bit."""

import pytest
import torch

from steerkit.formats.vectors import checked, unit_of


@pytest.mark.parametrize("scale", [1.0, 0.1, 1.9999999, 3.3e-5, 7.7e6, 1.4142135])
def test_a_known_scale_gives_the_vector_back_exactly(scale):
    unit = torch.nn.functional.normalize(torch.randn(5000, generator=torch.Generator()), dim=0)
    values = unit * scale
    found = unit_of(values, scale)
    assert torch.equal(found * scale, values)
    torch.testing.assert_close(found, unit, rtol=2**-22, atol=0)


def test_dividing_alone_would_not():
    unit = torch.nn.functional.normalize(torch.randn(5000, generator=torch.Generator()), dim=0)
    values = unit * 0.1
    assert not torch.equal((values.double() / 0.1).float() * 0.1, values)


def test_views_are_copied_and_doubles_rounded():
    table = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
    found = checked(table[1, 2], "row")
    assert found.dtype == torch.float32 and found.tolist() == [20, 21, 22, 23]
    assert found.untyped_storage().nbytes() == 16
