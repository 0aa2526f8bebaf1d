"""What an SAE learns from: memory, a store and a running model give the same rows, each once."""

import pytest
import torch

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.errors import ActivationError
from steerkit.sae import train_sae
from steerkit.sae.sources import ASIDE, FromStore, InMemory, Live
from steerkit.site import Site
from steerkit.stores import ActivationStore

SITE = Site(1)


@pytest.fixture(scope="module")
def model():
    return sk.load("organism:base")


@pytest.fixture(scope="module")
def texts():
    return [prompt.text for prompt in refusal("train", n=100).prompts]


@pytest.fixture(scope="module")
def store(model, texts, tmp_path_factory):
    return sk.capture_dataset(
        model, texts, out=tmp_path_factory.mktemp("store") / "s", sites=[SITE],
        positions="all", exclude_bos=True, rows_per_shard=64, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows(store: ActivationStore):
    return store.at(SITE)


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    """Of about 500 rows: a dataset of a test is not to be read fifty times over."""
    monkeypatch.setattr("steerkit.sae.sources.MIXED_BYTES", 2**18)


def sums(x: torch.Tensor) -> list[float]:
    """A fingerprint of a set of rows: what each row sums to, sorted."""
    return sorted(round(v, 3) for v in x.double().sum(1).tolist())


def test_a_store_gives_each_row_once_in_another_order_and_holds_blocks_out(store, rows):
    source = FromStore(store, SITE, seed=3)
    held = {round(v, 4) for v in source.held.double().sum(1).tolist()}
    assert 0.02 < len(source.held) / len(rows) < 0.09
    size, passes = 32, []
    batches = source.batches(size)
    per_pass = (len(rows) - len(source.held)) // size
    for _ in range(2):
        passes.append([next(batches) for _ in range(per_pass)])
    first, second = (torch.cat(each) for each in passes)
    assert not torch.equal(first, second)
    every = sums(torch.cat([rows]))
    for seen in (first, second):
        left = list(every)
        for v in sums(seen):
            left.remove(v)  # no row comes twice in a pass
        assert len(left) < len(source.held) + size
    repeats = sum(round(v, 4) in held for v in first.double().sum(1).tolist())
    assert repeats <= len(first) * 0.2  # equal texts give equal rows; blocks themselves do not meet


def test_held_out_blocks_do_not_meet_the_others(store, rows):
    index = torch.arange(len(rows), dtype=torch.float32)
    found = {}
    for held in (False, True):
        parts = list(store.batches(64, SITE, held_out=0.1, held=held, seed=1))
        found[held] = torch.cat(parts)
    assert len(found[False]) + len(found[True]) == len(index)
    assert sums(torch.cat([found[False], found[True]])) == sums(rows)
    again = torch.cat(list(store.batches(64, SITE, held_out=0.1, held=True, seed=9)))
    assert sums(again) == sums(found[True])
    with pytest.raises(ActivationError, match="for shuffled batches"):
        store.batches(64, SITE, held_out=0.1, shuffle=False)


def test_a_running_model_gives_what_was_stored(model, texts, store, rows):
    live = Live(model, texts, SITE, exclude_bos=True, seed=0)
    first = store.prompt_index() < ASIDE
    assert sums(live.held) == pytest.approx(sums(rows[first]), abs=2e-3)
    batches = live.batches(64)
    n = int((~first).sum())
    seen = torch.cat([next(batches) for _ in range(30)])
    expected = {round(v, 2) for v in rows[~first].double().sum(1).tolist()}
    close = {round(v + d, 2) for v in expected for d in (-0.01, 0, 0.01)}
    assert {round(v, 2) for v in seen.double().sum(1).tolist()} <= close
    # More were drawn than the texts hold: they were read again.
    assert 30 * 64 > n


def test_texts_that_cannot_be_read_again_end_with_an_error(model, texts):
    live = Live(model, iter(texts), SITE, exclude_bos=True, seed=0)
    batches = live.batches(64)
    seen = 0
    with pytest.raises(ActivationError, match=r"the texts ended after (\d+) rows") as caught:
        while True:
            seen += len(next(batches))
    assert f"after {seen} rows" in str(caught.value)
    with pytest.raises(ActivationError, match="10 texts are too few"):
        Live(model, texts[:10], SITE, exclude_bos=True, seed=0)


def test_training_from_each_source_explains_the_same_rows(model, texts, store):
    options = {"d_sae": 128, "k": 8, "n_tokens": 15_000, "batch_size": 256, "progress": False}
    memory = sk.capture(
        model, texts, sites=[SITE], positions="all", exclude_bos=True, progress=False
    )
    found = {
        "memory": train_sae(memory, **options),
        "store": train_sae(store, **options),
        "live": train_sae(model, texts, site=SITE, live=True, **options),
    }
    held = InMemory(memory, SITE, 0).held
    explained = {}
    for name, sae in found.items():
        _, rebuilt = sae.reconstruct(held)
        error = (held - rebuilt).double().square().sum()
        explained[name] = float(1 - error / (held - held.mean(0)).double().square().sum())
    assert explained["memory"] > 0.6
    assert explained["store"] > explained["memory"] - 0.1
    assert explained["live"] > explained["memory"] - 0.1
    with pytest.raises(ActivationError, match="not both"):
        train_sae(store, texts)
