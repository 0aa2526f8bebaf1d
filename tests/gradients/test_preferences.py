"""Pairs of answers: how they are read, split and refused."""

import pytest

from steerkit.errors import PromptError
from steerkit.gradients.preferences import Pairs, Preference
from steerkit.prompts import Prompt


def test_a_triple_is_a_preference():
    assert Preference.of(("the cat", "yes", "no")) == Preference(Prompt("the cat"), "yes", "no")


def test_answers_of_a_pair_stand_side_by_side(tiny_model, preferences):
    pairs = Pairs.of(tiny_model, preferences).take([5, 2])
    assert [i.prompt for i in pairs.items[::2]] == [i.prompt for i in pairs.items[1::2]]
    spoken = [tiny_model.decode(i.answer) for i in pairs.items]
    assert spoken == ["very happy", "sad and bad"] * 2
    assert pairs.prompts[0].text == "the tree was"


def test_a_split_holds_whole_groups_and_about_its_share(tiny_model, preferences):
    pairs = Pairs.of(tiny_model, preferences)
    for seed in range(5):
        some, rest = pairs.split(0.3, seed=seed)
        assert not {*some.groups} & {*rest.groups}
        assert len(some) + len(rest) == len(pairs) == 24 and len(some) == 8
    again = pairs.split(0.3, seed=1)[0].preferences
    assert again == pairs.split(0.3, seed=1)[0].preferences
    assert again != pairs.split(0.3, seed=2)[0].preferences


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "no preferences"),
        (["the cat"], "a preference is"),
        ([("the cat", "yes")], "a preference is"),
        ([("the cat", "yes", "")], "both answers"),
        ([("the cat", "yes", "yes")], "are the same"),
    ],
)
def test_bad_pairs_are_refused(tiny_model, bad, message):
    with pytest.raises(PromptError, match=message):
        Pairs.of(tiny_model, bad)


def test_one_group_cannot_be_split(tiny_model):
    pairs = Pairs.of(tiny_model, [(Prompt("the cat", group="a"), "yes", "no")] * 3)
    with pytest.raises(PromptError, match="3 preferences in 1 group"):
        pairs.split(0.3, seed=0)
