"""Top contexts, histograms and promoted tokens against a dense look at everything."""

from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.errors import MethodError, ModelError
from steerkit.plotting.features import card_html, feature_figure
from steerkit.sae import cards, feature_activations, feature_cards, load_sae, rows

TEXTS = [
    "the cat is happy",
    "i loved the big red book and the film , thank you",
    "tell me how to make a cake",
    "sun and rain or a dog , one bird in the tree by the river",
    "she is sad",
]


@pytest.fixture(scope="module")
def model(tiny_folder: Any) -> Any:
    return sk.load(tiny_folder)


@pytest.fixture
def sae(make: Any, model: Any) -> Any:
    return load_sae(make("standard", d=32, f=50), model=model)


def test_cards_show_what_a_dense_look_finds(sae: Any, model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", 4 * 50 * 5)
    found = feature_activations(sae, model, TEXTS)
    dense = found.dense()
    for card in feature_cards(sae, model, TEXTS, [3, 11], n_contexts=3, window=2):
        mine = dense[:, card.feature]
        assert card.rows == len(mine) and card.active == int((mine > 0).sum())
        assert card.mean_active == pytest.approx(float(mine[mine > 0].mean()), rel=1e-4)
        assert card.maximum == pytest.approx(float(mine.max()), rel=1e-4)
        assert int(card.counts.sum()) == card.active
        peaks = torch.stack([mine[found.prompt_index == i].max() for i in range(len(TEXTS))])
        order = peaks.argsort(descending=True)[:3].tolist()
        assert [context.prompt_index for context in card.contexts] == order
        for context in card.contexts:
            assert context.value == pytest.approx(float(peaks[context.prompt_index]), rel=1e-4)
            here = (found.prompt_index == context.prompt_index) & (
                found.positions == context.position
            )
            assert context.tokens[context.peak] == model.decode(found.tokens[here].tolist())
            assert len(context.tokens) <= 5 and context.value == max(v for v in context.activations)


def test_a_histogram_that_widens_counts_what_one_of_the_final_width_does() -> None:
    values = torch.rand(5000, generator=torch.Generator().manual_seed(0)).cumsum(0) / 100
    seen = cards._Seen(1)
    for part in values.split(100):
        seen._count(part)
    wanted = torch.histc(values, cards.BINS, 0, seen.top)
    assert int(seen.counts.sum()) == 5000
    # Values at an edge may fall to either side of it by rounding.
    assert (seen.counts - wanted).abs().sum() <= 6


def test_promoted_tokens_are_those_of_the_unembedding(sae: Any, model: Any) -> None:
    (card,) = feature_cards(sae, model, TEXTS, 7)
    read = model.read_out(sae.sae.W_dec.detach()[[7]])[0]
    assert card.towards[0] == (model.decode([int(read.argmax())]), pytest.approx(float(read.max())))
    assert card.away[0][1] == pytest.approx(float(read.min()))


def test_steering_by_a_feature(sae: Any, model: Any) -> None:
    """Clamping writes (target - f) d, the SAE's error kept; adding writes mean activation x d."""
    batch = model.encode(TEXTS[:1])
    site = sae.site
    before = model.run(batch, sites=[site], logits="none").streams[site].float()
    features = sae.encode(before)
    (card,) = feature_cards(sae, model, TEXTS, 7)
    row = sae.decoder(7)
    clamped = model.with_(sae.set(7, 2.0)).run(batch, sites=[site], logits="none").streams[site]
    wanted = before + (2.0 - features[..., 7:8]) * row
    torch.testing.assert_close(clamped.float(), wanted, rtol=1e-4, atol=1e-4)
    added = model.with_(sk.Add(card.direction(), strength=1.0))
    out = added.run(batch, sites=[site], logits="none").streams[site].float()
    torch.testing.assert_close(out, before + card.mean_active * row, rtol=1e-4, atol=1e-4)


def test_figures_and_pages_escape_what_tokens_hold(sae: Any, model: Any) -> None:
    (card,) = feature_cards(sae, model, TEXTS, 3)
    fig = feature_figure(card)
    assert sum(fig.data[0].y) == card.active and len(fig.data[1].x) == 16
    assert "Feature 3" in card._repr_html_()
    from dataclasses import replace

    odd = replace(card, towards=(("<b>", 1.0),), contexts=())
    assert "&lt;b&gt;" in card_html(odd) and "never on" in card_html(odd)
    assert "&lt;b&gt;" in feature_figure(odd).layout.yaxis2.ticktext


def test_bad_input(sae: Any, model: Any) -> None:
    with pytest.raises(ModelError, match="no feature 50"):
        feature_cards(sae, model, TEXTS, [3, 50])
    with pytest.raises(MethodError, match="at least one feature"):
        feature_cards(sae, model, TEXTS, [])
