"""What steering costs in vLLM: requests a second against the same vLLM without the plugin.

    python benchmarks/vllm_throughput.py [--quick] [--threads 2] [--repeats 15] [--paths ...]

Run by the Python of an environment with vLLM (`tests/vllm/environment.sh FOLDER` makes one). A
random Llama whose passes are products of matrices answers batches of requests in engines that
are processes of their own: two that never load the plugin, and one that does. All are warm, one
works at a time, and the order of the arms is drawn anew each round; engines that do the same get
rounds of their own, twice as many. The plugin's engine answers plain requests, requests that add
at every layer, three directions a layer, a program for each request, additions behind a condition
on their own token and on the prompt, and requests whose streams are captured. Answers to plain
requests are compared token by token before anything is timed, and steered ones must differ.

Processes that do the same differ by several percent for as long as they live (where their memory
lies), which no number of rounds takes away. So the baseline of a round is the mean of both
engines without the plugin, the A/A row says what they differ by, and steered requests also stand
beside plain ones of their own engine, which differ by nothing but the steering.

`eager` and `compiled` are vLLM's two paths, `decode` and `prefill` what most of the tokens are.
On a GPU both run without CUDA graphs, which the plugin asks for; one more engine shows what
vLLM alone gains by them. Writes `results/vllm_throughput.json`.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import timing
import torch

ABSENT, AGAIN = "plugin absent", "plugin absent, another engine (A/A)"
BASE = "plugin absent, mean of two engines"
UNUSED, ADD, THREE = "plugin unused", "add, all layers", "3 vectors, all layers"
GATE, LATCH = "gated at every token, all layers", "gated on the prompt, all layers"
DISTINCT = "add, all layers, a program for each request"
CAPTURED = "means of all layers captured"
GRAPHS = "plugin absent, CUDA graphs"
FEWEST = 3
"""Rounds that are never left out."""
PATHS, WORK = ("eager", "compiled"), ("decode", "prefill")
CPU_GOALS = {UNUSED: 0.995, ADD: 0.97, THREE: 0.96, DISTINCT: 0.96, GATE: 0.96, LATCH: 0.96}
GPU_GOAL = 0.98
"""Of the throughput; times may grow by as much."""


class Shape(NamedTuple):
    """A model, and the requests that it answers."""

    d_model: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    work: Mapping[str, tuple[int, int, int]]
    """Requests, tokens of each prompt, tokens of each answer."""
    dtype: str = "float32"


SHAPES = {
    "cpu": Shape(
        2048, 4, 16, 4, 5632, 512, {"decode": (8, 4, 8), "prefill": (2, 64, 2)}
    ),
    "quick": Shape(256, 2, 4, 4, 512, 256, {"decode": (4, 4, 4), "prefill": (2, 32, 2)}),
    "cuda": Shape(
        4096, 32, 32, 8, 14336, 32000,
        {"decode": (64, 32, 128), "prefill": (32, 1024, 4)}, "bfloat16",
    ),
}  # fmt: skip


def network(shape: Shape, folder: Path, device: str) -> None:
    """Save a random Llama that never ends an answer of its own accord."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=1 / shape.d_model**0.5,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, shape.dtype))
        try:
            LlamaForCausalLM(config).save_pretrained(folder)
        finally:
            torch.set_default_dtype(torch.float32)


def steering(shape: Shape, model: Path, folder: Path) -> dict[str, list[str]]:
    """Steering files of each arm: one that all requests share, or one each."""
    from directions import along

    import steerkit as sk
    from steerkit.interventions import When, save_steering
    from steerkit.models.checkpoints import checkpoint_info
    from steerkit.vllm.layers import STREAMS

    info = checkpoint_info(model, streams=STREAMS, dtype=shape.dtype, device="cpu")
    owner = argparse.Namespace(info=info)
    draw = torch.Generator().manual_seed(1)

    def direction(layer: int) -> Any:
        # Longer than the stream, so that few tokens are enough to see it.
        return along(owner, layer, torch.randn(shape.d_model, generator=draw), 2.0)

    def added(strength: float = 1.0) -> list[Any]:
        return [sk.Add(direction(layer), strength) for layer in range(shape.layers)]

    def gated(on: Any) -> list[Any]:
        # Open everywhere, so that all of the work is done.
        condition = When(direction(0), above=-1.0, on=on)
        return [op.when(condition) for op in added()]

    most = max(requests for requests, _, _ in shape.work.values())
    made = {
        ADD: [added()],
        THREE: [[*added(), *added(), *added()]],
        DISTINCT: [added(1 + i % 3) for i in range(most)],
        GATE: [gated("token")],
        LATCH: [gated("last_prompt")],
    }
    return {
        arm: [
            str(save_steering(folder / f"{number}-{i}.safetensors", one))
            for i, one in enumerate(each)
        ]
        for number, (arm, each) in enumerate(made.items())
    }


