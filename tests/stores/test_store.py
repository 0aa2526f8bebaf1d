"""Reading a store: rows, batches, filters, hashes, and numpy without steerkit."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.errors import ActivationError, OutputError
from steerkit.stores import ActivationStore
from steerkit.stores.lock import driver_lock
from steerkit.stores.readme import README

READER = """
import sys
sys.modules["torch"] = sys.modules["safetensors"] = sys.modules["steerkit"] = None
from pathlib import Path
text = Path(sys.argv[1], "README.md").read_text()
exec(text.partition("```python")[2].partition("```")[0])
shards = [read_shard(path) for path in finished_shards(sys.argv[1])]
np.savez(
    sys.argv[2],
    values=np.concatenate([values(shard, sys.argv[3]) for shard in shards]),
    prompt=np.concatenate([shard["prompt"] for shard in shards]),
    token=np.concatenate([shard["token"] for shard in shards]),
    ids=np.concatenate([shard["ids"] for shard in shards]),
)
assert not {"torch", "safetensors", "steerkit"} & {k for k, v in sys.modules.items() if v}
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_numpy_alone_reads_a_store_by_its_readme(harvest, dtype, tmp_path):
    store = harvest(positions="all", dtype=dtype, limit=20)
    assert (store.path / "README.md").read_text() == README
    command = [sys.executable, "-c", READER, str(store.path), str(tmp_path / "x.npz")]
    subprocess.run([*command, "resid_post@3"], check=True, timeout=60)
    with np.load(tmp_path / "x.npz") as found:
        assert np.array_equal(found["values"], store.at("resid_post@3").numpy())
        assert np.array_equal(found["prompt"], store.prompt_index().numpy())
        assert np.array_equal(found["token"], store.tokens().numpy())
        assert np.array_equal(found["ids"], store.tokens().numpy()), "every token is a row"


def test_rows_are_found_wherever_they_lie(pooled):
    whole = pooled.at("resid_post@3")
    assert whole.shape == (60, 96) and len(pooled) == 60
    for rows in ([59, 0, 17, 17, 33], slice(10, 40, 3), slice(15, 33), [-1], torch.arange(60) > 40):
        expected = whole[torch.tensor(rows) if isinstance(rows, list) else rows]
        assert torch.equal(pooled.at("resid_post@3", rows), expected)
    assert torch.equal(pooled.at("resid_post@1", 5)[0], pooled.at(sk.Site(1))[5])
    assert pooled.at(1, []).shape == (0, 96)
    assert pooled.prompt_index([16, 3]).tolist() == [16, 3]


def test_what_is_not_there_is_named(pooled, tmp_path):
    with pytest.raises(ActivationError, match=r"resid_post@2 is not in the store; it holds resid"):
        pooled.at(2)
    for rows in ([60], [-61], [[1]]):
        with pytest.raises(ActivationError, match="rows are indices from 0 to 59"):
            pooled.at(1, rows)
    with pytest.raises(ActivationError, match="prompts are 0 to 59; got 60"):
        pooled.prompt(60)
    with pytest.raises(ActivationError, match="no column 'sauce'; did you mean 'source'"):
        pooled.rows({"sauce": "a"})
    with pytest.raises(ActivationError, match="labels are 1 or 0; the column 'source' holds 'a'"):
        pooled.to_activations(label="source")
    with pytest.raises(OutputError, match="no activation store file at"):
        ActivationStore(tmp_path)


def test_prompts_keep_their_metadata_and_filter_rows(pooled, tokens, data):
    kept = [dict(metadata) for _, metadata in pooled.prompts()]
    assert kept == [{k: row[k] for k in ("label", "source", "weight")} for row in data]
    assert pooled.manifest.dataset["columns"] == ["label", "source", "weight"]
    assert pooled.manifest.dataset["dropped_columns"] == ["words"]
    assert [prompt.text for prompt, _ in pooled.prompts()] == [row["text"] for row in data]
    chosen = [i for i, row in enumerate(data) if row["source"] in "ab" and row["label"] == 1]
    where = {"source": ["a", "b"], "label": 1}
    assert pooled.rows(where).tolist() == chosen
    assert pooled.rows(lambda about: about["weight"] > 8).tolist() == [57, 58, 59]
    owner = tokens.prompt_index()
    assert tokens.rows(where).tolist() == [r for r, p in enumerate(owner.tolist()) if p in chosen]
    some = tokens.to_activations(3, where=where)
    assert some.labels == (1,) * len(chosen)
    assert [p.text for p in some.prompts] == [data[i]["text"] for i in chosen]
    assert torch.equal(some.values[:, 0], tokens.at(3, tokens.rows(where)))
    assert torch.equal(torch.tensor(chosen)[some.prompt_index], owner[tokens.rows(where)])


