"""Files of lm-evaluation-harness: modules by name, added to or clamped."""

import os
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import steerkit as sk
from steerkit.errors import DirectionError, OutputError
from steerkit.formats import hookpoints, read_steering, read_vectors, write_vectors
from steerkit.site import sites_of


def noise(seed=0, d=32):
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def row(**more: Any) -> dict[str, Any]:
    return {
        "steering_vector": noise(),
        "steering_coefficient": 2.0,
        "action": "add",
        "bias": None,
        "head_index": None,
        **more,
    }


def as_the_harness(model, batch, rows):
    """Logits with plain hooks that do what the harness documents for each entry."""
    modules = dict(model.network.base_model.named_modules())
    handles = []
    for name, entry in rows.items():
        vector, coefficient = entry["steering_vector"], entry["steering_coefficient"]
        bias = 0 if entry["bias"] is None else entry["bias"]
        unit = vector / vector.norm()

        def change(x, vector=vector, coefficient=coefficient, bias=bias, unit=unit, entry=entry):
            if entry["action"] == "add":
                return x + coefficient * vector
            p = (x - bias) @ unit
            return x + (coefficient - p)[..., None] * unit

        def hook(_module, _args, out, change=change):
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        handles.append(modules[name].register_forward_hook(hook))
    try:
        with torch.no_grad():
            found = model.network(
                input_ids=batch.tokens,
                attention_mask=batch.mask.long(),
                position_ids=batch.position_ids,
            )
    finally:
        for handle in handles:
            handle.remove()
    return found.logits[batch.mask]


