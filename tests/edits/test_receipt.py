"""A receipt says what was done, and survives its file."""

import torch

from steerkit.edits import EditReceipt, orthogonalize


def test_a_receipt_counts_what_was_edited(tiny, directions):
    model = tiny("gpt2")
    receipt = orthogonalize(model, directions(model, 2)).receipt
    assert receipt.parts("embedding") == ("transformer.wte.weight", "transformer.wpe.weight")
    assert len(receipt.parts("linear")) == len(receipt.parts("bias")) == 6
    assert all(e.conv1d == (e.part == "linear") for e in receipt.edits)
    said = str(receipt)
    assert "2 directions out of 14 parameters of tiny-gpt2 (2 embedding, 6 linear, 6 bias)" in said
    assert "untied lm_head.weight; exact" in said and "undo restores every bit" in said
    moe = tiny("mixtral")
    receipt = orthogonalize(moe, directions(moe)).receipt
    assert receipt.parts("experts") == tuple(
        f"model.layers.{i}.mlp.experts.down_proj" for i in range(3)
    )


def test_what_was_removed_is_what_the_weights_held(tiny, directions):
    """u^T W of the original, by the definition, for every linear writer."""
    model = tiny("llama")
    d = directions(model)[0]
    receipt = orthogonalize(model, d).receipt
    unit = d.unit.double() / d.unit.double().norm()
    sign = torch.sign(receipt.bases[""].reads[:, 0] @ unit)
    for edit in receipt.edits:
        if edit.part == "linear":
            weight = model.network.get_parameter(edit.writer.name).double()
            torch.testing.assert_close(edit.removal.removed[:, 0] * sign, unit @ weight)


def test_files_round_trip(tiny, directions, tmp_path):
    model = tiny("gemma2", torch.bfloat16)
    receipt = orthogonalize(model, directions(model, 2), approximate=True, reversible=False).receipt
    found = EditReceipt.load(receipt.save(tmp_path / "edit.safetensors"))
    assert found.to_json() == receipt.to_json() and str(found) == str(receipt)
    assert "restores up to rounding" in str(found) and not found.reversible
    for a, b in zip(found.edits, receipt.edits, strict=True):
        assert a.writer == b.writer
        for name in ("removed", "moved", "values"):
            assert torch.equal(getattr(a.removal, name), getattr(b.removal, name))
    for name, basis in receipt.bases.items():
        assert torch.equal(found.bases[name].reads, basis.reads)
        assert torch.equal(found.bases[name].writes, basis.writes)
    for direction, other in zip(found.directions, receipt.directions, strict=True):
        assert torch.equal(direction.unit, other.unit)
