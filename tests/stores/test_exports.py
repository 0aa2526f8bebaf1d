"""Exports are read back by the libraries that they are for."""

import datasets
import pytest
import torch
from sae_lens.training.activations_store import ActivationsStore

from steerkit.errors import OutputError


@pytest.fixture(scope="module")
def exported(tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "cached"
    return out, tokens.export_saelens(out, context_size=16)


def test_saelens_trains_from_an_exported_store(tokens, exported):
    """SAELens' own reader of cached activations, which checks columns and shapes itself."""
    out, rows = exported
    assert len(tokens) - 16 < rows <= len(tokens) and rows % 16 == 0
    reader = ActivationsStore.__new__(ActivationsStore)  # the rest of it wants a model
    reader.cached_activations_path = str(out)
    reader.hook_name, reader.context_size, reader.d_in = "blocks.3.hook_resid_post", 16, 96
    reader.device, reader.dtype = torch.device("cpu"), torch.float32
    reader.store_batch_size_prompts = 1
    reader.exclude_special_tokens = None
    reader.cached_activation_dataset = reader.load_cached_activation_dataset()
    found = [reader.get_raw_llm_batch() for _ in range(rows // 16)]
    assert torch.equal(torch.cat([values for values, _ in found]), tokens.at(3, slice(rows)))
    ids = torch.cat([ids for _, ids in found])
    assert torch.equal(ids.long(), tokens.tokens(slice(rows)))


def test_every_site_is_a_column_under_its_hook_name(exported):
    saved = datasets.load_from_disk(str(exported[0]))
    assert saved.column_names == [
        "blocks.1.hook_resid_post",
        "blocks.3.hook_resid_post",
        "token_ids",
    ]


def test_prompts_of_one_length_need_no_context_size(pooled, tokens, tmp_path):
    assert pooled.export_saelens(tmp_path / "one", "resid_post@3") == len(pooled)
    with pytest.raises(OutputError, match=r"have \d+ to \d+ rows, .* give context_size"):
        tokens.export_saelens(tmp_path / "no")
    with pytest.raises(OutputError, match="a window of 100000 rows is longer than the store"):
        tokens.export_saelens(tmp_path / "no", context_size=100000)
    with pytest.raises(OutputError, match="is there and not an empty folder"):
        pooled.export_dataset(tmp_path / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_hugging_face_dataset_has_a_row_for_each_of_ours(tokens, data, tmp_path):
    assert tokens.export_dataset(tmp_path / "hf", "resid_post@3") == len(tokens)
    saved = datasets.load_from_disk(str(tmp_path / "hf")).with_format("torch")
    assert len(saved) == len(tokens)
    assert torch.equal(saved["resid_post@3"][:], tokens.at(3))
    assert torch.equal(saved["token"][:].long(), tokens.tokens())
    owner = tokens.prompt_index().tolist()
    plain = saved.with_format(None)
    assert plain["prompt"][:] == owner
    assert plain["text"][:] == [data[i]["text"] for i in owner]
    for name, kind in (("label", "int64"), ("source", "string"), ("weight", "float64")):
        assert plain[name][:] == [data[i][name] for i in owner]
        assert plain.features[name].dtype == kind


def test_a_dataset_that_was_saved_is_captured_again(harvest, pooled, tmp_path):
    """What was exported is a dataset; so are its rows as an object, a file and a folder."""
    pooled.export_dataset(tmp_path / "hf", "resid_post@3")
    again = harvest(dataset=tmp_path / "hf")
    assert torch.equal(again.at(3), pooled.at(3))
    assert again.manifest.dataset["dropped_columns"] == ["resid_post@3"]
