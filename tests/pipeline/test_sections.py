from steerkit.pipeline.sections import null_section
from steerkit.searches.nulls import NullDraws
from steerkit.statistics import Estimate


def row(reference: str, positions: str, value: float, effect: float, allowed: bool = True):
    from types import SimpleNamespace

    estimate = Estimate(value, value, value, 9, "fraction")
    return SimpleNamespace(
        reference=reference, positions=positions, value=estimate, effect=Estimate(effect, 0, 1, 9),
        allowed=allowed, guard=None, how=f"ablate to {reference}",
    )  # fmt: skip


def test_the_text_says_which_reference_point_and_position_rule_were_needed():
    from types import SimpleNamespace

    from steerkit.pipeline.sections import _reference_sentence

    rows = [
        row("zero", "all", 1.0, 0.0),
        row("negative_mean", "all", 0.1, 0.9),
        row("negative_mean", "last_prompt", 0.0, 1.0, allowed=False),
        row("negative_mean", "last_prompt", 0.2, 0.8),
    ]
    text = _reference_sentence(SimpleNamespace(rows=rows, objective="refusal"))
    assert "to zero at all: refusal 1.00" in text
    assert "to negative_mean at all: refusal 0.10" in text
    assert "to negative_mean at last_prompt: refusal 0.20" in text
    assert _reference_sentence(SimpleNamespace(rows=rows[:1], objective="refusal")) == ""


def test_nulls_stand_in_the_table_with_their_size():
    from types import SimpleNamespace

    draws = NullDraws("isotropic", 0.9, (0.0, 0.1, 0.2))
    section = null_section(
        SimpleNamespace(final=None, searched=draws, objective="refusal", unit="fraction")
    )
    assert section.rows == (("isotropic", "0.9", "0.1", "0.19", "0.2", "0.25", "3"),)
    assert section.figure is None
