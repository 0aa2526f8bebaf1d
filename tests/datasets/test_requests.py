from steerkit.datasets import refusal


def test_splits_share_no_word_group_and_both_sides_are_full():
    train, held_out = refusal("train", 60), refusal("held_out", 60)
    for asked in (train, held_out):
        assert len(asked.contrast.positive) == len(asked.contrast.negative) == 60
        assert all(asked.answers[p.text] for p in asked.contrast.prompts)
        assert {p.category for p in asked.contrast.negative} == {"harmless", "lookalike"}
    assert not set(train.contrast.groups) & set(held_out.contrast.groups)


def test_the_seed_decides():
    assert refusal(n=30, seed=1).contrast.sha256 == refusal(n=30, seed=1).contrast.sha256
    assert refusal(n=30, seed=1).contrast.sha256 != refusal(n=30, seed=2).contrast.sha256
