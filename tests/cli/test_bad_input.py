"""What a user may get wrong: one clear panel, exit code 2, nothing left behind."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steerkit.cli import app


def panel(*options: str | Path) -> str:
    """The text of the one panel that a wrong command shows."""
    result = CliRunner().invoke(app, [str(option) for option in options], terminal_width=200)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    text = result.stderr[result.stderr.index("╭") :]
    assert text.count("╭") == 1
    return " ".join(line.strip("│ ") for line in text.splitlines()[1:-1])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    things = ("cat", "dog", "house", "river", "food", "film")
    rows = [
        {"positive": f"the {colour} {thing} was good", "negative": f"the {colour} {thing} was bad"}
        for thing in things
        for colour in ("red", "blue", "big", "small")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("organism:alined", "did you mean 'aligned'"),
        ("{tiny}/../tiny-lama", "did you mean 'tiny-llama'"),
        ("{tmp}", "is not a model folder"),
    ],
)
def test_an_unknown_model(model, says, tiny_folder, tmp_path, pairs):
    name = model.format(tiny=tiny_folder, tmp=tmp_path)
    out = tmp_path / "out"
    assert says in panel("run", "-m", name, "-c", pairs, "-o", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("none.jsonl", None, "no contrast file at"),
        (
            "c.jsonl",
            '{"positive": "a b", "negative": ""}\n',
            "has an empty negative side; a pair needs both",
        ),
        ("c.json", '{"positive": ["a"]}', "needs a positive and a negative list"),
        ("c.csv", "text,label\nsun,1\nrain,1\n", "no negative prompts"),
        ("c.jsonl", "", "is empty"),
        ("c.jsonl", "{", "is not valid JSONL"),
        ("c.yaml", "a", "contrasts are .jsonl, .json or .csv files"),
        ("c.json", '{"positive": ["a", "b"], "negative": ["c", "d"]}', "too few; add prompts"),
    ],
)
def test_a_contrast_that_cannot_be_read(name, text, says, tiny_folder, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    out = tmp_path / "out"
    assert says in panel("run", "-m", tiny_folder, "-c", tmp_path / name, "-o", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layers", "9"], "layers 0..2"),
        (["--layers=-1"], "layers read '3', '3,5' or '4-12'"),
        (["--streams", "resid_pots"], "did you mean 'resid_post'"),
        (["--methods", "mean_diference"], "did you mean 'mean_difference'"),
        (["--operator", "ablat"], "did you mean 'ablate'"),
        (["--objective", "refusl"], "did you mean 'refusal'"),
        (["--aim", "induse"], "did you mean 'induce'"),
        (["--positions", "last_promt"], "did you mean 'last_prompt'"),
        (["--references", "negative"], "did you mean 'negative_mean'"),
        (["--strengths", "1,x"], "strengths are numbers"),
        (["--max-kl", "-1"], "positive number of nats"),
        (["--template", "chatt"], "did you mean 'chat'"),
        (["--towards", "good"], "give both"),
    ],
)
def test_an_option_that_names_nothing(options, says, tiny_folder, tmp_path, pairs):
    out = tmp_path / "out"
    assert says in panel("run", "-m", tiny_folder, "-c", pairs, "-o", out, *options)
    assert not out.exists()


def test_a_tokenizer_without_chat_template(bare_folder, tmp_path, pairs):
    out = tmp_path / "a.safetensors"
    shown = panel("capture", "-m", bare_folder, "-c", pairs, "-o", out, "--template", "chat")
    assert "has no chat template; use template='raw' or 'auto'" in shown
    assert not out.exists()


def test_a_prompt_longer_than_the_context(tiny_folder, tmp_path, pairs):
    long = tmp_path / "long.jsonl"
    long.write_text(pairs.read_text() + json.dumps({"positive": "cat " * 99, "negative": "dog"}))
    shown = panel("capture", "-m", tiny_folder, "-c", long, "--part", "all", "-o", tmp_path / "a")
    assert "is too long" in shown and "context is 64 tokens" in shown


def test_an_output_that_cannot_be_written(tiny_folder, tmp_path, pairs):
    (tmp_path / "file").write_text("in the way")
    for command in ("run", "capture"):
        shown = panel(command, "-m", tiny_folder, "-c", pairs, "-o", tmp_path / "file" / "out")
        assert "is not a writable folder" in shown
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_output_that_exists_is_kept(tiny_folder, tmp_path, pairs):
    out = tmp_path / "a.safetensors"
    out.write_text("mine")
    assert "exists; pass --force" in panel("capture", "-m", tiny_folder, "-c", pairs, "-o", out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("command", ["extract", "search", "steer", "audit"])
def test_a_file_of_another_kind(command, tmp_path, pairs, tiny_model):
    import steerkit as sk

    acts = sk.capture(tiny_model, ["the cat", "the dog"], progress=False)
    wrong = tmp_path / "wrong.safetensors"
    acts.save(wrong)
    options = {
        "extract": ["-o", tmp_path / "d.safetensors"],
        "search": ["-c", pairs, "-o", tmp_path / "s"],
        "steer": ["-p", "hello"],
        "audit": ["-c", pairs, "-o", tmp_path / "s"],
    }[command]
    shown = panel(command, wrong, *options)
    assert "have no labels" in shown if command == "extract" else "holds activations, not" in shown
    assert "no " in panel(command, tmp_path / "none.safetensors", *options)


def test_nothing_to_answer(tmp_path):
    assert "give --prompt TEXT or --prompts FILE" in panel("steer", tmp_path / "s.safetensors")
