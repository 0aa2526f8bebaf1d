"""A checkpoint says which model it is without being loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.errors import ModelError
from steerkit.models.checkpoints import checkpoint_info, read_out_parts
from steerkit.models.readout import through_norm

STREAMS = ("resid_pre", "resid_post")


def info_of(folder: Path) -> Any:
    return checkpoint_info(folder, streams=STREAMS, dtype="float32", device="cpu")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_loading_says(
    make_network: Any, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    make_network(kind).to(dtype).save_pretrained(tmp_path / "tiny")
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    want, found = sk.wrap(loaded, name="tiny").info.to_json(), info_of(tmp_path / "tiny").to_json()
    assert {**found, "streams": want["streams"]} == want


def test_tied_weights_and_another_seed(make_network: Any, tmp_path: Path) -> None:
    network = make_network("llama", tie_word_embeddings=True)
    network.save_pretrained(tmp_path / "tied")
    first = info_of(tmp_path / "tied")
    assert first.fingerprint == sk.wrap(network).info.fingerprint
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    network.save_pretrained(tmp_path / "changed")
    assert info_of(tmp_path / "changed").fingerprint != first.fingerprint


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_unembedding_reads_directions_as_the_network_does(
    make_network: Any, tmp_path: Path, kind: str, tied: bool
) -> None:
    """RMS norms, ones of 1 + weight, LayerNorms with their centring; tied heads and own ones."""
    network = make_network(kind, tie_word_embeddings=tied)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or "ln_f" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    network.save_pretrained(tmp_path / "tiny")
    norm, head = read_out_parts(tmp_path / "tiny")
    vectors = torch.randn(3, head.shape[1])
    found = through_norm(norm, vectors, head) @ head.float().T
    assert torch.allclose(found, sk.wrap(network).read_out(vectors), rtol=1e-5, atol=1e-6)


def test_a_folder_without_known_weights_is_refused(make_network: Any, tmp_path: Path) -> None:
    network = make_network("llama")
    network.config.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="has no weights in safetensors"):
        info_of(tmp_path / "bare")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, tmp_path / "bare" / "model.safetensors")
    with pytest.raises(ModelError, match="lacks 30 of its parameters"):
        info_of(tmp_path / "bare")
