"""A shipped model whose runs are counted, and a small dataset of sentences with columns."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.stores import ActivationStore, capture_dataset

SITES = ("resid_post@1", "resid_post@3")


class Counted:
    """A model that counts its runs, and that may break on one of them."""

    def __init__(self, model: Any, *, break_at: int | None = None) -> None:
        self._model = model
        self.break_at = break_at
        self.runs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, *args: Any, **options: Any) -> Any:
        if self.break_at is not None and self.runs >= self.break_at:
            raise KeyboardInterrupt
        self.runs += 1
        return self._model.run(*args, **options)


@pytest.fixture(scope="session")
def model() -> Any:
    return sk.load("organism:base")


@pytest.fixture
def counted(model: Any) -> Callable[..., Counted]:
    return lambda **options: Counted(model, **options)


@pytest.fixture(scope="session")
def data() -> list[dict[str, Any]]:
    """60 requests of different lengths, with scalar columns and one that is none."""
    texts = [prompt.text for prompt in refusal("train", n=30).prompts]
    return [
        {"text": text, "label": i % 2, "source": "abc"[i % 3], "weight": i / 7, "words": [1, 2]}
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def harvest(model: Any, data: Any, tmp_path: Path) -> Callable[..., ActivationStore]:
    """Capture the dataset into a folder, in shards of 16 rows."""

    def run(out: Path = tmp_path / "store", **options: Any) -> ActivationStore:
        chosen: Mapping[str, Any] = {"sites": SITES, "rows_per_shard": 16, **options}
        given = {"model": model, "dataset": data, **chosen}
        return capture_dataset(**given, out=out, progress=False)

    return run


@pytest.fixture(scope="session")
def pooled(model: Any, data: Any, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """One row a prompt; tests leave it as it is."""
    out = tmp_path_factory.mktemp("pooled") / "store"
    return capture_dataset(model, data, out=out, sites=SITES, rows_per_shard=16, progress=False)


@pytest.fixture(scope="session")
def tokens(model: Any, data: Any, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """One row a token, as bfloat16; tests leave it as it is."""
    out = tmp_path_factory.mktemp("tokens") / "store"
    return capture_dataset(
        model,
        data,
        out=out,
        sites=SITES,
        positions="all",
        dtype="bfloat16",
        rows_per_shard=16,
        progress=False,
    )
