"""What capture at dataset scale costs: workers, stores, statistics, and the driver itself.

    python benchmarks/harvest.py [--quick] [--threads 2] [--repeats 7] [--parts ...]

The model is the random Llama-style one of `capture.py` (hidden 512, 8 layers, float32); the
dataset is text of its numbered words. Ratios are of times in rotated order, so that a rate of
0.95 is a time of 1/0.95. Outputs of every arm are compared before anything is timed. Processes
are timed from the moment when all of them have a worker: what they cost to start is a row of
its own. Writes `results/harvest.json`.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import timing
import torch
from capture import HIDDEN, VOCAB, network, save_with_tokenizer

import steerkit as sk
from steerkit.site import Site
from steerkit.stores.executor import Record, Task
from steerkit.stores.executors import InProcess, Processes, RayActors
from steerkit.stores.manifest import Folder
from steerkit.stores.records import RecordLog

LAYER = 3
SITE = Site(LAYER)
WIDTH = 128
"""Tokens of every sequence where lengths do not matter: no arm then pads anything."""
RATE_GOAL, WORKERS_GOAL, PEER_GOAL, READ_GOAL = 1 / 0.95, 1 / 1.7, 1.25, 3.0
MOMENTS_GOAL, MEMORY_GOAL = 1 / 0.9, 1.05
WORKERS = 1000


def texts(n: int, width: int = WIDTH, seed: int = 0) -> Iterator[str]:
    """Sequences of random words, one token each."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield " ".join(f"w{i}" for i in rng.integers(3, VOCAB, width))


