"""`steerkit capture --dataset` and `steerkit store`: a folder, its verification, its exports."""

import json

import datasets
import pytest
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli import app
from steerkit.datasets import refusal


def run(*options):
    return CliRunner().invoke(app, [str(option) for option in options])


def answer(*options, code=0):
    result = run(*options, "--json")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("store")
    rows = [{"text": f"how do i bake the {w} ?", "kind": w} for w in ("bread", "cake") * 20]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": 0}]))
    return out


CAPTURE = ("capture", "-m", "organism:base", "--layers", "1,2", "--positions", "all")


def test_a_dataset_on_the_command_line(folder):
    start = (*CAPTURE, "--dataset", folder / "rows.jsonl", "--out", folder / "acts")
    refused = run(*start)
    assert refused.exit_code == 2 and "row 40 of the dataset" in " ".join(refused.stderr.split())
    more = ("--on-bad-row", "skip", "--store-as", "int8", "--rows-per-shard", "8")
    about = answer(*start, *more)
    assert about["prompts"] == 40 and about["shards"] == 5 and about["missing"] == 0
    assert about["sites"] == {"resid_post@1": "int8", "resid_post@2": "int8"}
    assert about["dataset"]["bad_rows"]["skipped"] == [[40, "its 'text' is a int, not text"]]
    assert answer("store", "info", folder / "acts") == {
        key: value for key, value in about.items() if key != "store"
    }
    shown = run("store", "info", folder / "acts").stdout
    assert "40, 1 skipped" in shown and "relative error at most" in shown

    store = sk.ActivationStore(folder / "acts")
    assert answer("store", "verify", folder / "acts")["ok"]
    file = store.path / store.manifest.tasks()[2].name
    data = bytearray(file.read_bytes())
    data[-3] ^= 255
    file.write_bytes(data)
    found = answer("store", "verify", folder / "acts", code=2)
    assert found["damaged"] == [store.manifest.tasks()[2].name] and found["marked"]
    assert answer(*start, *more)["sha256"] == store.sha256

    out = answer("store", "export", folder / "acts", "--out", folder / "hf", "--to", "dataset",
                 "--sites", "resid_post@2")  # fmt: skip
    assert out["rows"] == len(store) == len(datasets.load_from_disk(str(folder / "hf")))
    out = answer("store", "export", folder / "acts", "--out", folder / "sl", "--context-size", 7)
    assert out["rows"] + out["left_out"] == len(store) and out["left_out"] < 7


def test_wrong_usage_says_what_to_do(folder):
    for options, message in (
        (("capture", "-m", "organism:base"), "either --contrast"),
        ((*CAPTURE, "--dataset", "x", "-c", "y"), "either --contrast"),
        ((*CAPTURE, "--dataset", folder / "rows.jsonl"), "give --out DIR"),
        (("store", "info", folder), "no activation store file at"),
        (("store", "export", folder, "--out", "x", "--to", "npy"), "not exported to 'npy'"),
    ):
        result = run(*options)
        text = " ".join(result.stderr.replace("│", " ").split())
        assert result.exit_code == 2 and message in text, text


@pytest.mark.parametrize("name", ["info", "verify", "export"])
def test_every_help_teaches_by_examples(name):
    shown = run("store", name, "--help").stdout
    assert shown.count(f"steerkit store {name}") >= 3 and "Examples:" in shown


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Harmful and harmless requests in one file, and in a contrast's."""
    out = tmp_path_factory.mktemp("labelled")
    drawn = refusal("train", n=40)
    rows = [
        {"text": p.text, "label": label, "group": group, "half": "ab"[i % 2]}
        for i, (p, label, group) in enumerate(
            zip(drawn.prompts, drawn.labels, drawn.groups, strict=True)
        )
    ]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_directions_come_from_a_store_and_from_sums_alone(labelled):
    base = ("capture", "-m", "organism:base", "--layers", "2")
    rows = ("--dataset", labelled / "rows.jsonl")
    answer(*base, *rows, "--out", labelled / "acts")
    sums = answer(
        *base, *rows, "--out", labelled / "sums", "--sum-by", "label", "--group-by", "half"
    )
    assert {tuple(cell): n for *cell, n in sums["counts"]} == {
        (label, half): 20 for label in "01" for half in "ab"
    }
    for kind in ("acts", "sums"):
        answer("extract", labelled / kind, "--methods", "lda", "-o", labelled / f"{kind}.st")
    stored, summed = (sk.Directions.load(labelled / f"{kind}.st")[0] for kind in ("acts", "sums"))
    assert float(stored.unit @ summed.unit) > 1 - 1e-6
    assert stored.scores is not None and summed.scores is None
    answer("extract", labelled / "sums", "--without", "a", "-o", labelled / "half.st")
    halved = sk.Directions.load(labelled / "half.st")
    assert halved[0].provenance["n_positive_rows"] == 20
    assert {d.method for d in halved} >= {"mean_difference", "lda", "leace", "ridge"}
    refused = run("extract", labelled / "sums", "--between", "1", "-o", labelled / "no.st")
    assert refused.exit_code == 2 and "there are 0, 1" in " ".join(refused.stderr.split())
    found = answer("probe", labelled / "acts", "--out", labelled / "probe", "--no-untrained")
    assert found["files"]


def test_an_sae_is_trained_from_a_store(folder):
    given = ("--dataset", folder / "rows.jsonl", "--on-bad-row", "skip")
    run(*CAPTURE, *given, "--rows-per-shard", "8", "--out", folder / "tokens")
    small = ("--d-sae", 32, "--k", 4, "--n-tokens", 2048, "--batch-size", 128)
    made = answer("sae", "train", "--store", folder / "tokens", "--site", 1, *small, "--out",
                  folder / "sae")  # fmt: skip
    assert made["d_sae"] == 32 and made["site"] == "resid_post@1"
    refused = run("sae", "train", "--store", folder / "tokens", "--texts", "x.txt")
    assert refused.exit_code == 2 and "or on a --store" in " ".join(refused.stderr.split())
