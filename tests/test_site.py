"""Sites: read, ordered, refused."""

import itertools
import random

import pytest

from steerkit.errors import SiteError
from steerkit.site import STREAMS, Site, sites_of


def test_text_round_trips() -> None:
    for layer, stream in itertools.product((0, 7, 31), STREAMS):
        site = Site(layer, stream)
        assert Site.parse(str(site)) == site == Site.parse(site)
    assert Site.parse(4) == Site.parse(" 4 ") == Site(4, "resid_post")


def test_order_is_the_order_of_a_forward_pass() -> None:
    sites = [Site(layer, stream) for layer in range(3) for stream in STREAMS]
    shuffled = random.Random(0).sample(sites, len(sites))
    assert sorted(shuffled) == sites
    assert Site(0, "resid_post") < Site(1, "resid_pre") <= Site(1, "resid_pre")
    with pytest.raises(TypeError):
        _ = Site(0) < 1  # type: ignore[operator]


def test_sites_of() -> None:
    assert sites_of(None, "mlp_out", 2) == (Site(0, "mlp_out"), Site(1, "mlp_out"))
    both = sites_of([1, 0, 1], ["resid_post", "attn_out"], 9)
    assert both == (
        Site(0, "attn_out"),
        Site(0, "resid_post"),
        Site(1, "attn_out"),
        Site(1, "resid_post"),
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("residpost@3", "no stream named 'residpost'; did you mean 'resid_post'"),
        ("resid_post@-1", "layers count from 0; got -1. Negative layers are refused"),
        (-2, "layers count from 0; got -2"),
        ("resid_post", r"a site reads 'stream@layer', such as 'resid_post@3'; got 'resid_post'"),
        ("3@resid_post", "a site reads 'stream@layer'"),
        ("", "a site reads 'stream@layer'"),
    ],
)
def test_unreadable_sites(given: str | int, text: str) -> None:
    with pytest.raises(SiteError, match=text):
        Site.parse(given)


@pytest.mark.parametrize("layer", [True, 1.0, "1", None])
def test_layers_are_ints(layer: object) -> None:
    with pytest.raises(SiteError, match="a layer is an int counted from 0; got"):
        Site(layer)  # type: ignore[arg-type]
