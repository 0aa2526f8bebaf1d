"""The outline of a model says what loading it says."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit import organisms
from steerkit.errors import ModelError, PromptError
from steerkit.models import outline as outlines
from steerkit.models.outline import SEQUENTIAL, outline
from steerkit.site import STREAMS


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were loaded to be described."""
    found: list[str] = []
    load = outlines.load

    def noted(name: Any, **options: Any) -> Any:
        found.append(str(name))
        return load(name, **options)

    monkeypatch.setattr(outlines, "load", noted)
    return found


def with_tokenizer(network: Any, folder: Path) -> Path:
    """A network with a tokenizer of words."""
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(organisms.path("base") / name, folder)
    return folder


def test_every_type_in_the_table_has_every_stream(model: Any) -> None:
    """Asked of each family that the tests know, which are all that the table names."""
    if model.info.model_type in SEQUENTIAL:
        assert model.info.streams == STREAMS


def test_the_table_names_only_what_is_tested(make_network: Any) -> None:
    assert set(make_network.__globals__["FAMILIES"]) >= SEQUENTIAL


def test_it_is_what_loading_says_and_loads_nothing(loads: list[str]) -> None:
    whole, found = sk.load("organism:base"), outline("organism:base")
    assert found.info == whole.info and found.table is whole.table is None
    texts = ["how do i bake bread ?", sk.Prompt("who are you ?", answer="a cat", system="be kind")]
    assert found.tokenize(texts) == whole.tokenize(texts)
    with pytest.raises(PromptError, match="too long"):
        found.tokenize(["bread " * 500])
    assert not loads


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "auto", None])
def test_types_are_those_of_loading(
    make_network: Any, tmp_path: Path, loads: list[str], dtype: Any
) -> None:
    folder = with_tokenizer(make_network("llama").to(torch.bfloat16), tmp_path / "tiny")
    assert outline(folder, dtype=dtype).info == sk.load(folder, dtype=dtype).info
    assert not loads


def test_what_the_files_do_not_tell_is_loaded(
    make_network: Any, tmp_path: Path, loads: list[str]
) -> None:
    """Parallel blocks lack a stream; float16 rounds before the fingerprint does."""
    folder = with_tokenizer(make_network("phi"), tmp_path / "phi")
    assert outline(folder).info == sk.load(folder).info
    assert "resid_mid" not in outline(folder).info.streams
    small = with_tokenizer(make_network("llama"), tmp_path / "llama")
    assert outline(small, dtype="float16").info == sk.load(small, dtype="float16").info
    assert loads == [str(folder), str(folder), str(small)]
    with pytest.raises(ModelError, match="no model folder at"):
        outline("./nothing")
