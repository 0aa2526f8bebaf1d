"""Saved edits: reloaded they are the same model; merged, the LoRA is the linear part."""

import json

import pytest
import torch
from safetensors.torch import load_file

import steerkit as sk
from steerkit.edits import EditReceipt, orthogonalize, save_folder, save_lora, undo
from steerkit.edits.saving import RECEIPT, lora_delta
from steerkit.errors import InterventionError, OutputError


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
def test_a_reloaded_folder_is_the_edited_model(
    tiny, tiny_model, directions, tmp_path, bits, family
):
    model = sk.wrap(tiny(family).network, tiny_model.tokenizer, name=family)
    edited, receipt = orthogonalize(model, directions(model), approximate=True)
    folder = save_folder(edited, receipt, tmp_path / "edited")
    loaded = sk.load(folder)
    assert bits(loaded) == bits(edited)
    assert loaded.info.fingerprint == receipt.edited.fingerprint
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    prompts = ["the cat was happy", "tell me a story"]
    batch = loaded.encode(prompts)
    assert torch.equal(loaded.run(batch).logits, edited.run(edited.encode(prompts)).logits)
    # What loaders take for weights is weights alone.
    assert [p.name for p in folder.glob("*.safetensors")] == ["model.safetensors"]
    restored = undo(loaded, EditReceipt.load(folder / RECEIPT))
    assert restored.info.fingerprint == model.info.fingerprint
    assert bits(restored) == bits(model)


def test_a_folder_is_written_whole_or_not_at_all(tiny, directions, tmp_path, monkeypatch):
    model = tiny("llama")
    edited, receipt = orthogonalize(model, directions(model))
    with pytest.raises(OutputError, match="this receipt is of tiny-llama"):
        save_folder(model, receipt, tmp_path / "wrong")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty; choose a new folder"):
        save_folder(edited, receipt, tmp_path / "full")

    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edited.network, "save_pretrained", fails)
    with pytest.raises(OutputError, match="No space left on device"):
        save_folder(edited, receipt, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2"])
@pytest.mark.parametrize("k", [1, 2])
def test_the_merged_lora_is_the_linear_part(tiny, directions, tmp_path, family, k):
    model = tiny(family)
    edited, receipt = orthogonalize(model, directions(model, k), approximate=True)
    folder = save_lora(receipt, tmp_path / "lora", partial=True)
    deltas = lora_delta(folder)
    assert set(deltas) == set(receipt.parts("linear"))
    for name, delta in deltas.items():
        merged = model.network.get_parameter(name).double() + delta
        torch.testing.assert_close(
            merged.float(), edited.network.get_parameter(name), rtol=1e-5, atol=1e-6
        )
        assert int(torch.linalg.matrix_rank(delta, rtol=1e-4)) == k


def test_an_adapter_has_the_layout_that_peft_reads(tiny, directions, tmp_path):
    model = tiny("gpt2")
    _, receipt = orthogonalize(model, directions(model, 2))
    folder = save_lora(receipt, tmp_path / "lora", partial=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 2)
    assert config["fan_in_fan_out"] is True and config["bias"] == "none"
    assert "transformer.h.0.attn.c_proj" in config["target_modules"]
    tensors = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.transformer.h.0.mlp.c_proj"
    assert tensors[f"{key}.lora_A.weight"].shape == (2, 128)
    assert tensors[f"{key}.lora_B.weight"].shape == (32, 2)
    assert len(tensors) == 2 * len(config["target_modules"]) == 12
    for name in config["target_modules"]:
        assert hasattr(model.network.get_submodule(name), "weight")


def test_an_adapter_alone_is_not_the_whole_edit_and_says_so(tiny, directions, tmp_path, relative):
    model = tiny("gpt2")
    edited, receipt = orthogonalize(model, directions(model))
    with pytest.raises(InterventionError, match=r"8 of the 14 .* no LoRA \(transformer.wte.weight"):
        save_lora(receipt, tmp_path / "lora")
    folder = save_lora(receipt, tmp_path / "lora", partial=True)
    listed = json.loads((folder / "edit.json").read_text())["not_in_this_adapter"]
    assert set(listed) == set(receipt.parts("embedding", "bias"))
    # Merged by hand, without the rest, it is another model.
    merged = tiny("gpt2")
    with torch.no_grad():
        for name, delta in lora_delta(folder).items():
            merged.network.get_parameter(name).add_(delta.float())
    batch = sk.edits.writers.probe_batch(model, 3)
    assert relative(merged.run(batch).logits, edited.run(batch).logits) > 1e-2
    with pytest.raises(OutputError, match="no readable LoRA adapter"):
        lora_delta(tmp_path)
