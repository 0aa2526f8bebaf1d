"""Sparse features and streaming statistics against dense ones, computed at once in float64."""

import resource
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.errors import ActivationError, DirectionError
from steerkit.sae import feature_activations, feature_statistics, load_sae, rows
from steerkit.sae.running import Running

TEXTS = [
    "the cat is happy",
    "i loved the big red book and the film , thank you",
    "tell me how to make a cake",
    "sun",
]


@pytest.fixture(scope="module")
def model(tiny_folder: Any) -> Any:
    return sk.load(tiny_folder)


@pytest.fixture
def sae(make: Any, model: Any) -> Any:
    return load_sae(make("jumprelu", d=32, f=90), model=model)


@pytest.fixture
def acts(model: Any) -> Any:
    return sk.capture(
        model, TEXTS, layers=[0, 1], positions="all", exclude_bos=True, progress=False
    )


def test_sparse_is_dense_without_zeros(sae: Any, acts: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", 4 * 90 * 7)  # seven rows at a time
    found = feature_activations(sae, acts)
    dense = sae.encode(acts.at(1))
    torch.testing.assert_close(found.dense(), dense, rtol=1e-5, atol=1e-6)
    assert (found.values > 0).all() and found.l0 == (dense > 0).sum() / len(dense)
    features, values = found.row(5)
    assert features.tolist() == (dense[5] > 0).nonzero().flatten().tolist()
    torch.testing.assert_close(values, dense[5][features], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.of(4), dense[:, 4], rtol=1e-5, atol=1e-6)


def test_a_model_and_its_captured_activations_give_the_same(
    sae: Any, acts: Any, model: Any
) -> None:
    """Batches run longest first and come back in the order of prompts and tokens."""
    found = feature_activations(sae, model, TEXTS, token_budget=16)
    torch.testing.assert_close(found.prompt_index, acts.prompt_index)
    torch.testing.assert_close(found.positions, acts.positions)
    torch.testing.assert_close(found.tokens, acts.tokens)
    torch.testing.assert_close(found.dense(), sae.encode(acts.at(1)), rtol=1e-4, atol=1e-5)


def test_streamed_statistics_are_those_of_all_rows_at_once(
    sae: Any, acts: Any, monkeypatch: Any
) -> None:
    whole = feature_statistics(sae, acts)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 4 * 90 * 3)
    parts = feature_statistics(sae, acts)
    features, rebuilt = sae.reconstruct(acts.at(1))
    x = acts.at(1).double()
    for found in (whole, parts):
        assert found.rows == len(acts)
        torch.testing.assert_close(found.active, (features > 0).sum(0))
        torch.testing.assert_close(found.mean, features.double().mean(0), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.maximum, features.amax(0), rtol=1e-5, atol=1e-6)
        spread = (x - x.mean(0)).square().sum()
        wanted = 1 - (x - rebuilt.double()).square().sum() / spread
        assert found.variance_explained == pytest.approx(float(wanted), rel=1e-6)
        assert found.l0 == pytest.approx(float((features > 0).sum(1).double().mean()))
        assert found.dead == float((features == 0).all(0).double().mean())


def test_a_mean_far_from_zero_does_not_spoil_the_variance() -> None:
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    running = Running(2, 3)
    for part in x.split(37):
        running.add(torch.zeros(len(part), 2), part, part)
    wide = x.double()
    wanted = float((wide - wide.mean(0)).square().sum())
    assert running.result().variance == pytest.approx(wanted, rel=1e-10)


def test_statistics_of_many_tokens_take_the_memory_of_a_chunk(make: Any, model: Any) -> None:
    """Half a dozen chunks one after another leave the peak at a few chunks."""
    sae = load_sae(make("topk", d=32, f=2048), model=model)
    x = torch.randn(50_000, 32, generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    running = Running(2048, 32)
    size = rows.CHUNK_BYTES // (4 * 2048)
    for part in x.split(size)[:6]:
        features, rebuilt = sae.reconstruct(part)
        running.add(features, part, rebuilt)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert size * 6 * 2048 * 4 > 200e6 and grown < 170_000  # kB


def test_an_iterator_is_read_a_block_at_a_time_and_gives_the_same(
    sae: Any, model: Any, monkeypatch: Any
) -> None:
    texts = [f"{a} {b}" for a in TEXTS for b in TEXTS]
    wanted, whole = feature_statistics(sae, model, texts), feature_activations(sae, model, texts)
    monkeypatch.setattr(rows, "BLOCK", 3)
    taken: list[int] = []
    chunk = rows.chunks(sae, model, (taken.append(i) or t for i, t in enumerate(texts)))
    next(chunk)
    assert taken == [0, 1, 2]  # nothing is read ahead of what runs
    found = feature_statistics(sae, model, iter(texts))
    assert found.rows == wanted.rows and torch.equal(found.active, wanted.active)
    torch.testing.assert_close(found.total, wanted.total, rtol=1e-5, atol=1e-5)
    assert found.variance_explained == pytest.approx(wanted.variance_explained, rel=1e-6)
    sparse = feature_activations(sae, model, iter(texts))
    assert torch.equal(sparse.prompt_index, whole.prompt_index)
    torch.testing.assert_close(sparse.dense(), whole.dense(), rtol=1e-4, atol=1e-5)


def test_what_is_not_the_saes_is_refused(sae: Any, acts: Any, model: Any) -> None:
    pooled = sk.capture(model, TEXTS, layers=[1], positions="mean_prompt", progress=False)
    with pytest.raises(ActivationError, match=r"features are of tokens, .*'mean_prompt'"):
        feature_statistics(sae, pooled)
    other = sk.capture(model, TEXTS, layers=[2], progress=False)
    with pytest.raises(ActivationError, match="resid_post@1 was not captured"):
        feature_activations(sae, other)
    with pytest.raises(DirectionError, match=r"was loaded for tiny.*, not for organism:base"):
        feature_statistics(sae, sk.load("organism:base"), TEXTS)
    with pytest.raises(ActivationError, match="not both"):
        feature_statistics(sae, acts, TEXTS)
    with pytest.raises(ActivationError, match="a model needs prompts"):
        feature_statistics(sae, model)
    with pytest.raises(ActivationError, match="no rows"):
        feature_statistics(sae, acts.select([]))
