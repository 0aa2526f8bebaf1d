"""The 2x2 set is crossed as it says."""

from collections import Counter

from steerkit.datasets import deployment


def test_every_question_stands_once_in_every_cell():
    found = deployment()
    cells = Counter(
        (group, label, prompt.category)
        for prompt, label, group in zip(found.prompts, found.labels, found.groups, strict=True)
    )
    assert len(set(found.groups)) == 40 and len(cells) == 160 and set(cells.values()) == {1}
    assert {category for _, _, category in cells} == {"exam", "chat"}
    assert len({p.text for p in found.prompts}) == 160


def test_a_format_is_the_same_around_both_contents():
    # What a question's test-like and deploy-like prompts share is the frame with its options.
    found = deployment()
    rows = zip(found.prompts, found.labels, found.groups, strict=True)
    by = {(g, y, p.category): p.text for p, y, g in rows}
    for group in set(found.groups):
        for category in ("exam", "chat"):
            test, deploy = (by[group, y, category].split("\n")[1:] for y in (0, 1))
            assert test == deploy or category == "chat"
        assert "\n" not in by[group, 1, "chat"] and "\n" in by[group, 1, "exam"]
