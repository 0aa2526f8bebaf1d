"""Views of one network answer in one batch, and say what each says alone."""

from typing import Any

import pytest

import steerkit as sk
from steerkit.models import LanguageModel
from steerkit.models.together import generate_together
from steerkit.prompts import Prompt
from steerkit.suites import Material

LONGEST = 16


@pytest.fixture(scope="module")
def prompts() -> tuple[Prompt, ...]:
    return Material.of_organisms(14, seed=2).contrasts["refusal"].prompts


@pytest.fixture(scope="module")
def direction() -> sk.Direction:
    contrast = Material.of_organisms(20, split="train").contrasts["refusal"]
    acts = sk.capture(sk.load("organism:aligned"), contrast, progress=False)
    return sk.extract(acts, n_folds=0, progress=False).at(2)


@pytest.fixture(scope="module")
def views(direction: sk.Direction) -> dict[str, Any]:
    model = sk.load("organism:aligned")
    ablated = model.with_(sk.Ablate(direction, reference="negative_mean"))
    return {
        "plain": model,
        "ablated": ablated,
        "pushed": model.with_(sk.Add(direction, 0.7, positions="last_prompt")),
        "other": sk.load("organism:base"),
        "twice": ablated.with_(sk.Add(direction, 0.7)),
    }


@pytest.mark.parametrize(
    "names",
    [
        ("plain", "ablated"),
        ("ablated", "pushed"),
        ("plain", "ablated", "twice"),
        ("other", "plain", "pushed"),
    ],
)
def test_every_view_says_what_it_says_alone(
    names: tuple[str, ...], views: dict[str, Any], prompts: tuple[Prompt, ...]
) -> None:
    asked = [(views[name], prompt) for prompt in prompts for name in names]
    said = generate_together(asked, max_new_tokens=LONGEST)
    assert [one.prompt for one in said] == [prompt for _, prompt in asked]
    for i, name in enumerate(names):
        alone = views[name].generate(prompts, max_new_tokens=LONGEST)
        assert said[i :: len(names)] == alone
    tokens = {name: [one.tokens for one in said[i :: len(names)]] for i, name in enumerate(names)}
    assert len({tuple(t) for t in tokens.values()}) == len(names), "the views differ"


def test_views_of_one_network_share_batches_and_another_network_does_not(
    views: dict[str, Any], prompts: tuple[Prompt, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int] | None] = []
    generate = LanguageModel.generate

    def counted(self: Any, given: Any, **options: Any) -> Any:
        calls.append(options["slots"])
        return generate(self, given, **options)

    monkeypatch.setattr(LanguageModel, "generate", counted)
    names = ("plain", "ablated", "pushed", "other")
    generate_together([(views[n], p) for p in prompts[:2] for n in names], max_new_tokens=2)
    assert sorted(calls, key=len) == [[0, 0], [0, 1, 2, 0, 1, 2]]  # type: ignore[arg-type]


class Capped(LanguageModel):
    """Stands for compiled views, whose slots are of a table of stated capacity."""


def test_slots_of_a_compiled_table_are_not_filled(
    views: dict[str, Any], prompts: tuple[Prompt, ...]
) -> None:
    """Only the plain view joins a steered one then, and every view answers all the same."""
    names = ("plain", "ablated", "pushed")
    capped = {n: Capped(views[n].engine, views[n].table, views[n].steering) for n in names}
    said = generate_together([(capped[n], p) for p in prompts[:4] for n in names])
    for i, name in enumerate(names):
        assert said[i::3] == views[name].generate(prompts[:4])
