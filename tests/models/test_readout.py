"""The unembedding read in directions: the true Jacobian of the final norm, up to its scale."""

import pytest
import torch

import steerkit as sk
from steerkit.errors import DirectionError


def test_read_out_is_the_linear_part_of_norm_and_head(family, model):
    """In the large: for h much longer than the norm's epsilon, logits = read_out(h) / rms(h)."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(4, 32, generator=generator) * 50
    norm, head = model.engine.final_norm(), model.network.get_output_embeddings()
    with torch.no_grad():
        up, down = head(norm(vectors)), head(norm(-vectors))
    # Odd part: biases of norm and head drop out.
    expected = (up - down) / 2
    found = model.read_out(vectors)
    cosine = torch.nn.functional.cosine_similarity(found, expected)
    assert cosine.min() > 0.99999


def test_vectors_of_another_width_are_refused(llama):
    with pytest.raises(DirectionError, match=r"takes vectors \[k, 32\]; got \(32,\)"):
        llama.read_out(torch.ones(32))


def test_half_precision_networks_read_out_in_float32(make_network):
    network = make_network("gemma2")
    full = sk.wrap(network).read_out(torch.eye(32)[:3])
    half = sk.wrap(network.to(torch.bfloat16)).read_out(torch.eye(32)[:3])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.02)
