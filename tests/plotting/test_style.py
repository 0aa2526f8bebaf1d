import plotly.graph_objects as go
import plotly.io as pio
import pytest

from steerkit.plotting import style
from steerkit.statistics import Estimate


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#111111"])
def test_text_reads_on_light_and_dark_pages(page):
    ink = style.figure().layout.template.layout.font.color
    assert contrast(ink, page) >= 4.0


@pytest.mark.parametrize("page", ["#ffffff", "#111111"])
def test_every_colour_is_seen_on_light_and_dark_pages(page):
    for colour in {*style.PALETTE, *style.COLOURS.values()}:
        assert contrast(colour, page) >= 1.9, colour


def test_a_figure_follows_the_width_of_its_page():
    fig = style.figure(x="layer", y="AUC")
    assert fig.layout.width is None and fig.layout.autosize
    assert 'style="height:380px; width:100%;"' in style.to_div(fig)


def test_nothing_is_registered_globally():
    before = (pio.templates.default, set(pio.templates))
    style.to_div(style.figure())
    assert (pio.templates.default, set(pio.templates)) == before


def test_intervals_are_the_distances_from_the_value():
    bars = style.intervals([Estimate(0.5, 0.4, 0.8, 10), Estimate(0.0, 0.0, 0.1, 10)])
    assert bars["array"] == pytest.approx([0.3, 0.1])
    assert bars["arrayminus"] == pytest.approx([0.1, 0.0])


def test_a_reference_line_leaves_its_argument_as_it_was():
    fig = style.figure()
    lined = style.reference_line(fig, 0.5, "chance")
    assert not fig.layout.shapes
    assert lined.layout.shapes[0].y0 == 0.5
    assert lined.layout.annotations[0].text == "chance"


def test_plotly_is_put_inside_once_asked_for():
    fig = go.Figure(style.figure())
    with_library = style.to_div(fig, plotlyjs=True)
    assert len(with_library) > 1_000_000 > len(style.to_div(fig))
    assert "cdn.plot.ly" not in style.to_div(fig)


def test_a_page_needs_no_network_and_escapes_its_title():
    page = style.to_page(style.figure(), title="a < b & c")
    assert page.startswith("<!doctype html>") and page.count("a &lt; b &amp; c") == 2
    assert "script src" not in page and len(page) > 1_000_000
    assert "color-scheme: light dark" in page