def test_directions_come_out_of_a_store(pooled, model, data):
    sides = [[row["text"] for row in data if row["label"] == side] for side in (1, 0)]
    acts = sk.capture(model, sk.Contrast.of(*sides), layers=3, progress=False)
    direct = sk.extract(acts, "mean_difference", n_random=0, n_permutations=0)[0]
    stored = sk.extract(pooled.to_activations(3), "mean_difference", n_random=0, n_permutations=0)[
        0
    ]
    assert float(direct.unit @ stored.unit) > 1 - 1e-5
    assert stored.scale == pytest.approx(direct.scale, rel=1e-4)


@pytest.mark.parametrize("size", [7, 64, 5000])
def test_shuffled_batches_are_a_permutation(tokens, monkeypatch, size):
    monkeypatch.setattr("steerkit.stores.shuffling.BLOCK", 8)
    monkeypatch.setattr("steerkit.stores.shuffling.MIX_BYTES", 96 * 2 * 8 * 20)
    whole = tokens.at(3)
    batches = list(tokens.batches(size, 3, seed=1))
    assert {len(batch) for batch in batches[:-1]} <= {size} and len(batches[-1]) <= size
    found = torch.cat(batches)
    assert found.shape == whole.shape and not torch.equal(found, whole)
    assert torch.equal(_sorted(found), _sorted(whole))
    assert torch.equal(found, torch.cat(list(tokens.batches(size, 3, seed=1))))
    assert not torch.equal(found, torch.cat(list(tokens.batches(size, 3, seed=2))))
    assert torch.equal(whole, torch.cat(list(tokens.batches(size, 3, shuffle=False))))
    full = list(tokens.batches(size, 3, seed=1, drop_last=True))
    assert len(full) == len(whole) // size


def _sorted(rows):
    return rows[torch.from_numpy(np.lexsort(rows.numpy().T))]


def test_shuffling_spreads_neighbours_over_the_whole_store(tokens, monkeypatch):
    """Rank correlation of order in and out; neighbours stay near one another by chance only."""
    monkeypatch.setattr("steerkit.stores.shuffling.BLOCK", 8)
    whole = tokens.at(3)
    place = {row.numpy().tobytes(): i for i, row in enumerate(whole)}
    out = torch.cat(list(tokens.batches(100, 3, seed=3)))
    order = np.array([place[row.numpy().tobytes()] for row in out])
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 4 / np.sqrt(len(order))
    assert np.mean(np.abs(np.diff(order)) <= 8) < 0.1


def test_batches_of_int8_are_dequantised(harvest):
    store = harvest(dtype="int8")
    found = torch.cat(list(store.batches(13, 3, seed=5)))
    assert torch.equal(_sorted(found), _sorted(store.at(3)))
    with pytest.raises(ActivationError, match="the store has 2 sites: say which"):
        store.batches(13)
    with pytest.raises(ActivationError, match="a batch has at least one row"):
        store.batches(0, 3)


def test_damage_is_found_marked_and_mended(harvest, pooled, counted, tmp_path):
    store = harvest()
    assert store.verify().ok and store.verify().sound == 4
    bad, gone = (store.path / store.manifest.tasks()[i].name for i in (1, 3))
    flipped = bytearray(bad.read_bytes())
    flipped[-1] ^= 1
    bad.write_bytes(flipped)
    gone.unlink()
    with driver_lock(store.path):
        unmarked = ActivationStore(store.path).verify()
    assert not unmarked.marked and "after verifying while no other" in unmarked.summary()
    found = ActivationStore(store.path).verify()
    assert (found.sound, found.marked, found.ok) == (2, True, False)
    assert found.damaged == (f"shards/{bad.name}",) and found.missing == (f"shards/{gone.name}",)
    assert set(ActivationStore(store.path).missing) == {*found.damaged, *found.missing}
    whole, half = counted(), counted()
    harvest(tmp_path / "whole", model=whole)
    assert harvest(model=half).sha256 == pooled.sha256
    assert half.runs < whole.runs
    assert ActivationStore(store.path).verify().ok
    prompts = store.path / store.manifest.parts[0].file
    prompts.write_bytes(prompts.read_bytes().replace(b"a", b"b", 1))
    assert ActivationStore(store.path).verify().damaged_prompts == ("prompts/0000000000.jsonl",)


def test_a_store_says_what_it_is(tokens):
    about = tokens.to_json()
    assert about["rows"] == len(tokens) == about["tokens"]
    assert about["sites"] == {"resid_post@1": "bfloat16", "resid_post@3": "bfloat16"}
    assert 0 < about["errors"]["resid_post@1"]["max_relative"] < 2**-8
    assert json.loads(json.dumps(about)) == about
    assert "60 prompts, 2 sites, pooling 'all'" in repr(tokens)
    assert "60 prompts" in tokens._repr_html_() and "4 of 4 shards" in tokens._repr_html_()