def small_network() -> Any:
    """A model so small that the driver and the store are most of the work."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@dataclass
class Kept:
    """An executor that runs nothing, and keeps what it was asked to run."""

    tasks: Sequence[Task] = ()
    make_worker: Any = None
    workers: int = 1

    def run(self, tasks: Sequence[Task], make_worker: Any) -> Iterator[Record]:
        """No records."""
        self.tasks, self.make_worker = list(tasks), make_worker
        return iter(())


def begun(model: Path, out: Path, sequences: int, per_shard: int) -> Kept:
    """A store that is begun: its tasks, and what builds their worker."""
    kept = Kept()
    sk.capture_dataset(
        model,
        texts(sequences),
        out=out,
        sites=SITE,
        positions="all",
        rows_per_shard=per_shard,
        executor=kept,
        progress=False,
    )
    return kept


def emptied(folder: Path) -> None:
    """Without the shards of an earlier round."""
    shutil.rmtree(folder / "shards", ignore_errors=True)
    (folder / "shards").mkdir()


class Stop(Exception):
    """Nothing above the layer is needed."""


def bare_loop(
    net: Any, tokenizer: Any, chunks: Sequence[Sequence[str]], out: Path, batch: int
) -> list[torch.Tensor]:
    """What one writes by hand: a hook, an early stop, one file a chunk."""
    from safetensors.torch import save_file

    kept: list[torch.Tensor] = []

    def hook(module: Any, inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)
        raise Stop

    results = []
    handle = net.model.layers[LAYER].register_forward_hook(hook)
    try:
        for number, chunk in enumerate(chunks):
            kept.clear()
            ids = []
            for start in range(0, len(chunk), batch):
                encoded = tokenizer(
                    list(chunk[start : start + batch]), return_tensors="pt", padding=True
                )
                mask = encoded["attention_mask"]
                position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
                with torch.no_grad(), contextlib.suppress(Stop):
                    net.model(
                        input_ids=encoded["input_ids"],
                        attention_mask=mask,
                        position_ids=position_ids,
                        use_cache=False,
                    )
                ids.append(encoded["input_ids"].reshape(-1))
            values = torch.cat(kept).reshape(-1, HIDDEN)
            save_file({"values": values, "ids": torch.cat(ids)}, out / f"{number}.safetensors")
            results.append(values)
    finally:
        handle.remove()
    return results


def rate(given: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """One worker beside a loop written by hand: the same batches, tokens and bytes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shards, per_shard = (2, 4) if given.quick else (2, 64)
    kept = begun(model, scratch / "rate", shards * per_shard, per_shard)
    worker = kept.make_worker()
    net = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    every = list(texts(shards * per_shard))
    chunks = [every[i : i + per_shard] for i in range(0, len(every), per_shard)]
    bare_out = scratch / "bare"
    bare_out.mkdir()

    def bare() -> list[torch.Tensor]:
        return bare_loop(net, tokenizer, chunks, bare_out, 4096 // WIDTH)

    def ours() -> list[Record]:
        emptied(scratch / "rate")
        return [worker(task) for task in kept.tasks]

    with RecordLog(scratch / "rate").appending() as log:
        for record in ours():
            log.add(record)
    values = torch.cat(bare())
    error = (sk.ActivationStore(scratch / "rate").at(SITE) - values).norm() / values.norm()
    if not error < 1e-5:
        raise SystemExit(f"the store differs from the bare loop by {error:.2g}")
    arms = {
        "bare capture loop": bare,
        "bare capture loop again (A/A)": bare,
        "steerkit worker": ours,
    }
    times = timing.measure(arms, repeats=given.repeats, warmup=1)
    table = timing.rows(times, "bare capture loop", goals={"steerkit worker": RATE_GOAL})
    tokens = shards * per_shard * WIDTH
    for row in table:
        row["tokens_per_second"] = tokens / row["median_s"]
    return {"rows": table, "tokens": tokens, "shards": shards}


def workers(given: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """Two local processes beside one, a thread each, on the same shards."""
    shards, per_shard = (4, 4) if given.quick else (12, 32)
    kept = begun(model, scratch / "workers", shards * per_shard, per_shard)
    arms = {"one worker": 1, "two workers": 2}
    times: dict[str, list[float]] = {name: [] for name in arms}
    starts: dict[str, list[float]] = {name: [] for name in arms}
    hashes = set()
    for round_ in range(given.repeats):
        for name in list(arms)[:: 1 if round_ % 2 else -1]:
            emptied(scratch / "workers")
            n = arms[name]
            began = perf_counter()
            seen: list[tuple[float, Record]] = []
            for record in Processes(n, threads=1).run(kept.tasks, kept.make_worker):
                seen.append((perf_counter(), record))
            # The first records stand for processes that have their worker; the last wait for
            # the slowest. Between them, all work.
            busy = seen[-1][0] - seen[n - 1][0]
            times[name].append(busy / (shards - n))
            starts[name].append(seen[0][0] - began)
            hashes.add(tuple(record.sha256 for _, record in sorted(seen, key=lambda s: s[1].start)))
    if len(hashes) != 1:
        raise SystemExit("one and two workers wrote different bytes")
    table = []
    for name in arms:
        row = {
            "arm": name,
            "base": "one worker",
            "median_s": statistics.median(times[name]),
            "seconds_until_first_shard": statistics.median(starts[name]),
            "ratio": timing.ratio(times[name], times["one worker"]),
            "repeats": given.repeats,
            "tokens_per_second": per_shard * WIDTH / statistics.median(times[name]),
        }
        if name == "two workers":
            row["goal_at_most"] = WORKERS_GOAL
            row["verdict"] = timing.verdict(row["ratio"], WORKERS_GOAL)
        table.append(row)
    return {"rows": table, "shards": shards, "note": "seconds a shard, wall; bytes are equal"}


def saelens(given: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """Model folder and dataset in, cached activations out: SAELens' runner beside ours."""
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sequences = 16 if given.quick else 256
    every = list(texts(sequences))
    ids = [[int(word[1:]) for word in text.split()] for text in every]
    count = iter(range(10**6))
    floor = "bare loop, its model loaded before"
    written: dict[str, int] = {floor: sequences * WIDTH}
    net = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)

    def bare() -> None:
        """What both cannot do without: the ratio of the two is bounded by the rest."""
        out = scratch / f"bare{next(count)}"
        out.mkdir()
        bare_loop(net, tokenizer, [every], out, min(32, sequences))
        shutil.rmtree(out)

    def ours() -> None:
        out = scratch / f"ours{next(count)}"
        store = sk.capture_dataset(
            model, every, out=out, sites=SITE, positions="all", progress=False
        )
        written["steerkit"] = len(store)
        shutil.rmtree(out)

    def theirs() -> None:
        out = scratch / f"theirs{next(count)}"
        settings = CacheActivationsRunnerConfig(
            dataset_path="",
            model_name=str(model),
            model_class_name="AutoModelForCausalLM",
            model_batch_size=min(32, sequences),
            hook_name=f"model.layers.{LAYER}",
            d_in=HIDDEN,
            training_tokens=sequences * WIDTH,
            context_size=WIDTH,
            new_cached_activations_path=str(out),
            shuffle=False,
            prepend_bos=False,
            streaming=False,
            device="cpu",
            buffer_size_gb=(sequences * WIDTH * HIDDEN * 4 + 1) / 1e9,
        )
        data = Dataset.from_dict({"tokens": ids})
        runner = CacheActivationsRunner(settings, override_dataset=data)
        written["SAELens CacheActivationsRunner"] = len(runner.run()) * WIDTH
        shutil.rmtree(out)

    arms = {
        "steerkit": ours,
        "steerkit again (A/A)": ours,
        floor: bare,
        "SAELens CacheActivationsRunner": theirs,
    }
    with contextlib.redirect_stderr(io.StringIO()):
        times = timing.measure(arms, repeats=given.repeats, warmup=1)
    # SAELens rounds up to whole buffers: by the token written, both do the same work.
    for clock in times.values():
        for name, seconds in clock.items():
            tokens = written[name.removesuffix(" again (A/A)")]
            clock[name] = [s * sequences * WIDTH / tokens for s in seconds]
    table = timing.rows(times, "steerkit")
    for row in table:
        row["tokens_asked"] = sequences * WIDTH
        row["tokens_written"] = written[row["arm"].removesuffix(" again (A/A)")]
    at_least(table[-1], PEER_GOAL)
    return {"rows": table, "note": "seconds for the tokens asked, at the rate of those written"}


def read(given: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """Every row once, in batches of 4,096: from a store, and from SAELens' Arrow files."""
    import datasets
    from sae_lens.training.mixing_buffer import mixing_buffer

    sequences = 64 if given.quick else 1024
    store = sk.capture_dataset(
        model,
        texts(sequences),
        out=scratch / "read",
        sites=Site(0),
        positions="all",
        progress=False,
    )
    rows = len(store)
    store.export_saelens(scratch / "arrow")
    hook = "blocks.0.hook_resid_post"
    arrow = datasets.load_from_disk(str(scratch / "arrow"))
    # As SAELens' ActivationsStore sets it up and slices it.
    arrow.set_format(type="torch", columns=[hook, "token_ids"], device="cpu", dtype=torch.float32)
    windows = 4096 // WIDTH

    def slices() -> Iterator[torch.Tensor]:
        for i in range(0, len(arrow), windows):
            yield arrow[i : i + windows][hook].reshape(-1, HIDDEN)

    def consume(batches: Iterator[torch.Tensor]) -> int:
        # Mapped rows cost nothing until they are read: every arm hands each over to a consumer.
        done = 0
        for batch in batches:
            device[: len(batch)].copy_(batch)
            done += len(batch)
        return done

    def mixed() -> Iterator[torch.Tensor]:
        # As SAELens' trainer shuffles: half of a buffer stays behind to be mixed with the next.
        return mixing_buffer(16 * 4096, 4096, slices())

    whole = torch.cat(list(store.batches(4096, shuffle=False)))
    if not torch.equal(whole, torch.cat(list(slices()))):
        raise SystemExit("the store and its export differ")
    del whole
    device = torch.empty(4096, HIDDEN)
    ordered, shuffled = "store, in order", "store, shuffled"
    arms: dict[str, Callable[[], Any]] = {
        ordered: lambda: consume(store.batches(4096, shuffle=False)),
        f"{ordered}, again (A/A)": lambda: consume(store.batches(4096, shuffle=False)),
        "SAELens' Arrow route, in order": lambda: consume(slices()),
        shuffled: lambda: consume(store.batches(4096)),
        "SAELens' Arrow route, mixed": lambda: consume(mixed()),
    }
    read_rows = {name: arm() for name, arm in arms.items()}
    times = timing.measure(arms, repeats=given.repeats, warmup=1)
    table = timing.rows(times, ordered)[:3]
    table += timing.rows(times, shuffled)[3:]
    for row in table:
        row["rows_read"] = read_rows[row["arm"]]
        row["rows_per_second"] = row["rows_read"] / row["median_s"]
    at_least(table[2], READ_GOAL)
    at_least(table[4], READ_GOAL)
    return {"rows": table, "activations": rows}


def moments(given: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """Streaming statistics beside a pooled capture of the same prompts to disk."""
    prompts = 32 if given.quick else 256
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts(prompts, 64))]
    loaded = sk.load(model)
    count = iter(range(10**6))

    def run(verb: Callable[..., Any], **more: Any) -> None:
        out = scratch / f"moments{next(count)}"
        verb(loaded, rows, out=out, sites=SITE, positions="last", progress=False, **more)
        shutil.rmtree(out)

    pooled: Callable[[], None] = lambda: run(sk.capture_dataset)  # noqa: E731
    arms = {
        "pooled capture": pooled,
        "pooled capture again (A/A)": pooled,
        "dataset_moments": lambda: run(sk.dataset_moments, classes="label"),
    }
    times = timing.measure(arms, repeats=given.repeats, warmup=1)
    table = timing.rows(times, "pooled capture", goals={"dataset_moments": MOMENTS_GOAL})
    return {"rows": table, "prompts": prompts}


def memory(given: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """Peak resident memory of a whole capture, in processes of their own, by tokens."""
    small = save_with_tokenizer(small_network(), scratch / "small")
    sizes = (10_000, 30_000) if given.quick else (100_000, 300_000, 1_000_000)
    found: dict[int, list[int]] = {size: [] for size in sizes}
    for _ in range(1 if given.quick else 2):
        for size in sizes:
            done = subprocess.run(
                [sys.executable, __file__, "--peak-of", str(size), str(small), str(scratch)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"},
            )
            found[size].append(json.loads(done.stdout.splitlines()[-1])["peak"])
    table: list[dict[str, Any]] = []
    for size in sizes:
        row = {
            "arm": f"{size:,} tokens",
            "base": f"{sizes[0]:,} tokens",
            "median_mib": statistics.median(found[size]) / 2**20,
            "ratio": timing.ratio(found[size], found[sizes[0]]),
            "repeats": len(found[size]),
        }
        if size == sizes[-1]:
            row["goal_at_most"] = MEMORY_GOAL
            row["verdict"] = timing.verdict(row["ratio"], MEMORY_GOAL)
        table.append(row)
    return {"rows": table, "note": "peak resident size of the process, libraries included"}


def peak_of(tokens: int, model: str, scratch: str) -> None:
    """Run in a process of its own: print the peak of one capture of so many tokens."""
    torch.set_num_threads(1)
    loaded = sk.load(model)
    out = Path(scratch) / f"peak{tokens}"
    timing.hold_peak()
    store = sk.capture_dataset(
        loaded,
        texts(-(-tokens // WIDTH)),
        out=out,
        sites=Site(1),
        positions="all",
        rows_per_shard=64,
        progress=False,
    )
    found = timing.peak()
    if len(store) != -(-tokens // WIDTH) * WIDTH:
        raise SystemExit(f"{len(store)} rows for {tokens} tokens")
    shutil.rmtree(out)
    print(json.dumps({"peak": found}))


@dataclass(frozen=True)
class Nothing:
    """Builds a worker that does nothing: what is left is the executor."""

    def __call__(self) -> Callable[[Task], Record]:
        """The worker."""
        return record_of


def record_of(task: Task) -> Record:
    """A record as large as real ones."""
    errors = {f"resid_post@{i}": {"max_abs": 1e-3, "max_relative": 1e-3} for i in range(4)}
    return Record(
        task.number, task.start, task.stop, task.name, 65536, 65536, 2**27, "0" * 64, errors, 9.5
    )


def driver(given: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """What the driver does for each shard, and how many workers that feeds."""
    n = 500 if given.quick else 20_000
    begun(model, scratch / "driver", 2, 1)
    manifest = Folder(scratch / "driver").read()
    part = manifest.parts[0]
    many = replace(
        manifest,
        parts=tuple(replace(part, start=512 * i, stop=512 * (i + 1)) for i in range(n)),
    )
    tasks, plan = timed(many.tasks)
    records = [replace(record_of(task), bytes=0) for task in tasks]
    log = RecordLog(scratch / "driver")

    def append() -> None:
        with log.appending() as appender:
            for record in records:
                appender.add(record)

    _, appended = timed(append)
    for task in tasks:  # empty files: the join asks for names and sizes
        (scratch / "driver" / task.name).touch()
    finished, joined = timed(Folder(scratch / "driver").finished)
    if len(finished) != n:
        raise SystemExit(f"{len(finished)} of {n} shards found finished")
    few = tasks[: 200 if given.quick else 4000]
    hand = {"this process": per_task(InProcess(), few)}
    hand["two local processes"] = per_task(Processes(2, threads=1), few)
    looks = {name: 0.0 for name in hand}
    with contextlib.suppress(ImportError):
        import ray

        ray.init(
            address="local",
            num_cpus=3,
            object_store_memory=100_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        hand["Ray actors"] = per_task(RayActors(2), few)
        looks["Ray actors"] = look_among(ray, WORKERS)
        ray.shutdown()
    microseconds = {
        "make its task, once a run": 1e6 * plan / n,
        "find it finished (anti-join), once a run": 1e6 * joined / n,
        "append its record": 1e6 * appended / n,
        **{f"hand it out and take its record, {name}": 1e6 * s for name, s in hand.items()},
        f"look for an answer among {WORKERS} Ray actors": 1e6 * looks.get("Ray actors", 0.0),
    }
    table = []
    for name, seconds in hand.items():
        busy = seconds + looks[name] + appended / n
        table.append(
            {
                "arm": f"driver of {name}",
                "microseconds_a_shard": 1e6 * busy,
                "shards_per_second_at_saturation": 1 / busy,
                f"shard_seconds_that_keep_{WORKERS}_workers_busy": WORKERS * busy,
            }
        )
    return {
        "rows": table,
        "microseconds": microseconds,
        "shards": n,
        "note": "the driver's own processor time; of appending, wall time with its fsyncs",
    }


def per_task(executor: Any, tasks: Sequence[Task]) -> float:
    """The driver's processor seconds for each task, once every worker stands."""
    seen = [process_time() for _ in executor.run(tasks, Nothing())]
    skipped = len(seen) // 10
    return (seen[-1] - seen[skipped]) / (len(seen) - 1 - skipped)


def look_among(ray: Any, n: int) -> float:
    """Seconds of one look at so many answers that are not there yet."""

    class Slow:
        def first(self) -> None:
            sleep(3600)

        def later(self) -> None:
            pass

    actor = ray.remote(num_cpus=0)(Slow).remote()
    waiting = [actor.first.remote(), *(actor.later.remote() for _ in range(n - 1))]
    ray.wait(waiting, timeout=1)
    looks = 50
    began = process_time()
    for _ in range(looks):
        ray.wait(waiting, timeout=0)
    spent = process_time() - began
    ray.kill(actor)
    return spent / looks


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and the seconds that it took."""
    began = perf_counter()
    result = function()
    return result, perf_counter() - began


def at_least(row: dict[str, Any], goal: float) -> dict[str, Any]:
    """The row with a goal that it must reach, and whether it does."""
    row["goal_at_least"], row["verdict_clock"] = goal, "wall"
    row["verdict"] = timing.verdict(row["wall_ratio"], goal, at_most=False)
    return row


def show(title: str, part: dict[str, Any]) -> None:
    """Print a part, whatever its rows hold."""
    plain = [row for row in part["rows"] if "wall_ratio" in row or "median_mib" in row]
    timing.show(title, plain)
    for row in part["rows"]:
        if row not in plain:
            print("  " + ", ".join(f"{key}: {shown(value)}" for key, value in row.items()))
    for name, value in part.get("microseconds", {}).items():
        print(f"  {name:60s} {value:10.1f} us")


def shown(value: Any) -> str:
    """A number or an interval in short."""
    if isinstance(value, dict):
        return "{median:.3f} [{low:.3f}, {high:.3f}]".format(**value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


PARTS: dict[str, Callable[[argparse.Namespace, Path, Path], dict[str, Any]]] = {
    "rate": rate,
    "workers": workers,
    "saelens": saelens,
    "read": read,
    "moments": moments,
    "memory": memory,
    "driver": driver,
}


def main() -> None:
    """Run everything and write the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="few repeats; proves it runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformers.utils import logging

    logging.disable_progress_bar()
    if given.peak_of:
        peak_of(int(given.peak_of[0]), *given.peak_of[1:])
        return
    given.repeats = 2 if given.quick else max(7, given.repeats)
    result: dict[str, Any] = {}
    for part in given.parts:
        torch.set_num_threads(given.threads)
        before = timing.machine()
        with tempfile.TemporaryDirectory() as scratch:
            model = save_with_tokenizer(network(), Path(scratch) / "model")
            result[part] = PARTS[part](given, model, Path(scratch))
        show(part, result[part])
        before["load_average_after"] = list(os.getloadavg())
        result[part] = {"machine": before, **result[part]}
        # Parts measured earlier stay: each carries the machine and load it was measured under.
        print(timing.update("harvest-quick" if given.quick else "harvest", result))


if __name__ == "__main__":
    main()