def test_a_round_trip_keeps_every_bit_the_sites_and_the_strengths(rich, llama, tmp_path):
    given = [sk.Add(rich[0], strength=-0.7), sk.Ablate(rich[1], reference=0.25)]
    written = write_vectors(given, tmp_path / "s.pt", "lm_eval")
    assert written.conversions == (
        "resid_post@1 is the output of 'layers.1'", "resid_post@2 is the output of 'layers.2'",
    )  # fmt: skip
    raw = torch.load(tmp_path / "s.pt", weights_only=True)
    assert raw["layers.1"]["steering_coefficient"] == -0.7 and raw["layers.1"]["action"] == "add"
    assert raw["layers.2"]["steering_coefficient"] == 0.25 and raw["layers.2"]["action"] == "clamp"
    found = read_vectors(tmp_path / "s.pt", model=llama)
    for before, after in zip(rich, found, strict=True):
        assert torch.equal(before.vector, after.vector) and before.site == after.site
        assert torch.equal(raw[f"layers.{before.site.layer}"]["steering_vector"], before.vector)
        assert after.polarity == 1
    add, ablate = read_steering(tmp_path / "s.pt", model=llama)
    assert isinstance(add, sk.Add) and add.strength == -0.7
    assert isinstance(ablate, sk.Ablate) and ablate.reference == 0.25


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "stablelm", "starcoder2",
            "cohere", "gpt_neox", "gpt_neox_sequential", "gpt2", "gptj")  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hookpoint_of_a_family_is_the_site_that_it_is_read_as(
    family, tiny, batch, logits, tmp_path
):
    model = tiny(family)
    names = hookpoints.NAMES[model.info.model_type]
    rows = {
        f"{names.blocks}.1": row(),
        f"{names.blocks}.0.{names.attn}": row(steering_vector=noise(1)),
        f"{names.blocks}.1.{names.mlp}": row(
            steering_vector=noise(2), action="clamp", bias=noise(3), steering_coefficient=-1.5
        ),
        f"{names.blocks}.2": row(steering_vector=noise(4), action="clamp"),
    }
    torch.save(rows, tmp_path / "s.pt")
    operators = read_steering(tmp_path / "s.pt", model=model)
    assert {str(op.sites[0]) for op in operators} == {
        "resid_post@1", "attn_out@0", "mlp_out@1", "resid_post@2",
    }  # fmt: skip
    expected = as_the_harness(model, batch, rows)
    torch.testing.assert_close(
        logits(model.with_(*operators), batch), expected, rtol=2e-4, atol=2e-4
    )
    assert not torch.allclose(expected, logits(model, batch), atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2", "bloom", "opt", "falcon"])
def test_hookpoints_that_are_written_are_the_sites(
    family, tiny, direction, batch, logits, tmp_path
):
    """Whatever is written does to the model, hooked by hand, what we do; the rest is dropped."""
    model = tiny(family)
    everywhere = sites_of(None, model.info.streams, 3)
    kept = []
    for site in everywhere:
        op = sk.Add(direction(model.info, site.layer, site.stream))
        try:
            write_vectors(op, tmp_path / "s.pt", "lm_eval")
        except OutputError as error:
            assert "no module of a" in str(error)
            continue
        kept.append(site)
        rows = torch.load(tmp_path / "s.pt", weights_only=True)
        expected = as_the_harness(model, batch, rows)
        torch.testing.assert_close(
            logits(model.with_(op), batch), expected, rtol=2e-4, atol=2e-4, msg=str(site)
        )
    by_stream = {site.stream for site in kept}
    assert {"resid_post", "resid_pre"} <= by_stream
    assert ("attn_out" in by_stream) == (family in ("llama", "gpt2"))


def test_other_spellings_and_kinds_of_place(llama, tiny, tmp_path):
    site_of = hookpoints.site_of
    assert site_of("blocks.3.hook_resid_pre", None) == sk.Site(3, "resid_pre")
    assert site_of("model.layers.14", None) == site_of("h.14", None) == sk.Site(14)
    for name, info, why in (
        ("lm_head", None, "is not of a block"),
        ("layers.x", None, "is not of a block"),
        ("layers.3.mlp", None, "say which with model="),
        ("layers.3.mlp.up_proj", llama.info, "is none of its streams"),
        ("layers.3.mlp", tiny("gemma2").info, "a further norm or factor"),
        ("layers.3.attention", llama.info, "is none of its streams"),
    ):
        with pytest.raises(OutputError, match=why):
            site_of(name, info)


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"layers.1": row(head_index=3)}, "attention head 3 alone"),
        ({"layers.1": row(action="rotate")}, "action 'rotate'; expected 'add' or 'clamp'"),
        ({"layers.1": row(steering_coefficient=float("nan"))}, "coefficient nan"),
        ({"layers.1": row(steering_coefficient="2")}, "coefficient '2'"),
        ({"layers.1": {"action": "add"}}, "has no tensor as its steering_vector"),
        ({"layers.1": noise()}, "holds no hookpoints"),
        ({}, "holds no hookpoints"),
        (noise(), "holds no hookpoints"),
    ],
)
def test_bad_entries_are_explained(held, why, tmp_path):
    torch.save(held, tmp_path / "s.pt")
    with pytest.raises(OutputError, match=why):
        read_vectors(tmp_path / "s.pt", "lm_eval")


def test_bad_vectors_are_explained(llama, tmp_path):
    nan = noise()
    nan[0] = float("inf")
    for held, why in (
        (row(steering_vector=nan), "values that are not finite"),
        (row(steering_vector=torch.zeros(32), action="clamp"), "all zeros"),
        (row(steering_vector=noise(d=4)), "width 4, but tiny-llama has 32"),
    ):
        torch.save({"layers.1": held}, tmp_path / "s.pt")
        with pytest.raises(DirectionError, match=why):
            read_vectors(tmp_path / "s.pt", model=llama)


def test_lists_and_needless_biases_are_read_with_a_warning(llama, tmp_path):
    torch.save([{"hookpoint": "layers.1", **row(bias=noise())}], tmp_path / "s.pt")
    with pytest.warns(UserWarning) as said:
        (op,) = read_steering(tmp_path / "s.pt", model=llama)
    texts = [str(w.message) for w in said]
    assert "takes a dictionary" in texts[0] and "refuses" in texts[1]
    assert isinstance(op, sk.Add) and op.strength == 2.0


