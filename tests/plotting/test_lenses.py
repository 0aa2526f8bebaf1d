"""What is drawn is what was found."""

import html

import numpy as np
import pytest

import steerkit as sk
from steerkit.errors import MethodError
from steerkit.lenses import (
    activation_patching,
    attribution_patching,
    direct_logit_attribution,
    logit_lens,
)
from steerkit.plotting import lenses as figures

CLEAN = ["the cat was happy", "a dog was good ."]
CORRUPTED = ["the dog was happy", "a dog was bad ."]


def raw(texts):
    return [sk.Prompt(text, template="raw") for text in texts]


def patched(model, verb=activation_patching, **settings):
    return verb(
        model, raw(CLEAN), raw(CORRUPTED), answers=("sun", "rain"), progress=False, **settings
    )


@pytest.fixture(scope="module")
def found(tiny_model):
    return patched(tiny_model, streams=("resid_post", "mlp_out", "heads"))


@pytest.fixture(scope="module")
def lens(tiny_model):
    return logit_lens(tiny_model, raw(CLEAN), tokens=["sun", "rain"], progress=False)


@pytest.fixture(scope="module")
def attributed(tiny_model):
    return direct_logit_attribution(tiny_model, raw(CLEAN), ("sun", "rain"), heads=True)


def test_a_panel_a_stream_holds_its_layers_and_positions(found):
    fig = figures.patching_map(found)
    panels = [trace for trace in fig.data if trace.type == "heatmap"]
    assert [a.text for a in fig.layout.annotations] == ["mlp_out", "resid_post"]
    at = found.cells
    for panel, stream in zip(panels, ("mlp_out", "resid_post"), strict=True):
        for layer in range(3):
            for j, position in enumerate(found.positions):
                cell = at[f"{stream}@{layer}", position]
                assert panel.z[layer][j] == found.normalised[cell]
                assert (
                    str(found.estimate(f"{stream}@{layer}", position))
                    in (panel.customdata[layer][j])
                )
    assert [html.unescape(t) for t in fig.layout.xaxis2.ticktext] == list(found.labels)
    assert fig.layout.coloraxis.cmax == max(1, np.nanmax(np.abs(found.normalised)))
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax


def test_whole_positions_are_panels_side_by_side(tiny_model):
    whole = patched(tiny_model, streams=("resid_pre", "attn_out"), positions="whole")
    fig = figures.patching_map(whole)
    assert [len(trace.z[0]) for trace in fig.data] == [1, 1]
    assert fig.data[0].z[0][0] == pytest.approx(1.0, abs=1e-4)


def test_heads_are_drawn_at_the_position_asked_for(found, tiny_model):
    for position in (-1, -3):
        fig = figures.head_map(found, position=position)
        for layer in range(3):
            for head in range(4):
                cell = found.cells[f"head{head}@{layer}", position]
                assert fig.data[0].z[layer][head] == found.normalised[cell]
    with pytest.raises(MethodError, match="no position -9"):
        figures.head_map(found, position=-9)
    alone = patched(tiny_model, streams="heads")
    with pytest.raises(MethodError, match="holds heads alone"):
        figures.patching_map(alone)
    with pytest.raises(MethodError, match="has no heads"):
        figures.head_map(patched(tiny_model, streams="mlp_out"))


def test_agreement_puts_each_cell_at_both_its_values(found, tiny_model):
    estimate = patched(tiny_model, attribution_patching, streams=("resid_post", "mlp_out"))
    fig = figures.agreement(found, estimate)
    drawn = {t.name: t for t in fig.data if t.mode == "markers"}
    assert set(drawn) == {"resid_post", "mlp_out"}
    last = found.cells["resid_post@2", -1], estimate.cells["resid_post@2", -1]
    assert drawn["resid_post"].x[-1] == found.normalised[last[0]]
    assert drawn["resid_post"].y[-1] == estimate.normalised[last[1]]
    assert f"correlation {found.agreement(estimate):.2f}" == fig.layout.annotations[0].text


def test_the_lens_shows_each_cell_s_likeliest_token(lens):
    fig = figures.lens_map(lens, prompt=0)
    # The first prompt is one token shorter than the second.
    # What looks like a tag is shown, not read as one.
    assert list(fig.layout.xaxis.ticktext) == ["&lt;bos&gt;", "the", "cat", "was", "happy"]
    words = {(a.y, a.x): a.text for a in fig.layout.annotations}
    for i, site in enumerate(lens.sites):
        word, p = lens.top(0, site, -1)[0]
        assert html.unescape(words[i, 4]) == word
        assert fig.data[0].z[i][4] == p
    with pytest.raises(MethodError, match="no prompt 2: the lens read 2"):
        figures.lens_map(lens, prompt=2)


def test_followed_tokens_are_drawn_by_layer(lens):
    fig = figures.lens_by_layer(lens)
    assert [trace.name for trace in fig.data] == ["sun", "rain"]
    assert fig.data[1].y[2] == lens.mean("probs", "resid_post@2", -1, 1).value
    assert figures.lens_by_layer(lens, what="kl").data[0].y[2] == pytest.approx(0, abs=1e-9)
    assert figures.lens_by_layer(lens, what="ranks").layout.yaxis.type == "log"
    with pytest.raises(MethodError, match="the lens has no 'prob'"):
        figures.lens_by_layer(lens, what="prob")


def test_bars_add_up_to_the_total(attributed):
    fig = figures.attribution_bars(attributed, n=5)
    (bars,) = fig.data
    assert bars.y[-2] == f"{len(attributed.components) - 5} others" and bars.y[-1] == "total"
    assert sum(bars.x[:-1]) == pytest.approx(attributed.whole.value, abs=1e-4)
    kept = [name for name, _ in attributed.ranked[:5]]
    assert set(bars.y[:5]) == set(kept)
    # A network without biases: those components are rounding and get no bar.
    assert not any("bias" in name for name in figures.attribution_bars(attributed).data[0].y)
