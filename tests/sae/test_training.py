"""A dictionary that was planted is learnt; what is saved is SAELens' own format."""

import json
from typing import Any

import pytest
import torch
from sae_lens import SAE

import steerkit as sk
from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError, ModelError, OutputError
from steerkit.prompts import Prompt
from steerkit.sae import feature_statistics, load_sae, train_sae
from steerkit.site import Site

D, F, ON = 32, 24, 3


@pytest.fixture(scope="module")
def model(tiny_folder: Any) -> Any:
    return sk.load(tiny_folder)


@pytest.fixture(scope="module")
def dictionary() -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(F, D, generator=torch.Generator().manual_seed(1)), dim=1
    )


@pytest.fixture(scope="module")
def acts(model: Any, dictionary: torch.Tensor) -> Activations:
    """Each row is the sum of three of 24 directions, far from zero."""
    generator = torch.Generator().manual_seed(0)
    n = 6000
    on = torch.rand(n, F, generator=generator).argsort(1) < ON
    x = (on * (1 + torch.rand(n, F, generator=generator))) @ dictionary + 0.7
    return Activations(
        values=x[:, None],
        sites=(Site(1),),
        prompts=(Prompt("planted"),),
        labels=(),
        groups=(),
        pooling="all",
        info=model.info,
        prompt_index=torch.zeros(n, dtype=torch.long),
        positions=torch.arange(n),
        tokens=torch.zeros(n, dtype=torch.long),
    )


@pytest.mark.parametrize("architecture", ["batchtopk", "topk"])
def test_a_planted_dictionary_is_learnt(
    acts: Any, dictionary: torch.Tensor, architecture: str, tmp_path: Any
) -> None:
    sae = train_sae(
        acts,
        d_sae=2 * F,
        k=ON,
        architecture=architecture,
        n_tokens=150_000,
        batch_size=256,
        out=tmp_path / "sae",
        progress=False,
    )
    rows = torch.nn.functional.normalize(sae.sae.W_dec.detach(), dim=1)
    best = (dictionary @ rows.T).amax(1)
    assert best.min() > 0.95
    seen = feature_statistics(sae, acts)
    assert seen.variance_explained > 0.95 and seen.l0 == pytest.approx(ON, rel=0.15)
    # The numbers in the file are about rows that were not trained on, and agree with these.
    assert sae.claims["variance_explained"] == pytest.approx(seen.variance_explained, abs=0.02)
    assert sae.claims["l0"] == pytest.approx(seen.l0, rel=0.1)
    assert sae.architecture == {"batchtopk": "jumprelu", "topk": "topk"}[architecture]


def test_saelens_loads_what_is_saved_and_only_this_model_may_use_it(
    acts: Any, model: Any, tmp_path: Any
) -> None:
    folder = tmp_path / "sae"
    ours = train_sae(acts, k=4, n_tokens=4096, out=folder, progress=False)
    theirs = SAE.load_from_disk(folder)
    x = acts.at(1)[:50]
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=0, atol=0)
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert ours.site == Site(1) and ours.d_sae == 8 * D
    assert load_sae(folder, model=model).checks["same_weights"] is True
    written = json.loads((folder / "cfg.json").read_text())
    written["metadata"]["steerkit_fingerprint"] = "0" * 64
    (folder / "cfg.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match="was trained on"):
        load_sae(folder, model=model)
    with pytest.raises(OutputError, match="holds an SAE already"):
        train_sae(acts, n_tokens=2048, out=folder, progress=False)


def test_the_same_seed_gives_the_same_sae_and_leaves_chance_alone(acts: Any) -> None:
    state = torch.random.get_rng_state()
    a, b, c = (
        train_sae(acts, d_sae=40, n_tokens=4096, seed=seed, progress=False) for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(a.sae.W_dec, b.sae.W_dec) and not torch.equal(a.sae.W_dec, c.sae.W_dec)


def test_trained_through_the_model(model: Any) -> None:
    sae = train_sae(
        model, ["the cat is happy and the dog is sad"] * 20, site=2, n_tokens=2048, progress=False
    )
    assert sae.info == model.info and sae.site == Site(2)
    assert isinstance(model.with_(sae.set(3, 1.0)), type(model))


def test_bad_input(acts: Any, model: Any) -> None:
    with pytest.raises(MethodError, match="no SAE architecture named 'relu' to train"):
        train_sae(acts, architecture="relu")
    with pytest.raises(MethodError, match="k = 99 is out of range"):
        train_sae(acts, d_sae=40, k=99)
    with pytest.raises(ActivationError, match="5 tokens are too few"):
        train_sae(acts.select(range(5)))
    with pytest.raises(ActivationError, match="needs texts and a site"):
        train_sae(model, ["the cat"])
    with pytest.raises(ActivationError, match="these rows are 'last'"):
        train_sae(sk.capture(model, ["the cat"], progress=False))
    with pytest.raises(ActivationError, match="3 sites were captured; say which"):
        train_sae(sk.capture(model, ["the cat"], positions="all", progress=False))
