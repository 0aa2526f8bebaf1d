"""Streaming to disk: equal to memory, resumable, bounded, refusing what it cannot trust."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from steerkit.activations import Activations
from steerkit.captures import capture, open_capture
from steerkit.errors import ActivationError, OutputError
from steerkit.prompts import Contrast

TEXTS = [" ".join(["word", "or", f"w{i % 7}"] * (1 + i % 5)) for i in range(20)]


def to_disk(model, out, prompts=TEXTS, **options):
    return capture(model, prompts, out=out, progress=False, **{"token_budget": 40, **options})


def in_memory(model, prompts=TEXTS, **options):
    return capture(model, prompts, progress=False, **{"token_budget": 40, **options})


def shards(folder):
    return sorted(p.name for p in (folder / "shards").glob("*.safetensors"))


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "last"},
        {"positions": "mean_prompt", "exclude_bos": True},
        {"positions": "all"},
        {"positions": "all", "exclude_sinks": True, "exclude_bos": True},
    ],
)
def test_a_capture_on_disk_equals_one_in_memory(make_fake, tmp_path, options):
    prompts = Contrast.of(["boom a b c d e f", *TEXTS[:9]], TEXTS[10:12])
    there = to_disk(make_fake(), tmp_path / "c", prompts, **options)
    here = in_memory(make_fake(), prompts, **options)
    for name in ("values", "prompt_index", "positions", "tokens"):
        assert torch.equal(getattr(there, name), getattr(here, name)), name
    for name in ("sites", "prompts", "labels", "groups", "pooling", "info", "contrast_sha256"):
        assert getattr(there, name) == getattr(here, name), name
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "activations.safetensors",
        "manifest.json",
    ]
    reopened = open_capture(tmp_path / "c", verify=True)
    assert torch.equal(reopened.values, here.values)
    assert torch.equal(Activations.load(tmp_path / "c/activations.safetensors").values, here.values)


def test_an_interrupted_capture_leaves_whole_shards_and_goes_on(make_fake, tmp_path):
    model = make_fake(interrupt_after=3)
    with pytest.raises(KeyboardInterrupt):
        to_disk(model, tmp_path)
    assert shards(tmp_path) == [f"{i:06d}.safetensors" for i in range(3)]
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(OutputError, match=r"is not finished: 3 of \d+ batches .* to resume it"):
        open_capture(tmp_path)
    rest = make_fake()
    acts = to_disk(rest, tmp_path)
    assert len(rest.runs) == acts.provenance["receipt"]["batches"] - 3
    assert acts.provenance["receipt"]["batches_resumed"] == 3
    assert torch.equal(acts.values, in_memory(make_fake()).values)


def test_a_finished_capture_is_not_run_again(make_fake, tmp_path):
    first = to_disk(make_fake(), tmp_path)
    (tmp_path / "shards").mkdir()
    idle = make_fake()
    again = to_disk(idle, tmp_path)
    assert not idle.runs and not (tmp_path / "shards").exists()
    assert torch.equal(first.values, again.values)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "temporary", "missing"])
def test_a_damaged_shard_is_found_and_redone(make_fake, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        to_disk(make_fake(interrupt_after=3), tmp_path)
    shard = tmp_path / "shards" / "000001.safetensors"
    data = shard.read_bytes()
    if damage == "truncated":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        shard.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "foreign":
        shard.write_bytes((tmp_path / "shards" / "000000.safetensors").read_bytes())
    else:
        shard.unlink()
        if damage == "temporary":
            (tmp_path / "shards" / ".000001.safetensors.1a2b3c4d.tmp").write_bytes(data[:100])
    rest = make_fake()
    acts = to_disk(rest, tmp_path)
    assert len(rest.runs) == acts.provenance["receipt"]["batches"] - 2
    assert torch.equal(acts.values, in_memory(make_fake()).values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": TEXTS[:-1]}, r"differs in prompts \(\w{8} there, \w{8} asked\), tokens"),
        ({"layers": 1}, r"differs in sites \(\['resid_post@0', .*\] there, \['resid_post@1'\]"),
        ({"positions": "mean_prompt"}, r"differs in pooling \(last there, mean_prompt asked\)"),
        ({"token_budget": 41}, r"differs in token_budget \(40 there, 41 asked\)"),
        ({"before": True}, r"differs in before \(False there, True asked\); choose another folder"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_capture_in_the_folder_is_refused(make_fake, tmp_path, change, message, finished):
    if finished:
        to_disk(make_fake(), tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            to_disk(make_fake(interrupt_after=3), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file()}
    with pytest.raises(OutputError, match=message):
        to_disk(make_fake(), tmp_path, **change)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file()}
    acts = to_disk(make_fake(), tmp_path, resume=False, **change)
    assert torch.equal(acts.values, in_memory(make_fake(), **change).values)


def test_another_model_is_refused(make_fake, tmp_path):
    to_disk(make_fake(), tmp_path)
    with pytest.raises(
        OutputError, match=r"another capture \(of fake\): it differs in model \(ff.* asked\)"
    ):
        to_disk(make_fake(fingerprint="e" * 64), tmp_path)


def test_other_peoples_files_are_never_touched(fake, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for resume in (True, False):
        with pytest.raises(OutputError, match="holds files that are not a capture; choose an emp"):
            to_disk(fake, tmp_path, resume=resume)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "manifest.json").write_text('{"kind": "something else"}')
    for resume in (True, False):
        with pytest.raises(OutputError, match="is not a capture manifest written by steerkit"):
            to_disk(fake, tmp_path, resume=resume)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match="is not a readable capture manifest"):
        to_disk(fake, tmp_path)


def test_an_unwritable_output_says_so_before_anything_runs(fake, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OutputError, match=r"cannot write .*manifest.json: a file stands where its folder"
    ):
        to_disk(fake, tmp_path / "file" / "c")
    assert not fake.runs


def test_nan_leaves_the_earlier_shards_and_no_result(make_fake, tmp_path):
    with pytest.raises(ActivationError, match="resid_post@1 for prompt"):
        to_disk(make_fake(poison="w3"), tmp_path)
    assert not (tmp_path / "activations.safetensors").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_no_capture_and_a_damaged_one_are_refused(make_fake, tmp_path):
    with pytest.raises(OutputError, match="no capture manifest file at"):
        open_capture(tmp_path)
    to_disk(make_fake(), tmp_path)
    final = tmp_path / "activations.safetensors"
    data = final.read_bytes()
    final.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    with pytest.raises(OutputError, match=r"is damaged \(its checksum differs from the manifest's"):
        open_capture(tmp_path, verify=True)


def test_the_manifest_says_which_prompts_each_batch_holds(make_fake, tmp_path):
    to_disk(make_fake(), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sorted(i for batch in manifest["prompts_of_batch"] for i in batch) == list(
        range(len(TEXTS))
    )
    assert manifest["complete"] and manifest["rows"] == len(TEXTS)
    assert len(manifest["sha256"]) == len(manifest["spec_sha256"]) == 64


def test_values_are_mapped_and_writing_to_them_leaves_the_file_alone(make_fake, tmp_path):
    acts = to_disk(make_fake(), tmp_path)
    kept = acts.values.clone()
    acts.values[:] = 0
    assert torch.equal(open_capture(tmp_path, verify=True).values, kept)


BIG = """
import resource, sys, torch
sys.path.insert(0, sys.argv[2])
from conftest import FakeModel
from steerkit.captures import capture
from steerkit.captures.shards import Folder
class Wide(FakeModel):
    def run(self, batch, *, sites, pool, logits, before):
        from steerkit.protocols import Run
        base = torch.arange(float(batch.width)).expand(len(batch), -1)[..., None]
        return Run(None, {s: pool(base.expand(-1, -1, self.d_model) + 1, batch) for s in sites})
