"""Where other processes run the model: this one holds no weights, and they load it as asked."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from faults import Elsewhere

from steerkit.errors import ModelError, SiteError
from steerkit.models import outline as outlines


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's own way to load a model is closed; a worker's is another."""

    def load(*args: Any, **options: Any) -> Any:
        raise AssertionError("the driver loaded the model")

    monkeypatch.setattr(outlines, "load", load)


def test_the_driver_loads_no_weights_and_the_order_of_workers_leaves_no_trace(
    no_weights, harvest, pooled
):
    run = Elsewhere(backwards=True)
    store = harvest(model="organism:base", executor=run)
    assert store.sha256 == pooled.sha256
    assert store.info == pooled.info == run.made[0].model.info


def test_sites_and_rows_are_checked_before_a_worker_is_built(no_weights, harvest, data):
    run = Elsewhere()
    with pytest.raises(SiteError, match=r"layers 0\.\."):
        harvest(model="organism:base", executor=run, sites=[99])
    long = [*data[:3], "bread " * 500]
    store = harvest(model="organism:base", dataset=long, on_bad_row="skip", executor=run)
    assert store.manifest.dataset["bad_rows"]["skipped"][0][0] == 3
    assert len(run.made) == 1


def test_a_model_is_spread_over_devices_in_each_worker(harvest, pooled, monkeypatch):
    """`device="auto"` reaches the library as its device map."""
    from transformers import AutoModelForCausalLM

    asked = []
    plain = AutoModelForCausalLM.from_pretrained

    def noted(*args: Any, **options: Any) -> Any:
        asked.append(options.get("device_map"))
        return plain(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    options = {"model": "organism:base", "model_options": {"device": "auto", "dtype": "float32"}}
    assert harvest(executor=Elsewhere(), **options).sha256 == pooled.sha256
    assert asked == ["auto"]


def test_workers_elsewhere_find_a_folder_that_was_named_from_here(
    bare_folder, harvest, monkeypatch, tmp_path
):
    monkeypatch.chdir(bare_folder.parent)
    run = Elsewhere()
    harvest(tmp_path / "x", model=bare_folder.name, dataset=["the cat"], sites=1, executor=run)
    assert Path(run.made[0].model.network.config._name_or_path).is_absolute()


def test_a_worker_that_finds_other_weights_is_refused(harvest, monkeypatch):
    """As when a machine of a cluster has another version of the model in its place."""
    from steerkit import models

    class Changed(Elsewhere):
        def run(self, tasks: Sequence[Any], make_worker: Any) -> Iterator[Any]:
            load = models.load
            monkeypatch.setattr(models, "load", lambda name: load("organism:aligned"))
            return super().run(tasks, make_worker)

    with pytest.raises(ModelError, match=r"another 'organism:aligned' .* differs in weights \("):
        harvest(model="organism:base", executor=Changed())
