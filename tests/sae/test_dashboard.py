"""A dashboard holds what the cards hold, and nulls that are what they say."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.errors import MethodError, ModelError
from steerkit.plotting.dashboard import dashboard_page, sides_figure, view_figure
from steerkit.sae import feature_cards, feature_dashboard, find_features, load_sae


@pytest.fixture(scope="module")
def model() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def sae(model: Any) -> Any:
    return load_sae("sae:organism", model=model)


@pytest.fixture(scope="module")
def contrast() -> Any:
    return refusal("held_out", n=60, seed=3)


@pytest.fixture(scope="module")
def found(model: Any, sae: Any, contrast: Any) -> Any:
    acts = sk.capture(model, contrast, sites=[sae.site], positions="last", progress=False)
    return find_features(sae, acts, n=3, n_permutations=99)


@pytest.fixture(scope="module")
def dashboard(model: Any, sae: Any, contrast: Any, found: Any) -> Any:
    return feature_dashboard(sae, model, contrast, found, n_contexts=4, n_random=199)


def test_views_are_the_cards_with_nulls_beside_them(
    dashboard: Any, model: Any, sae: Any, contrast: Any, found: Any
) -> None:
    numbers = [f.feature for f in found]
    cards = feature_cards(sae, model, contrast, numbers, n_contexts=4)
    assert [view.card.feature for view in dashboard] == numbers
    for view, card in zip(dashboard, cards, strict=True):
        assert view.card.to_json() == card.to_json()
        row = sae.decoder(card.feature)
        drawn = torch.randn(199, len(row), generator=torch.Generator().manual_seed(0))
        drawn = drawn / drawn.norm(dim=1, keepdim=True) * row.norm()
        largest, own = model.read_out(drawn).amax(1), model.read_out(row[None])[0]
        assert view.promoted.p == (1 + int((largest >= own.max()).sum())) / 200
        assert view.suppressed.p == (1 + int((largest >= -own.min()).sum())) / 200


def test_a_row_of_the_unembedding_beats_the_null_and_random_rows_do_not(
    model: Any, sae: Any, contrast: Any, monkeypatch: Any
) -> None:
    """Planted: features that write towards a token; and twenty that write anywhere."""
    generator = torch.Generator().manual_seed(1)
    planted = sae.sae.W_dec.detach().clone()
    planted[:20] = torch.randn(20, sae.d_model, generator=generator)
    reader = model.engine.network.lm_head.weight.detach().float()
    planted[20:25] = reader[100:105]
    monkeypatch.setattr(sae.sae.W_dec, "data", planted)
    made = feature_dashboard(
        sae, model, contrast.positive[:3], list(range(25)), n_contexts=1, n_random=199
    )
    p = np.array([view.promoted.p for view in made])
    assert (p[:20] <= 0.05).sum() <= 5  # 99.9% of binomial(20, 0.05)
    assert (p[20:] <= 0.05).all()


def test_sides_are_the_activations_of_the_contrasts_prompts(
    dashboard: Any, sae: Any, found: Any
) -> None:
    acts = found.acts
    dense = sae.encode(acts.at(sae.site))
    labels = np.array(acts.labels)
    for view in dashboard:
        wanted = dense[:, view.card.feature].double().numpy()
        for side, label in zip(view.sides, (1, 0), strict=True):
            assert np.allclose(np.sort(side), np.sort(wanted[labels == label]), atol=1e-5)
        assert view.found.feature == view.card.feature


def test_one_file_holds_every_feature_and_needs_no_network(dashboard: Any, tmp_path: Any) -> None:
    page = dashboard.write(tmp_path / "features.html").read_text()
    assert page.count("<section>") == 3 and page.count("plotly-graph-div") == 7
    for view in dashboard:
        assert f"href='#f{view.card.feature}'" in page and f"id='f{view.card.feature}'" in page
    assert "<script src" not in page and "<link" not in page
    data = json.loads(json.dumps(dashboard.to_json()))
    assert len(data["features"]) == 3 and data["features"][0]["promoted"]["n"] == 199
    assert "held-out AUC" in dashboard.table() and "<table>" in dashboard._repr_html_()
    fig = view_figure(dashboard.views[0])
    lines = [shape.x0 for shape in fig.layout.shapes]
    assert sorted(lines) == sorted(
        [dashboard.views[0].promoted.q95, -dashboard.views[0].promoted.q95]
    )
    bars = sides_figure(dashboard.views[0], "refusal").data
    assert [sum(bar.y) for bar in bars] == [60, 60]


def test_features_by_number_need_no_contrast_and_text_is_escaped(
    model: Any, sae: Any, monkeypatch: Any
) -> None:
    made = feature_dashboard(sae, model, ["how do i burn the house ?"], [14], n_random=9)
    assert made.found is None and made.views[0].sides is None
    assert not sides_figure(made.views[0], "").data
    monkeypatch.setattr(type(made), "summary", lambda self: "<script>alert(1)</script>")
    assert "<script>alert" not in dashboard_page(made)


def test_bad_input_is_refused(model: Any, sae: Any, found: Any, make: Any) -> None:
    with pytest.raises(ModelError, match="no feature 512"):
        feature_dashboard(sae, model, ["hello ."], [512])
    with pytest.raises(MethodError, match="at least one random direction"):
        feature_dashboard(sae, model, ["hello ."], [1], n_random=0)
    other = load_sae(make("jumprelu", d=96, f=90), model=model)
    with pytest.raises(MethodError, match=r"found with sae:organism"):
        feature_dashboard(other, model, ["hello ."], found)