texts = ["a b c d"] * 1200
model = Wide(n_layers=8, d_model=2048)
capture(model, texts[:32], out=sys.argv[1] + "/warm", token_budget=80, progress=False)
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
resource.setrlimit(resource.RLIMIT_DATA, (used + 40 * 2**20, hard))
opened = Folder.open
def unlimited(self):  # the mapping of the result counts as data, though nothing is read
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    return opened(self)
Folder.open = unlimited
acts = capture(model, texts, out=sys.argv[1] + "/big", token_budget=80, progress=False)
assert acts.values.numel() * 4 == 1200 * 8 * 2048 * 4
print(float(acts.values[-1, -1, 0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory the Linux way")
def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path):
    """A 75 MiB result under a 40 MiB allowance: only a batch at a time is ever held."""
    found = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        # One arena and blocks that go back at once, or what malloc keeps counts as data too.
        env={
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": "131072",
            "PATH": "/usr/bin:/bin",
        },
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert float(found.stdout) == 5.0


def test_resuming_keeps_token_rows_in_order(make_fake, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        to_disk(make_fake(interrupt_after=2), tmp_path, positions="all", exclude_sinks=True)
    acts = to_disk(make_fake(), tmp_path, positions="all", exclude_sinks=True)
    here = in_memory(make_fake(), positions="all", exclude_sinks=True)
    assert_close(acts.values, here.values, rtol=0, atol=0)
    assert torch.equal(acts.positions, here.positions)
