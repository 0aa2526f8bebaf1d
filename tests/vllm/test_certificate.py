"""A certificate finds what differs, wherever it is planted, and holds where nothing does."""

import json
import math
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli import app
from steerkit.interventions import save_steering
from steerkit.site import Site
from steerkit.vllm.certificate import certified, certify
from steerkit.vllm.parity import Certificate, SiteParity, largest, logit_gap, site_parity

here = pytest.mark.skipif(
    find_spec("vllm") is None,
    reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit",
)
SITE = SiteParity("resid_post@1", 10, 1e-6, 0.5, 10, 10, 0, 6, 6, 6)


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
        "streams differ by 2.00e-03": made(replace(SITE, difference=2e-3)),
        "streams differ by nan": made(replace(SITE, difference=float("nan"))),
        "3 tokens went unsteered": made(replace(SITE, matched=7, decoded_matched=3)),
        "2 were steered in vLLM alone": made(replace(SITE, moved=7, matched=7, extra=2)),
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
    found = site_parity(Site(1), before, after, before, off, prompt_len=3)
    assert found.difference == pytest.approx(
        float((before[3] - after[3]).norm() / after[3].norm()), rel=1e-9
    )
    assert (found.tokens, found.moved, found.matched, found.extra) == (6, 4, 3, 1)
    assert (found.decoded, found.decoded_moved, found.decoded_matched) == (3, 1, 0)
    same = site_parity(Site(1), before, after, before, after, prompt_len=3)
    assert same.difference == 0 and same.without > 0.1
    off[3] = after[3]
    assert site_parity(
        Site(1), before, after, before, off, prompt_len=3
    ).difference == pytest.approx(1e-3)


def test_logits_are_compared_where_the_other_engine_names_them() -> None:
    logits = torch.tensor([3.0, 100.0, 4.0, 0.0])
    assert logit_gap(logits, {0: 3.0, 2: 4.0}) == 0
    assert logit_gap(logits, {0: 3.0, 2: 4.5}) == pytest.approx(0.1)


def test_a_difference_that_is_nan_stays_whatever_else_is_found() -> None:
    odd = replace(SITE, difference=float("nan"))
    assert math.isnan(SITE.joined(odd).difference) and math.isnan(odd.joined(SITE).difference)
    both = SITE.joined(replace(SITE, difference=2.0, matched=9, decoded_matched=5))
    assert (both.difference, both.moved, both.matched, both.decoded_matched) == (2.0, 20, 19, 11)
    assert (largest(1.0, 3.0), largest(3.0, 1.0)) == (3.0, 3.0)


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
        # Every decoded token: all of an answer but its last pass, one decode step each.
        assert site["decoded"] == site["decoded_matched"] == 2 * 7


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


def widened(source: Path, folder: Path, head: int = 32) -> Path:
    """A Llama checkpoint that computes the same with heads of a size that vLLM has on a CPU.

    Rotary pair i of a head of n places turns by theta^(-2i/n), and so does pair i * head / n of
    a wider one. The pairs are put there and the other places are 0; queries grow by what the
    attention divides by more.
    """
    config = json.loads((source / "config.json").read_text())
    old = config["head_dim"]
    pairs = torch.arange(old // 2) * (head // old)
    places = torch.cat([pairs, pairs + head // 2])
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        part = name.split(".")[-2]
        if part in ("q_proj", "k_proj", "v_proj"):
            narrow = weight.view(-1, old, weight.shape[-1])
            wide = narrow.new_zeros(len(narrow), head, weight.shape[-1])
            wide[:, places] = narrow * (math.sqrt(head / old) if part == "q_proj" else 1)
            weights[name] = wide.view(-1, weight.shape[-1])
        elif part == "o_proj":
            narrow = weight.view(len(weight), -1, old)
            wide = narrow.new_zeros(len(weight), narrow.shape[1], head)
            wide[..., places] = narrow
            weights[name] = wide.view(len(weight), -1)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "head_dim": head}))
    return folder


@here
def test_a_real_language_model_holds_its_certificate(
    engines: Any, shared: Path, direction: Any, steerings: Any, tmp_path: Path
) -> None:
    """Stories of 260,000 parameters; its heads of 8 are widened, which changes nothing."""
    from transformers import AutoModelForCausalLM

    source = shared / "models" / "stories260K"
    folder = widened(source, tmp_path / "stories260K")
    ids = torch.randint(3, 512, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        narrow, wide = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)(ids).logits
            for path in (source, folder)
        )
    assert float((wide - narrow).abs().max() / narrow.abs().max()) < 1e-10
    engines.stop()
    model = sk.load(folder)
    every = steerings(partial(direction, info=model.info, scale=3.0), model.info.n_layers - 1)
    prompts = [item.prompt for item in model.tokenize(["the cat saw a", "one day a girl"])]
    llm = engines.get(folder, skip_tokenizer_init=True, logprobs_mode="raw_logits")
    for kind, in_prompts in (("several", True), ("generated", False)):
        file = save_steering(tmp_path / f"{kind}.safetensors", every[kind])
        found = certified(llm, model, file, prompts, max_new_tokens=24)
        assert found.holds, found.summary()
        assert found.logits < 1e-5 < 1e-2 < found.logits_without and found.equal_without < 1
        for site in found.sites:
            assert site.difference < 1e-5 < 1e-2 < site.without
            # Every answer token but the last is decoded from, one step each.
            assert site.decoded == site.decoded_matched == 2 * 23
            assert site.matched - site.decoded_matched == in_prompts * (site.tokens - site.decoded)
