"""The fingerprint tells models apart, and knows the same one again."""

import torch

import steerkit as sk
from steerkit.models.fingerprint import fingerprint


def test_the_same_checkpoint_twice_and_in_another_dtype(tiny_folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert sk.load(tiny_folder).info.fingerprint == sk.load(tiny_folder).info.fingerprint
    for dtype in (torch.bfloat16, torch.float16):
        network = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
        network.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
        prints = {sk.load(tmp_path, dtype=d).info.fingerprint for d in (torch.float32, dtype)}
        assert len(prints) == 1


def test_fine_tuned_weights_and_other_configs_differ(make_network):
    network = make_network("llama")
    first = sk.wrap(network).info.fingerprint
    with torch.no_grad():
        for parameter in network.model.layers[1].mlp.parameters():
            parameter += 1e-3 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(0)
            )
    assert sk.wrap(network).info.fingerprint != first
    assert sk.wrap(make_network("llama", rms_norm_eps=1e-3)).info.fingerprint != first
    assert sk.wrap(make_network("llama", num_hidden_layers=4)).info.fingerprint != first
    assert sk.wrap(make_network("llama")).info.fingerprint == first


def test_processing_order_and_empty_biases():
    weights = {"a": torch.randn(300, 7), "b.bias": torch.zeros(3), "c": torch.ones(2)}
    expected = fingerprint(weights.items(), {"hidden_size": 7})
    assert fingerprint(reversed(weights.items()), {"hidden_size": 7}) == expected
    assert fingerprint(weights.items(), {"hidden_size": 7}, processing="folded") != expected
    del weights["b.bias"]
    assert fingerprint(weights.items(), {"hidden_size": 7}) == expected
    weights["a"][-1, -1] += 1
    assert fingerprint(weights.items(), {"hidden_size": 7}) != expected
