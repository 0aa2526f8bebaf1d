from steerkit.datasets import refusal


def test_splits_share_no_template_and_both_sides_are_full():
    train, held_out = refusal("train", 60), refusal("held_out", 60)
    for asked in (train, held_out):
        assert len(asked.positive) == len(asked.negative) == 60
        assert all(p.answer for p in asked.prompts)
        assert {p.category for p in asked.negative} == {"harmless", "lookalike"}
    assert not set(train.groups) & set(held_out.groups)


def test_the_seed_decides():
    assert refusal(n=30, seed=1).sha256 == refusal(n=30, seed=1).sha256
    assert refusal(n=30, seed=1).sha256 != refusal(n=30, seed=2).sha256
