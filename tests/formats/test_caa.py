"""CAA files: block outputs, one bare tensor each."""

import pytest
import torch

import steerkit as sk
from steerkit.errors import DirectionError, OutputError
from steerkit.formats import read_steering, read_vectors, write_vectors


def noise(seed=0, d=32):
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def test_a_round_trip_keeps_every_bit_and_the_sites(rich, llama, tmp_path):
    written = write_vectors(rich, tmp_path / "joy", "caa")
    assert [p.name for p in written.paths] == [
        "vec_layer_1_tiny-llama.pt", "vec_layer_2_tiny-llama.pt",
    ]  # fmt: skip
    for path, one in zip(written.paths, rich, strict=True):
        assert torch.equal(torch.load(path, weights_only=True), one.vector)
    found = read_vectors(tmp_path / "joy", model=llama)
    for before, after in zip(rich, found, strict=True):
        assert torch.equal(before.vector, after.vector) and before.site == after.site
        assert after.polarity == 1 and after.concept == "joy"
    (one,) = read_vectors(written.paths[1])
    assert one.site == sk.Site(2) and torch.equal(one.vector, rich[1].vector)


def test_files_of_the_tool_are_read_by_their_names(llama, tmp_path, batch, logits, blocks, by_hand):
    torch.save(noise(1).half(), tmp_path / "vec_layer_1_Llama-2-7b-chat-hf.pt")
    torch.save(noise(0), tmp_path / "vec_layer_0_Llama-2-7b-chat-hf.pt")
    (tmp_path / "readme.txt").write_text("other files are no matter")
    found = read_vectors(tmp_path, model=llama)
    assert [d.site for d in found] == [sk.Site(0), sk.Site(1)]
    assert all(d.pooling == "-2" and d.polarity == 0 for d in found)
    assert "from the end of the instruction on" in found[0].provenance["read_from"]["convention"]
    steered = llama.with_(
        *read_steering(tmp_path / "vec_layer_1_Llama-2-7b-chat-hf.pt", model=llama)
    )
    expected = by_hand(llama, batch, blocks(llama)[1], noise(1).half().float(), "output")
    torch.testing.assert_close(logits(steered, batch), expected, rtol=1e-4, atol=1e-4)
    assert read_vectors(tmp_path)[0].model.name == "Llama-2-7b-chat-hf"


def test_a_file_of_another_name_needs_its_place(tmp_path):
    torch.save(noise(), tmp_path / "sycophancy.pt")
    with pytest.raises(OutputError, match=r"does not say the block.*at="):
        read_vectors(tmp_path / "sycophancy.pt", "caa")
    assert read_vectors(tmp_path / "sycophancy.pt", "caa", at=13)[0].site == sk.Site(13)
    with pytest.raises(OutputError, match="got mlp_out@13"):
        read_vectors(tmp_path / "sycophancy.pt", "caa", at="mlp_out@13")


def test_bad_files_are_explained(llama, direction, tmp_path):
    for name, held, kind, why in (
        ("vec_layer_1.pt", noise(d=5), DirectionError, "has width 5, but tiny-llama has 32"),
        ("vec_layer_7.pt", noise(), DirectionError, r"of block 7, but the model has blocks 0\.\.2"),
        ("vec_layer_1.pt", torch.zeros(32), DirectionError, "all zeros"),
        ("vec_layer_1.pt", torch.ones(2, 32), DirectionError, r"shape \(2, 32\)"),
        ("vec_layer_1.pt", torch.ones(32).long(), DirectionError, "int64; expected plain floats"),
        (
            "vec_layer_1.pt",
            torch.full((32,), 1e39, dtype=torch.float64),
            DirectionError,
            "not finite",
        ),
        ("vec_layer_1.pt", [noise()], OutputError, "holds a list"),
    ):
        torch.save(held, tmp_path / name)
        with pytest.raises(kind, match=why):
            read_vectors(tmp_path / name, model=llama)
        (tmp_path / name).unlink()
    with pytest.raises(OutputError, match="has no files named vec_layer_N"):
        read_vectors(tmp_path, "caa")
    for name in ("vec_layer_1_a.pt", "vec_layer_1_b.pt"):
        torch.save(noise(), tmp_path / name)
    with pytest.raises(
        DirectionError, match=r"vec_layer_1_a\.pt and vec_layer_1_b\.pt are both at"
    ):
        read_vectors(tmp_path)


def test_what_cannot_be_written(llama, direction, tmp_path):
    with pytest.raises(OutputError, match="written into a folder"):
        write_vectors(direction(llama.info), tmp_path / "v.pt", "caa")
    with pytest.warns(UserWarning, match="block outputs"):
        written = write_vectors(
            [direction(llama.info, 2, "resid_mid"), direction(llama.info, 1, "resid_pre")],
            tmp_path / "v",
            "caa",
        )
    assert written.conversions == (
        "resid_pre@1 is written as vec_layer_0_tiny-llama.pt: the same stream",
    )
    both = [direction(llama.info, 1, "resid_pre"), direction(llama.info, 0)]
    with pytest.raises(DirectionError, match="two vectors for the output of block 0"):
        write_vectors(both, tmp_path / "w", "caa")
    assert not (tmp_path / "w").exists()
