"""Projection of one parameter, against linear algebra; restoration to the bit."""

import pytest
import torch

from steerkit.edits.removal import CHUNK, Basis, remove, restore, sha256


def basis(width, k, *, oblique=False, seed=0):
    draw = torch.Generator().manual_seed(seed)
    span = torch.linalg.qr(torch.randn(width, k, generator=draw, dtype=torch.float64))[0]
    if not oblique:
        return Basis(span, span)
    gain = torch.rand(width, 1, generator=draw, dtype=torch.float64) + 0.3
    return Basis(span * gain, span / gain)


def weight(shape, dtype, seed=1):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    # Values that arithmetic would change: signed zeros and the smallest numbers.
    made.view(-1)[:4] = torch.tensor([0.0, -0.0, 1e-30, -1e-6]).to(dtype)
    return made


SHAPES = [((24, 40), 0), ((40, 24), 1), ((3, 24, 10), 1), ((3, 10, 24), 2), ((24,), 0)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize(("k", "oblique"), [(1, False), (3, False), (2, True)])
def test_remove_is_the_projection_and_restore_gives_back_every_bit(dtype, shape, axis, k, oblique):
    space, original = basis(24, k, oblique=oblique), weight(shape, dtype)
    edited = original.clone()
    removal = remove(edited, axis, space)
    keep = torch.eye(24, dtype=torch.float64) - space.writes @ space.reads.mT
    wanted = torch.tensordot(original.double(), keep, ([axis], [1])).movedim(-1, axis)
    # Rounded once: the float64 result, in the parameter's dtype, up to float64's own rounding.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(edited.double(), wanted, rtol=eps / 2 + 1e-12, atol=1e-7)
    assert removal.before == sha256(original) != removal.after == sha256(edited)
    restore(edited, axis, space, removal)
    assert sha256(edited) == sha256(original)


def test_without_the_kept_values_restoration_is_exact_up_to_rounding_only():
    space, original = basis(24, 1), weight((24, 400), torch.bfloat16)
    edited = original.clone()
    removal = remove(edited, 0, space, reversible=False)
    assert not len(removal.moved)
    restore(edited, 0, space, removal)
    assert sha256(edited) != sha256(original), "rounding lost something, which is why it is kept"
    torch.testing.assert_close(edited, original, rtol=2**-6, atol=2**-7)


def test_few_values_have_to_be_kept():
    """The wider, the fewer: what is removed of each value shrinks as 1 / sqrt(d_model)."""
    shares = []
    for width in (32, 128, 512):
        edited = weight((width, 512), torch.bfloat16)
        removal = remove(edited, 0, basis(width, 1))
        shares.append(len(removal.moved) / edited.numel())
    assert shares[0] > 1.5 * shares[1] > 1.5**2 * shares[2]
    assert shares[2] < 0.05


def test_large_parameters_go_in_pieces_that_change_nothing(monkeypatch):
    space, whole = basis(24, 2), weight((1000, 24), torch.float32)
    pieces = whole.clone()
    kept = remove(whole, 1, space)
    monkeypatch.setattr("steerkit.edits.removal.CHUNK", 24 * 7)
    in_pieces = remove(pieces, 1, space)
    assert CHUNK > whole.numel()
    assert torch.equal(whole, pieces) and torch.equal(kept.moved, in_pieces.moved)
    restore(pieces, 1, space, kept)
    assert sha256(pieces) == kept.before
