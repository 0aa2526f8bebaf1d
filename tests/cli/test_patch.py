"""`steerkit patch`: what it writes is what the library finds, and its page is whole."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import steerkit as sk
from steerkit.cli import app
from steerkit.lenses import activation_patching


def run(*options: str | Path) -> Result:
    return CliRunner().invoke(app, [str(option) for option in options], terminal_width=200)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "mood.jsonl"
    rows = [
        {"positive": f"the {thing} was {good}", "negative": f"the {thing} was {bad}"}
        for thing, good, bad in (
            ("cat", "happy", "sad"),
            ("dog", "good", "bad"),
            ("house", "loved", "hated"),
            ("river", "big", "small"),
        )
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_it_writes_the_map_that_the_library_makes(tiny_folder, tmp_path, pairs):
    out = tmp_path / "map"
    result = run(
        "patch", "-m", tiny_folder, "-c", pairs, "--towards", "sun", "--away", "rain", "--streams",
        "resid_post,heads", "--positions=-2,-1", "-o", out, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert sorted(p.name for p in out.iterdir()) == ["map.html", "map.json"]
    written = json.loads((out / "map.json").read_text())
    found = activation_patching(
        sk.load(tiny_folder),
        sk.Contrast.read(pairs),
        answers=("sun", "rain"),
        streams=("resid_post", "heads"),
        positions=[-2, -1],
        progress=False,
    )
    assert written["normalised"] == pytest.approx(found.normalised, abs=1e-5)
    assert written["places"] == [str(p) for p in found.places]
    assert said["pairs"] == 4 and said["largest"][0]["value"] == pytest.approx(
        found.ranked[0][2].value, abs=1e-5
    )
    assert said["peak"]["place"] == str(found.peak().place)
    page = (out / "map.html").read_text()
    assert page.count("plotly-graph-div") == 2 and "http-equiv" not in page
    assert str(found.ranked[0][0]) in page


def test_attribution_and_what_people_see(tiny_folder, tmp_path, pairs):
    result = run(
        "patch", "-m", tiny_folder, "-c", pairs, "--method", "attribution", "--limit", "2",
        "--towards", "sun", "--away", "rain", "-o", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "attribution patching: 2 pairs in 2 groups" in result.stdout
    assert "fewer than 4 groups of pairs" in result.stdout
    again = run("patch", "-m", tiny_folder, "-c", pairs, "-o", tmp_path)
    assert again.exit_code == 2 and "--force" in again.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "atribution"], "did you mean 'attribution'"),
        (["--towards", "sun"], "give both"),
        (["--positions", "last"], "positions are 'each', 'whole' or numbers"),
        (["--streams", "resid_pots"], "did you mean 'resid_post'"),
        (["--layers", "7"], "has layers 0..2"),
        (["--metric", "logits"], "no metric named 'logits'"),
        (["--align", "left"], "no alignment named 'left'"),
    ],
)
def test_bad_input_is_one_panel_and_leaves_nothing(tiny_folder, tmp_path, pairs, options, says):
    out = tmp_path / "map"
    result = run("patch", "-m", tiny_folder, "-c", pairs, "-o", out, *options)
    assert result.exit_code == 2 and not out.exists()
    assert says in " ".join(line.strip("│ ") for line in result.stderr.splitlines())