def test_a_csv_names_features_of_local_autoencoders(llama, tmp_path, batch, logits):
    folder = tmp_path / "sae" / "layers.1"
    folder.mkdir(parents=True)
    decoder, bias = torch.stack([noise(n) for n in range(4)]), noise(9)
    save_file({"W_dec": decoder, "b_dec": bias}, folder / "sae.safetensors")
    header = "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,sae_id\n"

    def csv(*lines: str) -> Any:
        (tmp_path / "f.csv").write_text(header + "".join(line + "\n" for line in lines))
        return tmp_path / "f.csv"

    for action, coefficient in (("add", 3.0), ("clamp", 1.5)):
        path = csv(f"sparsify,{action},{tmp_path / 'sae'},layers.1,2,{coefficient},")
        (op,) = read_steering(path, model=llama)
        torch.testing.assert_close(op.directions[0].vector, decoder[2])
        entry = row(steering_vector=decoder[2], steering_coefficient=coefficient, action=action)
        rows = {"layers.1": entry | {"bias": bias if action == "clamp" else None}}
        torch.testing.assert_close(
            logits(llama.with_(op), batch), as_the_harness(llama, batch, rows), rtol=2e-4, atol=2e-4
        )
    for line, why in (
        (f"sparsify,add,{tmp_path / 'sae'},layers.1,4,1.0,", "has 4 features; there is no 4"),
        (f"sparsify,add,{tmp_path / 'sae'},layers.1,two,1.0,", "feature two of"),
        ("sae_lens,add,gemma-scope,layers.20,5,1.0,layer_20", "load it with sk.load_sae"),
        ("sparsify,add,on/the-hub,layers.3,5,1.0,", "no local folder of sparsify"),
    ):
        with pytest.raises(OutputError, match=why):
            read_vectors(csv(line))
    (tmp_path / "g.csv").write_text("hookpoint,feature_index\nlayers.1,2\n")
    with pytest.raises(OutputError, match="lacks the columns sparse_model, steering_coefficient"):
        read_vectors(tmp_path / "g.csv")
    with pytest.raises(OutputError, match=r"tells vectors by the ending \.pt"):
        write_vectors(op.directions[0], tmp_path / "h.csv", "lm_eval")


def test_one_vector_a_module(llama, direction, tmp_path):
    both = [direction(llama.info, 1), direction(llama.info, 2, "resid_pre")]
    with pytest.raises(DirectionError, match=r"two vectors for 'layers\.1'"):
        write_vectors(both, tmp_path / "s.pt", "lm_eval")


@pytest.fixture(scope="module")
def harness() -> Any:
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    reason = "lm-evaluation-harness is not installed"
    return pytest.importorskip("lm_eval.models.hf_steered", reason=reason)


def test_the_harness_itself_does_with_a_file_what_we_do(
    harness, tiny_folder, tiny_model, direction, tmp_path
):
    given = [
        sk.Add(direction(tiny_model.info, 0, seed=1), strength=1.5),
        sk.Add(direction(tiny_model.info, 1, "mlp_out", seed=2)),
        sk.Ablate(direction(tiny_model.info, 2, seed=3), reference=0.5),
    ]
    write_vectors(given, tmp_path / "s.pt", "lm_eval")
    steered = harness.SteeredModel(
        pretrained=str(tiny_folder),
        steer_path=str(tmp_path / "s.pt"),
        device="cpu",
        dtype="float32",
    )
    batch = tiny_model.encode([sk.Prompt("the cat was happy", template="raw")])
    with torch.no_grad():
        expected = steered._model_call(batch.tokens)[0]
    found = tiny_model.with_(*given).run(batch).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, tiny_model.run(batch).logits[0], atol=1e-2)
