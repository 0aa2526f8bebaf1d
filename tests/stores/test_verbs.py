"""A store equals `capture`, row for row, whatever happened on the way to it."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import steerkit as sk
from steerkit import mapped
from steerkit.errors import ActivationError, MethodError, ModelError, OutputError, PromptError
from steerkit.stores import ActivationStore, capture_dataset
from steerkit.stores.executors import Processes
from steerkit.stores.records import NOTE

FIELDS = ("prompt_index", "positions", "tokens")


@pytest.mark.parametrize("positions", ["last", "mean_prompt", "all", -2])
def test_a_store_holds_what_capture_gives_on_the_same_prompts(model, data, harvest, positions):
    store = harvest(positions=positions, exclude_bos=positions == "all")
    acts = sk.capture(
        model,
        [row["text"] for row in data],
        sites=("resid_post@1", "resid_post@3"),
        positions=positions,
        exclude_bos=positions == "all",
        progress=False,
    )
    found = store.to_activations()
    assert len(store) == len(acts) and store.n_prompts == len(data)
    assert_close(found.values, acts.values, rtol=1e-5, atol=2e-5)
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(acts, name)), name
    assert found.prompts == acts.prompts and found.sites == acts.sites
    assert found.pooling == acts.pooling and found.info == acts.info
    assert found.labels == tuple(row["label"] for row in data)
    ids, length = store.token_ids(17)
    item = model.tokenize([data[17]["text"]])[0]
    assert tuple(ids.tolist()) == item.prompt and length == len(item.prompt)


def test_every_option_of_capture_means_the_same_here(model, harvest, tmp_path):
    """Spans, sinks, answers, streams before interventions, and a steered model."""
    prompts = [
        {"text": f"how do i bake the {word} ?", "answer": "with care"}
        for word in ("bread", "cake", "soup", "big red cake")
    ]
    unit = torch.eye(model.info.d_model)[0]
    about = {"method": "given", "concept": "", "model": model.info, "pooling": "last"}
    vector = sk.Direction(
        unit=unit, site=sk.Site(1), scale=3.0, positive_mean=1.0, negative_mean=0.0, **about
    )
    steered = model.with_(sk.Add(vector))
    for i, (subject, options) in enumerate(
        (
            (model, {"positions": sk.captures.Span("bake the")}),
            (model, {"positions": "mean_answer"}),
            (model, {"positions": "all", "exclude_sinks": 1.5}),
            (model, {"positions": "mean_prompt", "exclude_sinks": True, "exclude_bos": True}),
            (steered, {"positions": "all"}),
            (steered, {"positions": "last", "before": True}),
        )
    ):
        out = tmp_path / str(i)
        found = harvest(out, model=subject, dataset=prompts, rows_per_shard=3, **options)
        acts = sk.capture(subject, prompts, sites=found.sites, progress=False, **options)
        rows = found.to_activations()
        assert_close(rows.values, acts.values, rtol=1e-5, atol=2e-5)
        for name in (*FIELDS, "prompts", "pooling", "steering"):
            one, other = getattr(rows, name), getattr(acts, name)
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, name
    assert not torch.equal(harvest(tmp_path / "plain", dataset=prompts).at(3), rows.values[:, 1])
    with pytest.raises(OutputError, match="more sites would leave out others"):
        harvest(
            tmp_path / "2", dataset=prompts, rows_per_shard=3, positions="all",
            exclude_sinks=1.5, sites="resid_post@0",
        )  # fmt: skip


def test_a_dataset_that_breaks_off_leaves_nothing_that_is_in_the_way(harvest, data, pooled):
    def breaks():
        yield from data[:40]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(dataset=breaks())
    with pytest.raises(PromptError, match="holds no prompts yet"):
        harvest(dataset=None)
    assert harvest(dataset=iter(data)).sha256 == pooled.sha256


def test_row_counts_are_exact(model, tmp_path):
    texts = (f"how do i bake the {word} ?" for word in ["bread", "cake"] * 400)
    store = capture_dataset(model, texts, out=tmp_path / "s", layers=0, limit=512, progress=False)
    assert len(store) == store.n_prompts == 512
    assert store.manifest.dataset["rows"] == 512
    assert sum(part.stop - part.start for part in store.manifest.parts) == 512
    assert store.prompt_index().tolist() == list(range(512))


def test_the_same_call_gives_the_same_bytes(harvest, pooled, tmp_path):
    again = harvest(tmp_path / "again")
    assert again.sha256 == pooled.sha256
    for task in again.manifest.tasks():
        assert (again.path / task.name).read_bytes() == (pooled.path / task.name).read_bytes()


def test_a_finished_store_is_not_run_again(harvest, counted):
    first = harvest()
    idle = counted()
    assert harvest(model=idle).sha256 == first.sha256
    assert idle.runs == 0
    assert harvest(model=idle, dataset=None).sha256 == first.sha256


def test_an_interrupted_capture_goes_on_where_it_was(harvest, counted, pooled, tmp_path):
    whole = counted()
    harvest(tmp_path / "whole", model=whole)
    with pytest.raises(KeyboardInterrupt):
        harvest(model=counted(break_at=whole.runs // 2))
    half = ActivationStore(tmp_path / "store")
    done = len(half.manifest.parts) - len(half.missing)
    assert 0 < done < len(half.manifest.parts) and not half.complete
    with pytest.raises(OutputError, match=r"is not finished: \d of 4 shards .* again to go on"):
        half.at("resid_post@1")
    rest = counted()
    store = harvest(model=rest)
    per_shard = whole.runs / len(store.manifest.parts)
    assert rest.runs <= whole.runs - done * per_shard + 1e-9 or rest.runs < whole.runs
    assert store.sha256 == pooled.sha256
    assert not list(store.path.rglob(".*.tmp")) and not list(store.path.rglob(f"*{NOTE}"))


def test_a_shard_whose_record_was_lost_is_adopted_and_not_computed_again(
    harvest, counted, monkeypatch, tmp_path
):
    """As after a kill between the rename and the record: the file and its note are there."""
    monkeypatch.setattr("steerkit.stores.records.Appender.add", _killed)
    with pytest.raises(KeyboardInterrupt):
        harvest()
    monkeypatch.undo()
    (there,) = (tmp_path / "store" / "shards").glob("*.safetensors")
    assert there.with_name(there.name + NOTE).is_file()
    whole, rest = counted(), counted()
    harvest(tmp_path / "whole", model=whole)
    before = there.stat().st_mtime_ns
    store = harvest(model=rest)
    assert there.stat().st_mtime_ns == before and rest.runs < whole.runs
    assert store.sha256 == ActivationStore(tmp_path / "whole").sha256
    assert sum(record.resumed for record in store.finished.rows.records) == 1


def _killed(*_):
    raise KeyboardInterrupt


def test_what_is_left_of_a_write_and_a_torn_record_are_swept(harvest, pooled, tmp_path):
    store = harvest()
    name = store.manifest.tasks()[1].name
    stray = (store.path / name).with_name(f".{name.partition('/')[2]}.ab12.tmp")
    stray.write_bytes((store.path / name).read_bytes()[:100])
    (store.path / name).unlink()
    log = store.path / "records.jsonl"
    log.write_bytes(log.read_bytes()[:-40])  # cuts off the record of the last shard
    assert set(ActivationStore(store.path).missing) == {name, store.manifest.tasks()[-1].name}
    assert harvest().sha256 == pooled.sha256
    assert not stray.exists()
    assert all(json.loads(line)["name"] for line in log.read_text().splitlines())


def test_a_full_disk_is_an_error_that_says_so_and_loses_nothing(
    harvest, pooled, monkeypatch, tmp_path
):
    create, calls = mapped.create, []

    def full(path, layout, metadata):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return create(path, layout, metadata)

    monkeypatch.setattr(mapped, "create", full)
    with pytest.raises(OutputError, match="No space left on device"):
        harvest()
    monkeypatch.undo()
    half = ActivationStore(tmp_path / "store")
    assert len(half.missing) == 2 and not list(half.path.rglob(".*.tmp"))
    assert harvest().sha256 == pooled.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "mean_prompt"}, r"pooling \(.*'last'.* there, .*'mean_prompt'.* asked\)"),
        ({"token_budget": 64}, r"token_budget \(4096 there, 64 asked\)"),
        ({"dtype": "int8"}, r"dtype of resid_post@1 \(float32 there, int8 asked\)"),
        ({"rows_per_shard": 8}, r"rows_per_shard \(16 there, 8 asked\)"),
        ({"limit": 20}, "another dataset: it differs in rows 16 to 19"),
        ({"limit": 32}, "another dataset: it has 60 rows, and this one 32"),
        ({"template": "raw"}, "another dataset"),
    ],
)
def test_another_spec_or_dataset_does_not_mix(harvest, change, message):
    before = harvest().sha256
    with pytest.raises(OutputError, match=message):
        harvest(**change)
    assert harvest().sha256 == before


def test_another_model_or_steering_does_not_mix(harvest, model):
    harvest()
    with pytest.raises(OutputError, match=r"another capture \(of organism:base\).* model \("):
        harvest(model=sk.load("organism:aligned"))
    unit = torch.eye(model.info.d_model)[0]
    about = {"method": "given", "concept": "", "model": model.info, "pooling": "last"}
    vector = sk.Direction(
        unit=unit, site=sk.Site(1), scale=1.0, positive_mean=1.0, negative_mean=0.0, **about
    )
    with pytest.raises(OutputError, match="differs in steering"):
        harvest(model=model.with_(sk.Add(vector)))


def test_a_changed_row_does_not_mix_and_is_named(harvest, data):
    store = harvest()
    changed = [dict(row) for row in data]
    changed[40]["weight"] = -1.0
    with pytest.raises(OutputError, match="it differs in rows 32 to 47"):
        harvest(dataset=changed)
    lost = store.path / store.manifest.parts[1].file
    text = lost.read_bytes()
    lost.unlink()
    harvest()
    assert lost.read_bytes() == text, "what was lost is written again"
    lost.write_bytes(text.replace(b"i", b"j"))
    (store.path / store.manifest.tasks()[1].name).unlink()
    with pytest.raises(PromptError, match=r"rows 16 to 31 .*hash is not the manifest's"):
        harvest(dataset=None)
    harvest()
    assert lost.read_bytes() == text and ActivationStore(store.path).verify().ok


def test_a_second_driver_on_the_folder_loses_and_the_first_goes_on(harvest, data, pooled):
    def interrupted():
        for i, row in enumerate(data):
            if i == 40:  # the first is reading its dataset
                with pytest.raises(OutputError, match=r"another capture is writing to .*store"):
                    harvest()
            yield row

    assert harvest(dataset=interrupted()).sha256 == pooled.sha256


def test_a_folder_of_other_files_is_left_alone(harvest, tmp_path):
    out = tmp_path / "mine"
    (out / "prompts").mkdir(parents=True)
    (out / "prompts" / "notes.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="holds files that are no store, such as notes"):
        harvest(out)
    (out / "prompts" / "notes.jsonl").unlink()
    (out / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"such as README\.md"):
        harvest(out)
    assert (out / "README.md").read_text() == "mine"


def test_sites_added_later_are_of_the_same_rows(harvest, counted, model, tmp_path):
    first = harvest(sites="resid_post@1")
    shutil.copytree(first.path, tmp_path / "copy")
    run = counted()
    store = harvest(model=run, sites=("resid_post@1", "attn_out@2", "resid_post@3"), dataset=None)
    assert [spec.sites for spec in store.manifest.groups] == [
        ("resid_post@1",),
        ("attn_out@2", "resid_post@3"),
    ]
    together = harvest(tmp_path / "together", sites=store.sites)
    for site in store.sites:
        assert_close(store.at(site), together.at(site), rtol=1e-5, atol=1e-5)
    for task in first.manifest.tasks():
        old = (tmp_path / "copy" / task.name).read_bytes()
        assert (store.path / task.name).read_bytes() == old
    for spec in store.manifest.groups:
        column = store.finished.table(spec).column("prompt", torch.arange(60))
        assert torch.equal(column, together.prompt_index())
    idle = counted()
    harvest(model=idle, sites="resid_post@3")
    assert idle.runs == 0


def test_bad_rows_are_named_skipped_or_shortened(model, harvest, data, tmp_path):
    long = " ".join(["bread"] * 300)
    rows = [
        *data[:5],
        {"text": ""},
        {"text": 7},
        *data[5:9],
        {"text": None},
        {"text": long},
        "ok ?",
    ]
    for i, message in ((5, "'text' is empty"), (6, "'text' is a int, not text")):
        with pytest.raises(PromptError, match=f"row {i} of the dataset .*{message}.*on_bad_row"):
            harvest(dataset=[rows[0]] * i + [rows[i]])
    with pytest.raises(PromptError, match=r"row 1 .*too long: it has 30\d tokens"):
        harvest(dataset=[rows[0], rows[12]])
    store = harvest(dataset=rows, on_bad_row="skip")
    bad = store.manifest.dataset["bad_rows"]
    assert [number for number, _ in bad["skipped"]] == [5, 6, 11, 12]
    assert store.n_prompts == len(store) == 10 and store.prompt(9).text == "ok ?"
    exact = harvest(tmp_path / "exact", dataset=rows, on_bad_row="skip", limit=9)
    assert exact.n_prompts == 9, "bad rows do not count towards the limit"
    short = harvest(tmp_path / "short", dataset=[long, "ok ?"], on_bad_row="truncate", max_tokens=9)
    assert [number for number, _ in short.manifest.dataset["bad_rows"]["truncated"]] == [0]
    assert len(short.token_ids(0)[0]) == 9 and long.startswith(short.prompt(0).text)
    assert short.n_prompts == 2
    with pytest.raises(PromptError, match="row 0 of the dataset"):
        harvest(tmp_path / "no", dataset=[{"text": ""}], on_bad_row="truncate")
    with pytest.raises(PromptError, match=r"no usable row among 2; row 0: it is empty"):
        harvest(tmp_path / "no", dataset=["", " "], on_bad_row="skip")


def test_what_cannot_be_done_says_so_before_anything_runs(harvest, model, tmp_path):
    for options, kind, message in (
        ({"dtype": "int4"}, MethodError, "not stored as 'int4'"),
        ({"limit": 0}, MethodError, "limit is at least 1"),
        ({"rows_per_shard": 0}, MethodError, "rows_per_shard is at least 1"),
        ({"on_bad_row": "ignore"}, MethodError, "no policy 'ignore'"),
        ({"dataset": None}, PromptError, "holds no prompts yet"),
        ({"dataset": tmp_path / "no.jsonl"}, PromptError, "no dataset at"),
        ({"dataset": [{"body": "x"}]}, PromptError, "it has body: .*text_column="),
        ({"executor": Processes(2)}, ModelError, "load the model themselves: give its name"),
        ({"positions": sk.captures.Span(("a", "b"))}, MethodError, "one span text for all"),
    ):
        with pytest.raises(kind, match=message):
            harvest(tmp_path / "bad", **options)


def test_values_that_are_not_finite_or_do_not_fit_are_refused(harvest, counted):
    class Huge(type(counted())):
        def run(self, *args, **options):
            run = super().run(*args, **options)
            for stream in run.streams.values():
                stream.mul_(1e6)
            return run

    with pytest.raises(ActivationError, match=r"do not fit into float16, which ends at 6.55e\+04"):
        harvest(model=Huge(counted()._model), dtype="float16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_the_recorded_errors_are_bounds_of_the_measured_ones(harvest, pooled, dtype):
    """Measured in float64, by numpy, against a store of float32 of the same bits."""
    store, exact = harvest(dtype=dtype), pooled
    for site, bound in store.errors.items():
        x, y = exact.at(site).double().numpy(), store.at(site).double().numpy()
        most = np.abs(x - y).max()
        relative = (np.linalg.norm(x - y, axis=1) / np.linalg.norm(x, axis=1)).max()
        assert most <= bound["max_abs"] <= 1.001 * most
        assert relative <= bound["max_relative"] <= 1.001 * relative
        worst = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 0.05}[dtype]
        assert relative <= worst