def engine_settings(shape: Shape, folder: Path, path: str, device: str) -> dict[str, Any]:
    """Of vLLM, the same for every engine of a part."""
    most = max(requests for requests, _, _ in shape.work.values())
    given: dict[str, Any] = {
        "model": str(folder),
        "dtype": shape.dtype,
        "enforce_eager": path == "eager",
        "max_model_len": 2048,
        "max_num_seqs": most,
        "max_num_batched_tokens": 2048,
        # Rounds repeat their prompts, which are to be computed each time.
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "skip_tokenizer_init": True,
    }
    if device == "cuda":
        given["gpu_memory_utilization"] = 0.22
        if path == "compiled":
            given["compilation_config"] = {"cudagraph_mode": "NONE"}
    return given


class Engine:
    """A vLLM engine in a process of its own that works when it is asked, and else sleeps."""

    def __init__(self, settings: Mapping[str, Any], *, plugin: bool, threads: int) -> None:
        environment = {
            **os.environ,
            "VLLM_PLUGINS": "steerkit" if plugin else "",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_USE_V2_MODEL_RUNNER": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "OMP_NUM_THREADS": str(threads),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--engine", json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        loaded = self._read()["plugin"]
        if loaded != plugin:
            raise SystemExit(f"the plugin is {'' if loaded else 'not '}loaded, against the plan")

    def answer(
        self, prompts: Sequence[Sequence[int]], extra: Sequence[Any], new: int
    ) -> dict[str, Any]:
        """Answers, and the seconds (wall, and CPU of all threads) that they took."""
        assert self._process.stdin is not None
        asked = json.dumps({"prompts": prompts, "extra": extra, "new": new})
        self._process.stdin.write(asked + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def serve_pipe(settings: Mapping[str, Any]) -> None:
    """The engine's process: an answer a line, to what a line asks."""
    lines = os.fdopen(os.dup(1), "w")
    # What libraries print must not be taken for an answer.
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams

    llm = LLM(**settings)

    def say(value: Any) -> None:
        lines.write(json.dumps(value) + "\n")
        lines.flush()

    say({"plugin": "steerkit.vllm.plugin" in sys.modules})
    for line in sys.stdin:
        asked = json.loads(line)
        given = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
        sampling = [
            SamplingParams(
                temperature=0,
                max_tokens=asked["new"],
                ignore_eos=True,
                detokenize=False,
                extra_args=extra,
            )
            for extra in asked["extra"]
        ]
        wall, cpu = time.perf_counter(), time.process_time()
        out = llm.generate(given, sampling, use_tqdm=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        say({"wall": wall, "cpu": cpu, "tokens": [list(o.outputs[0].token_ids) for o in out]})


@contextlib.contextmanager
def running(
    settings: Mapping[str, Any], threads: int, graphs: Mapping[str, Any] | None
) -> Iterator[dict[str, Engine]]:
    """The engines of a part, by name; one starts after the other."""
    made: dict[str, Engine] = {}
    try:
        made[ABSENT] = Engine(settings, plugin=False, threads=threads)
        made[AGAIN] = Engine(settings, plugin=False, threads=threads)
        made[UNUSED] = Engine(settings, plugin=True, threads=threads)
        if graphs:
            made[GRAPHS] = Engine(graphs, plugin=False, threads=threads)
        yield made
    finally:
        for engine in made.values():
            engine.close()


class Arm(NamedTuple):
    """What one engine is asked: what each request asks for, in one call after the other."""

    engine: Engine
    extra: Callable[[], list[Any]]


def arms_of(
    work: str,
    requests: int,
    shape: Shape,
    engines: Mapping[str, Engine],
    files: Mapping[str, Sequence[str]],
) -> dict[str, Arm]:
    """Every arm, by name."""
    numbers = itertools.count()

    def captured() -> list[Any]:
        # No two captures are called alike.
        sites = [f"resid_post@{layer}" for layer in range(shape.layers)]
        return [
            {
                "steerkit": {
                    "capture": {"name": f"{work}-{next(numbers)}", "sites": sites, "pool": "mean"}
                }
            }
            for _ in range(requests)
        ]

    def steered(paths: Sequence[str]) -> Callable[[], list[Any]]:
        return lambda: [{"steerkit": paths[i % len(paths)]} for i in range(requests)]

    arms = {name: Arm(engine, lambda: [None] * requests) for name, engine in engines.items()}
    ours = engines[UNUSED]
    for name, paths in files.items():
        arms[name] = Arm(ours, steered(paths))
    if importlib.util.find_spec("steerkit.vllm.capturing"):
        arms[CAPTURED] = Arm(ours, captured)
    return arms


def rotated(
    arms: Mapping[str, Arm],
    prompts: Sequence[Sequence[int]],
    new: int,
    repeats: int,
    seconds: float,
) -> dict[str, dict[str, list[float]]]:
    """Every arm once a round, in an order drawn anew; times as `timing.measure` gives them.

    A mere rotation would leave every arm the same one before it, whose threads may still spin.
    No more rounds than `repeats`, and none after so many seconds but the first few.
    """
    start, names, draw = time.perf_counter(), list(arms), random.Random(0)
    out: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in names} for clock in ("wall", "cpu")
    }
    for round_ in range(-1, repeats):
        if round_ >= FEWEST and time.perf_counter() - start > seconds:
            break
        for name in draw.sample(names, len(names)):
            found = arms[name].engine.answer(prompts, arms[name].extra(), new)
            # Threads of an engine may spin for a moment after their work.
            time.sleep(0.05)
            for clock, times in out.items():
                if round_ >= 0:
                    times[name].append(found[clock])
    for times in out.values():
        both = zip(times[ABSENT], times[AGAIN], strict=True)
        times[BASE] = [(one + other) / 2 for one, other in both]
    return out


def only(
    times: Mapping[str, Mapping[str, list[float]]], *names: str
) -> dict[str, dict[str, list[float]]]:
    """The times of some arms."""
    return {clock: {name: each[name] for name in names} for clock, each in times.items()}


def check(arms: Mapping[str, Arm], prompts: Sequence[Sequence[int]], new: int) -> None:
    """Plain requests get the same tokens from every engine, steered ones others."""
    found = {
        name: arm.engine.answer(prompts, arm.extra(), new)["tokens"] for name, arm in arms.items()
    }
    for name, tokens in found.items():
        same = tokens == found[ABSENT]
        if name in (AGAIN, UNUSED, CAPTURED) and not same:
            raise SystemExit(f"'{name}': other tokens than without the plugin")
        if name not in (ABSENT, AGAIN, UNUSED, CAPTURED, GRAPHS) and same:
            raise SystemExit(f"'{name}' changes no token, so nothing is compared")


def measured(
    work: str,
    shape: Shape,
    engines: Mapping[str, Engine],
    files: Mapping[str, Sequence[str]],
    given: argparse.Namespace,
) -> dict[str, Any]:
    """All arms on one kind of work."""
    requests, length, new = shape.work[work]
    draw = torch.Generator().manual_seed(2)
    prompts = torch.randint(3, shape.vocab, (requests, length), generator=draw).tolist()
    arms = arms_of(work, requests, shape, engines, files)
    check(arms, prompts, new)
    goals = {
        name: 1 / (goal if given.device == "cpu" else GPU_GOAL) for name, goal in CPU_GOALS.items()
    }
    # Little is to be seen between engines that do the same, so they get more rounds.
    alike = {name: arm for name, arm in arms.items() if name in (ABSENT, AGAIN, UNUSED)}
    times = rotated(alike, prompts, new, 2 * given.repeats, 0.3 * given.seconds)
    rows = timing.rows(only(times, ABSENT, AGAIN), ABSENT, clock=given.clock)
    rows += timing.rows(only(times, BASE, UNUSED), BASE, goals=goals, clock=given.clock)
    plain = rows[0]["median_s"]
    times = rotated(arms, prompts, new, given.repeats, 0.7 * given.seconds)
    steered = [name for name in arms if name not in (ABSENT, AGAIN, UNUSED)]
    for base in (BASE, UNUSED):
        found = timing.rows(only(times, base, *steered), base, goals=goals, clock=given.clock)
        rows += [{**row, "base": base} for row in found[1:]]
    return {
        "requests": requests,
        "prompt_tokens": requests * length,
        "new_tokens": requests * new,
        "plain_tokens_per_s": requests * (length + new) / plain,
        "rows": rows,
    }


def compare(
    path: str, model: Path, given: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One of vLLM's paths, on each kind of work."""
    shape = shape_of(given)
    files = steering(shape, model, model.parent)
    settings = engine_settings(shape, model, path, given.device)
    graphs = None
    if given.device == "cuda" and path == "compiled":
        graphs = {k: v for k, v in settings.items() if k != "compilation_config"}
    with running(settings, given.threads, graphs) as engines:
        for work in given.work:
            before, start = timing.machine(), time.perf_counter()
            before["versions"].update(versions())
            found = measured(work, shape, engines, files, given)
            before["load_average_after"] = list(os.getloadavg())
            seconds = round(time.perf_counter() - start)
            head = {"machine": before, "seconds": seconds, "shape": shape._asdict()}
            yield f"{path}_{work}", {**head, **found}


def shape_of(given: argparse.Namespace) -> Shape:
    """The model and the requests."""
    return SHAPES["quick" if given.quick else given.device]


def versions() -> dict[str, str]:
    """Of what runs beside the packages that `timing.machine` names."""
    found = {}
    for name in ("vllm", "vllm-cpu", "steerkit"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main() -> None:
    """Run everything and write the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny and few; proves it runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--seconds", type=float, default=65, help="of each part, about")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    options.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    options.add_argument("--engine", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.engine:
        serve_pipe(json.loads(given.engine))
        return
    torch.set_num_threads(given.threads)
    if given.quick:
        given.repeats = 3
    name = "vllm_throughput-quick" if given.quick else "vllm_throughput"
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        network(shape_of(given), model, given.device)
        for path in given.paths:
            for part, found in compare(path, model, given):
                timing.show(part, found["rows"])
                # Parts measured earlier stay: each has the machine and load it was measured under.
                print(timing.update(name, {part: found}))


if __name__ == "__main__":
    main()
