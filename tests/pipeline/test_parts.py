import pytest

from steerkit.errors import PromptError
from steerkit.pipeline import PARTS, part_of
from steerkit.prompts import Contrast


def contrast(n: int = 40, *, paired: bool = True) -> Contrast:
    return Contrast.of(
        [f"good {i}" for i in range(n)], [f"bad {i}" for i in range(n)], paired=paired
    )


@pytest.mark.parametrize("paired", [True, False])
def test_parts_share_no_group_and_make_the_whole(paired):
    whole = contrast(paired=paired)
    parts = [part_of(whole, name, seed=3) for name in ("fit", "search", "audit")]
    groups = [set(p.groups) for p in parts]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert sum(map(len, parts)) == len(whole)
    assert [len(p.positive) for p in parts] == [20, 10, 10]


def test_a_part_follows_from_the_seed_alone():
    assert (
        part_of(contrast(), "audit", seed=1).sha256 == part_of(contrast(), "audit", seed=1).sha256
    )
    assert (
        part_of(contrast(), "audit", seed=1).sha256 != part_of(contrast(), "audit", seed=2).sha256
    )
    assert part_of(contrast(), "all") == contrast()


def test_a_limit_keeps_pairs_together():
    few = part_of(contrast(), "fit", limit=5)
    assert len(few.positive) == 5 and few.paired
    for good, bad in zip(few.positive, few.negative, strict=True):
        assert good.text.split()[1] == bad.text.split()[1]
    assert set(few.groups) <= set(part_of(contrast(), "fit").groups)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(PromptError, match="too few; add prompts or groups"):
        part_of(contrast(2), "search")
    with pytest.raises(PromptError, match="did you mean 'audit'"):
        part_of(contrast(), "audits")
    assert "all" in PARTS
