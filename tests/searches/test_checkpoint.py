"""An interrupted search goes on where it stood, and ends as if nothing had happened."""

import json
from pathlib import Path
from typing import Any

import pytest

from steerkit.direction import Directions
from steerkit.errors import OutputError
from steerkit.prompts import Contrast
from steerkit.searches import Sweep, search, selection
from steerkit.searches.checkpoint import Checkpoint


def find(toy: Any, directions: Directions, held_out: Contrast, **settings: Any) -> Sweep:
    small: dict[str, Any] = {"n_random": 19, "null_budget": 400, "progress": False}
    return search(toy, directions, held_out, max_new_tokens=9, **{**small, **settings})


@pytest.mark.parametrize("after", [1, 2, 5])
def test_an_interrupted_search_ends_like_an_undisturbed_one(
    toy: Any,
    toy_directions: Directions,
    toy_held_out: Contrast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    monkeypatch.setattr(selection, "AT_ONCE", 4)
    expected = find(toy, toy_directions, toy_held_out).to_json()
    path = tmp_path / "deep" / "search.jsonl"
    keep, taken = Checkpoint.keep, []

    def interrupted(self: Checkpoint, name: str, value: Any) -> Any:
        if len(taken) == after:
            raise KeyboardInterrupt
        taken.append(name)
        return keep(self, name, value)

    monkeypatch.setattr(Checkpoint, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find(toy, toy_directions, toy_held_out, checkpoint=path)
    before = path.read_text()
    again: list[str] = []

    def counted(self: Checkpoint, name: str, value: Any) -> Any:
        again.append(name)
        return keep(self, name, value)

    monkeypatch.setattr(Checkpoint, "keep", counted)
    found = find(toy, toy_directions, toy_held_out, checkpoint=path).to_json()
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)
    # What was on disk was not measured again.
    assert path.read_text().startswith(before)
    assert not set(again) & set(taken) and len(taken) == after


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    kept = Checkpoint(path, {"seed": 0})
    kept.keep("a", [1.0])
    kept.keep("b", [2.0])
    path.write_text(path.read_text()[:-5])
    again = Checkpoint(path, {"seed": 0})
    assert again.found == {"a": [1.0]}
    again.keep("b", [3.0])
    assert Checkpoint(path, {"seed": 0}).found == {"a": [1.0], "b": [3.0]}


def test_another_search_does_not_go_on_from_it(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast, tmp_path: Path
) -> None:
    path = tmp_path / "c.jsonl"
    settings: dict[str, Any] = {"n_random": 0, "checkpoint": path}
    find(toy, toy_directions, toy_held_out, **settings)
    for changed, named in (
        ({"strengths": (0.5,)}, "candidates"),
        ({"guard_max": 0.5}, "guards"),
        ({"objective": "projection"}, "objective"),
        ({"seed": 1}, "random directions"),
    ):
        with pytest.raises(OutputError, match=f"of another search: it differs in {named}"):
            find(toy, toy_directions, toy_held_out, **{**settings, **changed})
    with pytest.raises(OutputError, match="differs in candidates; search as before"):
        find(toy, toy_directions[:2], toy_held_out, **settings)


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with pytest.raises(OutputError, match="is not a search's checkpoint"):
        Checkpoint(path, {})
    assert path.read_text() == "dear diary\n"
