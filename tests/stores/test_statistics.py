"""Moments of a dataset equal those of its stored rows, wherever and however often it was killed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from faults import Elsewhere

from steerkit.errors import OutputError, PromptError
from steerkit.extraction import GroupMoments, Moments, extract_from_moments
from steerkit.stores import ActivationStore, dataset_moments
from steerkit.stores.statistics import TOTAL

SITES = ("resid_post@1", "resid_post@3")


@pytest.fixture
def total(model, data, tmp_path):
    def run(out=tmp_path / "sums", **options):
        chosen = {
            "model": model, "dataset": data, "classes": "label", "groups": "source",
            "sites": SITES, "rows_per_task": 16, **options,
        }  # fmt: skip
        return dataset_moments(**chosen, out=out, progress=False)

    return run


def same(a: GroupMoments, b: GroupMoments) -> bool:
    """To the bit."""
    return a.counts == b.counts and all(
        torch.equal(getattr(x, name), getattr(y, name))
        for cell, parts in a.cells.items()
        for x, y in zip(parts, b.cells[cell], strict=True)
        for name in ("mean", "scatter", "skew")
    )


@pytest.mark.parametrize("positions", ["last", "all"])
def test_they_are_those_of_the_stored_rows(total, harvest, data, positions):
    found = total(positions=positions)
    acts = harvest(positions=positions).to_activations()
    for without in ((), ("b",)):
        keep = [i for i, row in enumerate(data) if row["source"] not in without]
        mine = torch.isin(acts.prompt_index, torch.tensor(keep)).nonzero()[:, 0]
        stored = Moments.of(acts.select(mine))
        between = found.between("1", "0", without=without)
        assert between.n == stored.n
        for method in ("mean_difference", "lda", "leace", "whitened_mean_difference", "ridge"):
            pairs = zip(
                extract_from_moments(between, method, penalty=100.0),
                extract_from_moments(stored, method, penalty=100.0),
                strict=True,
            )
            for a, b in pairs:
                # Both read the same batches, so that float64 sums differ by their order alone.
                gap = torch.linalg.vector_norm(a.unit.double() - b.unit.double())
                assert float(gap) < 1e-6, (method, a.site)
                assert a.scale == pytest.approx(b.scale, rel=1e-6)


def test_the_order_of_workers_leaves_no_trace(total, tmp_path):
    run = Elsewhere(backwards=True)
    assert same(total(tmp_path / "again", model="organism:base", executor=run), total())


def test_the_folder_holds_one_file_of_sums_and_no_activation(total, tmp_path, data):
    found = total()
    folder = tmp_path / "sums"
    assert same(GroupMoments.load(folder / TOTAL), found)
    assert not list(folder.glob("shards/*"))
    assert sum(found.counts.values()) == len(data)
    with pytest.raises(OutputError, match=r"holds moments by 'label' and 'source' and no rows"):
        ActivationStore(folder)


@pytest.mark.parametrize("break_at", [0, 1, 2, 3])
def test_killed_anywhere_it_goes_on_and_runs_nothing_twice(
    total, counted, tmp_path, break_at, monkeypatch
):
    whole = total()
    runs = counted()
    total(tmp_path / "counted", model=runs)
    broken = counted(break_at=break_at)
    with pytest.raises(KeyboardInterrupt):
        total(tmp_path / "again", model=broken)
    rest = counted()
    assert same(total(tmp_path / "again", model=rest), whole)
    assert broken.runs + rest.runs == runs.runs
    rest.runs = 0
    assert same(total(tmp_path / "again", model=rest), whole) and rest.runs == 0


def test_parts_are_counted_once_if_it_ends_between_joining_and_removing(
    total, tmp_path, monkeypatch
):
    whole = total()
    kept = {}
    merge = GroupMoments.merge
    monkeypatch.setattr("steerkit.stores.statistics.WAITING", 0)

    def remember(self, other):
        for path in (tmp_path / "again" / "shards").glob("*.safetensors"):
            kept[path] = path.read_bytes()
        return merge(self, other)

    monkeypatch.setattr(GroupMoments, "merge", remember)
    total(tmp_path / "again")
    assert len(kept) == 4
    for path, data in kept.items():
        path.write_bytes(data)
    assert same(total(tmp_path / "again"), whole)
    assert not list((tmp_path / "again" / "shards").glob("*.safetensors"))


def test_what_was_summed_otherwise_or_has_no_class_is_refused(total, data, tmp_path):
    total()
    with pytest.raises(OutputError, match=r"dtype of resid_post@1 \(moments by 'label' and 'sou"):
        total(groups="")
    with pytest.raises(OutputError, match="holds sums of resid_post@1, resid_post@3"):
        total(sites=("resid_post@2",))
    with pytest.raises(OutputError, match="holds another dataset"):
        total(dataset=data[:-1])
    with pytest.raises(PromptError, match=r"row 0 of the dataset has no 'labels'.*label, source"):
        total(tmp_path / "other", classes="labels")
    (tmp_path / "sums" / TOTAL).write_bytes(b"no")
    with pytest.raises(OutputError, match=r"delete .* and sum again"):
        total()
