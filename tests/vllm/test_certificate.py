"""A certificate finds what differs, wherever it is planted, and holds where nothing does."""

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli import app
from steerkit.interventions import save_steering
from steerkit.site import Site
from steerkit.vllm.certificate import Certificate, SiteParity, certify, logit_gap, site_parity

here = pytest.mark.skipif(
    find_spec("vllm") is None,
    reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit",
)
SITE = SiteParity("resid_post@1", 10, 1e-6, 0.5, 10, 10, 0)


def made(site: SiteParity = SITE, **changes: Any) -> Certificate:
    """A certificate that holds, but for the changes."""
    given = {
        "model": "m", "artefact": "a" * 64, "steering": ("add",), "versions": {}, "prompts": 1,
        "compiled": False, "tokens": 8, "equal": 1.0, "equal_without": 0.25, "logits": 1e-6,
        "logits_without": 0.3, "sites": (site,), **changes,
    }  # fmt: skip
    return Certificate(**given)


def test_it_holds_only_where_everything_agrees() -> None:
    assert made().holds and "the certificate holds" in made().summary()
    wrong = {
        "streams differ by 2.00e-03": made(SiteParity("resid_post@1", 10, 2e-3, 0.5, 10, 10, 0)),
        "streams differ by nan": made(SiteParity("s", 10, float("nan"), 0.5, 10, 10, 0)),
        "3 tokens went unsteered": made(SiteParity("s", 10, 0.0, 0.5, 10, 7, 0)),
        "2 were steered in vLLM alone": made(SiteParity("s", 10, 0.0, 0.5, 7, 7, 2)),
        "logits differ by 1.00e-02": made(logits=1e-2),
        "12.5% of the greedy tokens differ": made(equal=0.875),
    }
    for words, one in wrong.items():
        assert not one.holds and words in one.summary()
    assert json.loads(json.dumps(made().to_json()))["holds"]


def test_differences_of_a_site_are_relative_and_per_token() -> None:
    draw = torch.Generator().manual_seed(0)
    before = torch.randn(6, 8, generator=draw, dtype=torch.float64)
    after = before.clone()
    after[:4] += 2.0
    off = after.clone()
    off[2] += 1e-3 * after[2]
    off[3], off[5] = before[3], before[5] + 1e-9
    found = site_parity(Site(1), before, after, before, off)
    assert found.difference == pytest.approx(
        float((before[3] - after[3]).norm() / after[3].norm()), rel=1e-9
    )
    assert (found.tokens, found.moved, found.matched, found.extra) == (6, 4, 3, 1)
    same = site_parity(Site(1), before, after, before, after)
    assert same.difference == 0 and same.without > 0.1
    off[3] = after[3]
    assert site_parity(Site(1), before, after, before, off).difference == pytest.approx(1e-3)


def test_logits_are_compared_where_the_other_engine_names_them() -> None:
    logits = torch.tensor([3.0, 100.0, 4.0, 0.0])
    assert logit_gap(logits, {0: 3.0, 2: 4.0}) == 0
    assert logit_gap(logits, {0: 3.0, 2: 4.5}) == pytest.approx(0.1)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_it_says_so(direction: Any, tmp_path: Path) -> None:
    file = save_steering(tmp_path / "add.safetensors", sk.Add(direction()))
    done = CliRunner().invoke(app, ["certify", "-a", str(file), "-p", "hi", "-m", "organism:base"])
    assert done.exit_code == 2 and "knows vLLM 0.32.x and this is none" in done.stderr


def test_wrong_usage(direction: Any, tmp_path: Path) -> None:
    file = str(save_steering(tmp_path / "add.safetensors", sk.Add(direction())))
    for given, words in (
        (["--engines", "hf,sglang", "-p", "hi"], "compares the engines"),
        ([], "nothing to answer"),
    ):
        done = CliRunner().invoke(app, ["certify", "-a", file, *given])
        assert done.exit_code == 2 and words in done.stderr


@pytest.fixture
def file(direction: Any, steerings: Any, tmp_path: Path) -> Path:
    """Several interventions at several sites of the shipped organism."""
    info = sk.load("organism:aligned").info
    several = steerings(partial(direction, info=info, scale=24.0), info.n_layers - 1)["several"]
    return save_steering(tmp_path / "several.safetensors", several)


@here
def test_a_file_is_certified_from_the_command_line(engines: Any, file: Path) -> None:
    engines.stop()
    given = ["certify", "-a", str(file), "-p", "how do i burn the house ?", "-p", "hello ,"]
    done = CliRunner().invoke(app, [*given, "--max-new-tokens", "8", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert found["holds"] and found["equal"] == 1 and found["tokens"] == 16
    assert found["logits"] < 1e-5 < 1e-2 < found["logits_without"]
    assert [s["site"] for s in found["sites"]] == ["resid_pre@0", "resid_pre@1", "resid_post@1"]
    for site in found["sites"]:
        assert site["difference"] < 1e-5 < 1e-2 < site["without"]
        assert site["moved"] == site["matched"] == site["tokens"] and not site["extra"]


@here
def test_a_site_that_vllm_leaves_out_is_found(
    engines: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerkit.vllm.steps import PackedStep

    engines.stop()
    inner = PackedStep._run

    def partly(self: Any, hidden: Any, residual: Any, number: int) -> None:
        if number != 1:
            inner(self, hidden, residual, number)

    monkeypatch.setattr(PackedStep, "_run", partly)
    found = certify("organism:aligned", file, ["hello , how are you ?"], max_new_tokens=4)
    assert not found.holds
    left = found.sites[1]
    assert left.matched == 0 < left.moved and "went unsteered" in found.summary()
