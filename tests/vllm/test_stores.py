"""A dataset captured through vLLM: the rows of the Hugging Face engine, in the same order."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.errors import ModelError
from steerkit.models.outline import outline

sys.path.insert(0, str(Path(__file__).parent.parent / "stores"))
from faults import Elsewhere

pytest.importorskip(
    "vllm", reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit"
)

SMALL = {"max_num_seqs": 8, "max_model_len": 128, "block_size": 32, "max_num_batched_tokens": 64}
NAME = "organism:aligned"
COMMON: dict[str, Any] = {"rows_per_shard": 8, "positions": "all", "progress": False}


def test_a_store_is_that_of_the_hugging_face_engine(engines: Any, tmp_path: Path) -> None:
    """Captured by a worker that starts vLLM itself; then by its engine, with a site more."""
    engines.stop()
    rows = [
        {"text": prompt.text, "side": label}
        for prompt, label in zip(refusal("train", n=12).prompts, [1, 0] * 12, strict=True)
    ]
    sites, more = ("resid_pre@2", "resid_post@3"), ("resid_post@1",)
    there = sk.capture_dataset(NAME, rows, out=tmp_path / "hf", sites=(*more, *sites), **COMMON)

    run = Elsewhere(backwards=True)
    options = {"dtype": "float32", **SMALL}
    given: dict[str, Any] = {"out": tmp_path / "vllm", **COMMON}
    sk.capture_dataset(
        f"vllm:{NAME}", rows, sites=sites, executor=run, model_options=options, **given
    )
    model = run.made[0].model
    try:
        found = sk.capture_dataset(model, sites=more, **given)
        assert found.info == model.info == outline(f"vllm:{NAME}", **options).info
    finally:
        model.close()
    assert found.complete and found.verify().ok and len(found) == len(there)
    for column in ("prompt_index", "positions", "tokens"):
        assert torch.equal(getattr(found, column)(), getattr(there, column)()), column
    assert torch.equal(found.rows({"side": 1}), there.rows({"side": 1}))
    for site in there.sites:
        gap = (found.at(site) - there.at(site)).norm(dim=1) / there.at(site).norm(dim=1)
        assert float(gap.max()) < 1e-4, site


def test_workers_elsewhere_are_asked_for_a_type(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"say in which type by model_options=\{'dtype'"):
        sk.capture_dataset(f"vllm:{NAME}", ["the cat"], out=tmp_path / "x", workers=2)
