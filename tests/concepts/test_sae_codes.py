"""Concepts as changes of sparse codes: by hand, on planted codes, and on the organism."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.concepts import SaeCodes, bias_lens
from steerkit.concepts.cavs import Cavs, fit_cavs
from steerkit.datasets.occupations import occupation_concepts, sex_concepts
from steerkit.datasets.swapped import swapped
from steerkit.errors import DirectionError, MethodError
from steerkit.extraction.training import Training
from steerkit.organisms import occupations
from steerkit.site import Site

RATE = {o.name: o.rate for o in occupations()}
SOME = sorted(RATE, key=RATE.__getitem__)[::3]
NO_DRAWS = {"n_resamples": 0, "n_permutations": 0, "n_random": 0, "progress": False}


@dataclass
class Rectified:
    """The least that `SaeCodes` asks of an autoencoder: a latent for each half axis."""

    site: Site
    threshold: float = 0.0
    name: str = "rectified"
    info: Any = None
    d_sae: int = 64
    seen: list[int] = field(default_factory=list)

    def encode(self, x):
        self.seen.append(len(x))
        return torch.relu(torch.cat([x, -x], -1) - self.threshold).float()


def probes(seed=0, n=40, d=32, fits=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator).double()
    labels = (torch.arange(n) % 2).double()[:, None].repeat(1, fits)
    x += labels[:, :1] * torch.randn(d, generator=generator).double()
    counts = torch.randint(0, 3, (n, fits), generator=generator).double()
    rows = Training.of(x, [str(i) for i in range(n)])
    return fit_cavs(rows, labels, counts, method="logistic", tolerance=1e-6), labels, counts


def test_a_probe_knows_how_its_rows_count():
    for method in ("logistic", "mean_difference"):
        cavs, labels, counts = probes()
        rows = Training.of(cavs.rows, [str(i) for i in range(40)])
        again = fit_cavs(rows, labels, counts, method=method)
        gap = again.rows.T @ again.contrast
        for k in range(3):
            chosen = counts[:, k].long()
            x = cavs.rows.repeat_interleave(chosen, 0)
            y = labels[:, k].repeat_interleave(chosen)
            expected = x[y == 1].mean(0) - x[y == 0].mean(0)
            assert torch.allclose(gap[:, k], expected, atol=1e-12)
        if method == "mean_difference":
            assert torch.allclose(gap, again.weights)


def test_each_neutral_moves_as_little_as_reaches_the_probability():
    cavs, _, _ = probes()
    site = Site(1)
    neutral = torch.randn(20, 32, generator=torch.Generator().manual_seed(5)).double() * 2
    neutral[:8] += 6 * cavs.weights.mean(1) / cavs.weights.mean(1).norm()
    moved: list[torch.Tensor] = []

    class Linear(Rectified):
        def encode(self, x):
            moved.append(x)
            return torch.cat([x, -x], -1)

    codes = SaeCodes({site: Linear(site)}, {site: neutral}, probability=0.9)(site, cavs)
    after = moved[1].reshape(20, 3, 32).double()
    reached = torch.sigmoid((after * cavs.weights.T).sum(-1) + cavs.biases)
    before = torch.sigmoid(neutral @ cavs.weights + cavs.biases)
    stayed = before >= 0.9
    assert bool(stayed.any()) and bool((~stayed).any())
    assert torch.allclose(reached[~stayed], torch.tensor(0.9).double(), atol=1e-5)
    assert torch.allclose(reached[stayed], before[stayed], atol=1e-5)
    # Along the normal, so a linear code of it is the probe's own direction.
    for k in range(3):
        cosine = torch.cosine_similarity(codes[:32, k], cavs.weights[:, k], dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-6)


def test_codes_are_the_formula_one_by_one():
    cavs, _, _ = probes()
    site, neutral = Site(1), torch.randn(7, 32, generator=torch.Generator().manual_seed(6)).double()
    one = Rectified(site, threshold=0.4)
    found = SaeCodes({site: one}, {site: neutral}, probability=0.95)(site, cavs)
    goal = np.log(0.95 / 0.05)
    for k in range(3):
        w, b, total = cavs.weights[:, k], cavs.biases[k], torch.zeros(64).double()
        for a in neutral:
            step = max(0.0, float((goal - b - w @ a) / w.norm()))
            total += (one.encode((a + step * w / w.norm())[None]) - one.encode(a[None]))[0].double()
        assert torch.allclose(found[:, k], total / 7, atol=1e-5)
    # However many are encoded at a time.
    import steerkit.concepts.sae_codes as module

    before, module.ELEMENTS = module.ELEMENTS, 1
    try:
        again = SaeCodes({site: one}, {site: neutral}, probability=0.95)(site, cavs)
    finally:
        module.ELEMENTS = before
    assert torch.allclose(found, again, atol=1e-6)


def test_concepts_that_share_no_latent_have_a_cosine_of_exactly_zero_and_none_has_none():
    """Orthogonal concepts on their own axes; a high threshold leaves nothing at all."""
    axes = torch.eye(32).double()
    cavs = Cavs(axes[:, :2] * 3, torch.tensor([-1.0, -1.0]).double(), axes, axes[:, :2])
    site, neutral = Site(1), torch.zeros(4, 32).double()
    sparse = SaeCodes({site: Rectified(site)}, {site: neutral})(site, cavs)
    assert float(sparse[:, 0] @ sparse[:, 1]) == 0.0
    assert (sparse != 0).sum(0).tolist() == [1, 1]
    silent = SaeCodes({site: Rectified(site, threshold=1e6)}, {site: neutral})(site, cavs)
    assert not silent.any()


def test_a_site_without_any_active_latent_does_not_count(tiny_model):
    templates = [f"{a} {{w}} {b}" for a in ("the", "a", "one") for b in ("was sad", "is happy")]
    words = ["cat", "dog", "bird", "house", "tree", "river", "film", "book"]
    target = {"cat": swapped("cat", ["cat"], words[4:], templates)}
    references = (
        swapped("dogs", ["dog"], words[4:], templates),
        swapped("birds", ["bird"], words[4:], templates),
    )
    silent = SaeCodes.of(tiny_model, Rectified(Site(1), threshold=1e9), ["the sun"])
    found = bias_lens(tiny_model, target, references, represent=silent, gate=0.0, **NO_DRAWS)
    assert found.sites == ("resid_post@1",)
    assert found["cat"].active == (0,) and found["cat"].passed == ()
    assert np.isnan(found["cat"].signed.value) and not found["cat"].found
    assert found.ablation is not None and found.ablation["cat"].passed == ("resid_post@1",)
    assert found.ablation["cat"].active == (32,)


@pytest.fixture(scope="module")
def organism():
    model = sk.load("organism:aligned")
    return model, sk.load_sae("sae:organism", model=model)


@pytest.mark.parametrize("variant", ["perturbation", "difference", "encoder"])
def test_codes_of_the_shipped_autoencoder_follow_the_planted_rates(organism, variant):
    model, autoencoder = organism
    references = sex_concepts(n=4)
    neutral = [p for c in references for p in c.negative][::6][:32]
    codes = SaeCodes.of(model, autoencoder, neutral, variant=variant)
    targets = {name: c for name, c in occupation_concepts(n=4).items() if name in SOME}
    found = bias_lens(model, targets, references, represent=codes, **NO_DRAWS)
    agreement = found.agreement({name: RATE[name] for name in SOME})
    assert agreement.n == 14 and agreement.low > 0
    plain = bias_lens(model, targets, references, sites=[autoencoder.site], **NO_DRAWS)
    assert found.ablation is not None
    assert [r.by_site for r in found.ablation.targets] == [r.by_site for r in plain.targets]
    active = [row.active[0] for row in found.targets]
    sparse = variant != "encoder"
    assert all(0 < n < autoencoder.d_sae if sparse else n == autoencoder.d_sae for n in active)
    assert found.reference_active[0][0] > 0 and found.representation == codes.name


def test_the_difference_variant_is_the_difference_of_mean_codes(organism):
    model, autoencoder = organism
    one, other = sex_concepts(n=4)
    target = occupation_concepts(n=4)[SOME[0]]
    codes = SaeCodes.of(model, autoencoder, ["the king"], variant="difference")
    found = bias_lens(model, {"t": target}, (one, other), represent=codes, **NO_DRAWS)
    units = []
    for contrast in (target, one, other):
        acts = sk.capture(model, contrast, sites=[autoencoder.site], progress=False)
        code, y = autoencoder.encode(acts.values[:, 0]).double(), torch.tensor(acts.labels)
        gap = code[y == 1].mean(0) - code[y == 0].mean(0)
        units.append(gap / gap.norm())
    expected = float(units[0] @ units[1] - units[0] @ units[2])
    assert found["t"].by_site[0] == pytest.approx(expected, abs=1e-6)


def test_nulls_run_through_the_same_codes(organism):
    model, autoencoder = organism
    targets = {name: occupation_concepts(n=2)[name] for name in (SOME[0], SOME[-1])}
    references = sex_concepts(n=4)
    neutral = list(references[0].negative)[:16]
    found = bias_lens(
        model, targets, references, represent=SaeCodes.of(model, autoencoder, neutral),
        n_resamples=10, n_permutations=39, n_random=39, progress=False,
    )  # fmt: skip
    for row in found.targets:
        assert row.exchanged.n == row.random.n == 39
        assert row.signed.low <= row.signed.high
    assert found[SOME[0]].signed.value < found[SOME[-1]].signed.value


def test_bad_input_is_refused(organism, tiny_model):
    model, autoencoder = organism
    with pytest.raises(MethodError, match="no SAE representation 'codes'"):
        SaeCodes.of(model, autoencoder, ["a"], variant="codes")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="one autoencoder a site"):
        SaeCodes.of(model, [autoencoder, autoencoder], ["a"])
    with pytest.raises(MethodError, match="no neutral prompts"):
        SaeCodes.of(model, autoencoder, [])
    with pytest.raises(MethodError, match=r"between 0\.5 and 1"):
        SaeCodes.of(model, autoencoder, ["a"], probability=0.4)
    with pytest.raises(DirectionError, match="load it with"):
        SaeCodes.of(tiny_model, autoencoder, ["the cat"])
    codes = SaeCodes.of(model, autoencoder, ["the king"])
    target = {"t": occupation_concepts(n=2)[SOME[0]]}
    with pytest.raises(MethodError, match="is made for resid_post@1, not for resid_post@2"):
        bias_lens(model, target, sex_concepts(n=2), represent=codes, sites=[1, 2], **NO_DRAWS)
