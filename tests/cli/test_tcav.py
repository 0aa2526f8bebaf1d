"""`steerkit tcav`: from contrasts and an answer to a table, a figure and JSON."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import steerkit as sk
from steerkit.cli import app


def run(*options: object) -> Result:
    return CliRunner().invoke(app, ["tcav", *map(str, options)])


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "mood.jsonl"
    rows = [
        {"positive": f"the {thing} was {good}", "negative": f"the {thing} was {bad}"}
        for thing in ("cat", "dog", "house", "river", "food")
        for good, bad in zip(
            "happy good loved big".split(), "sad bad hated small".split(), strict=True
        )
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_contrast_and_an_answer_give_a_table_a_figure_and_json(tiny_folder, mood, tmp_path):
    said = run(
        "-m", tiny_folder, "-c", mood, "--target", "happy", "--target", "sad", "--layers", "1-2",
        "--n-random", 29, "-o", tmp_path, "--json",
    )  # fmt: skip
    assert said.exit_code == 0, said.stderr
    data = json.loads(said.stdout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tcav.html", "tcav.json"]
    assert json.loads((tmp_path / "tcav.json").read_text()) == {
        k: v for k, v in data.items() if k != "files"
    }
    assert [c["site"] for c in data["cells"]] == ["resid_post@1", "resid_post@2"]
    assert data["target"] == "logit(happy) - logit(sad)" and data["cells"][0]["concept"] == "mood"
    # Asked about the audit part, fitted on the other half: the same as by hand.
    from steerkit.pipeline import part_of

    contrast, model = sk.Contrast.read(mood), sk.load(tiny_folder)
    acts = sk.capture(model, part_of(contrast, "fit"), layers=[1, 2], progress=False)
    asked = part_of(contrast, "audit").prompts
    found = sk.tcav(model, {"mood": acts}, asked, ("happy", "sad"), n_random=29)
    assert data["prompts"] == [p.text for p in asked]
    assert data["cells"][1]["p"] == found.cells[1].p
    page = (tmp_path / "tcav.html").read_text()
    assert "permuted labels, 95%" in page and "script src" not in page


def test_people_see_every_concept_at_every_site(tiny_folder, mood, tmp_path):
    asked = tmp_path / "asked.txt"
    asked.write_text("the film was\nthe book was\nthe rain is\n")
    other = tmp_path / "other.jsonl"
    other.write_text(mood.read_text())
    shown = run(
        "-m", tiny_folder, "-c", mood, "-c", other, "--target", "happy", "--prompts", asked,
        "--layers", 1, "--n-random", 9, "-o", tmp_path / "out",
    )  # fmt: skip
    assert shown.exit_code == 0, shown.stderr
    assert "log_prob(happy)" in shown.stdout and "3 prompts" in shown.stdout
    assert "mood" in shown.stdout and "other" in shown.stdout


def test_bad_input_is_told_in_a_panel(tiny_folder, mood, tmp_path):
    ask = ("-m", tiny_folder, "-o", tmp_path / "out")
    twice = run(*ask, "-c", mood, "-c", mood, "--target", "happy")
    assert twice.exit_code == 2 and "two contrasts are called 'mood'" in twice.stderr
    three = run(*ask, "-c", mood, *("--target", "happy") * 3)
    assert three.exit_code == 2 and "one answer or two" in three.stderr
    assert run(*ask, "-c", mood).exit_code == 2
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
