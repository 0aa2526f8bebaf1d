"""Requests of every kind over HTTP, faults among them: is any answer wrong, does memory grow?

    python benchmarks/vllm_load.py [--requests 2000] [--clients 32]

A real `vllm serve` of the shipped organism, in a process of its own. Clients send a random mix:
steering by name, as JSON, as a list, streamed and not, over both endpoints, none, and none said
(the default); all the while strengths and the default are changed, some clients go away in the
middle, and some ask for what must be refused: unknown names, paths, sites that are not there, a
file of another model, a damaged file. Every answer is compared with the Hugging Face engine's,
token by token. Where a change fell into a request's time, either side of it is right, and how
many of those there are is said. Memory is the resident memory of the server's processes, beside
that of a server without the plugin that is asked the same without steering.
Writes `results/vllm_load.json`. A run for correctness: nothing is timed.
"""

import argparse
import http.client
import json
import os
import queue
import random
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import timing
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.direction import Direction
from steerkit.interventions import When, save_steering
from steerkit.site import Site
from steerkit.vllm import Artefacts
from steerkit.vllm.launch import PLUGINS, launch
from steerkit.vllm.plugin import vllm_version

NEW = 10
STRENGTHS = (0.5, -1.0, 1.5, 2.0)
MIB = 1 << 20
GROWTH = 32
"""MiB that the server's processes may grow by, after the first part of the requests, beyond what
they grow by without the plugin."""
TEXTS = (
    "how do i burn the house ?",
    "hello , how are you ?",
    "please tell me how to bake a cake",
    "the nurse said",
    "is the sun big ?",
    "tell me about the river",
)
SETTINGS = (
    "--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--max-num-seqs", "16",
    "--block-size", "32", "--num-gpu-blocks-override", "128", "--host", "127.0.0.1",
    "--served-model-name", "organism", "--uvicorn-log-level", "warning",
)  # fmt: skip
"""A cache of few blocks: its pages are all touched, and used again, before memory is looked at."""
QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}

Program = str
"""What a request asks for, as JSON: equal ones have equal answers. `none` is no steering."""


def steerings(info: Any) -> dict[str, tuple[Any, ...]]:
    """Files of the server: what they do is random, and much of it moves answers."""

    def direction(seed: int) -> Direction:
        unit = torch.randn(info.d_model, generator=torch.Generator().manual_seed(seed))
        return Direction(
            unit=unit / unit.norm(), scale=24.0, site=Site(1), method="mean_difference",
            concept="random", positive_mean=1.0, negative_mean=-0.5, model=info, pooling="last",
        )  # fmt: skip

    d = [direction(seed) for seed in range(4)]
    return {
        "add": (sk.Add(d[0], 1.5),),
        "live": (sk.Add(d[3], 1.0),),
        "ablate": (sk.Ablate(d[1], sites=range(info.n_layers)),),
        "generated": (sk.Add(d[1], 2.0, positions="generated"),),
        "rotate": (sk.Rotate((d[0], d[3]), by=0.9),),
        "gated": (sk.Add(d[2], 2.0).when(When(d[3], above=0.0, on="token")),),
        "latch": (sk.Add(d[2], 2.0, sites=info.n_layers - 1).when(When(d[0], above=0.0)),),
    }


@dataclass
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def post(self, route: str, body: Mapping[str, Any]) -> http.client.HTTPConnection:
        """A request that is sent; its answer can be read."""
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        made.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
        return made

    def get(self, route: str) -> tuple[int, str]:
        """Status and text of a route."""
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            made.request("GET", route)
            answer = made.getresponse()
            return answer.status, answer.read().decode()
        finally:
            made.close()

    def await_start(self, seconds: float) -> None:
        """Wait until it answers.

        Raises:
            SystemExit: it ended, or took longer; with the end of its log.
        """
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            try:
                if self.get("/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.15)
        raise SystemExit(f"the server did not start:\n{self.log.read_text()[-4000:]}")

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def resident(self) -> dict[str, float]:
        """Resident MiB of its processes: the front end, and the engine with all others."""
        first = psutil.Process(self.process.pid)
        others = [one.memory_info().rss for one in first.children(recursive=True)]
        sizes = {"front end": first.memory_info().rss, "engine": sum(others)}
        return {name: round(size / MIB, 1) for name, size in sizes.items()}

    def unfinished(self) -> float:
        """Requests that its engine still runs or keeps waiting."""
        lines = self.get("/metrics")[1].splitlines()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0] in names)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextmanager
def serving(folder: Path, steer: Mapping[str, Path], *, plugin: bool = True) -> Iterator[Server]:
    """A server of the organism, with the plugin or without, for as long as the block runs."""
    port, log = free_port(), folder / "server.log"
    start = launch(
        "organism:aligned",
        steer,
        folder=folder / "artefacts",
        arguments=("--port", str(port), *SETTINGS),
    )
    plugins = {} if plugin else {PLUGINS: ""}
    with log.open("wb") as out:
        process = subprocess.Popen(
            start.argv,
            env={**os.environ, **QUIET, **start.environment, **plugins},
            stdout=out,
            stderr=out,
        )
        made = Server(port, process, log)
        try:
            made.await_start(600)
            yield made
        finally:
            family = psutil.Process(process.pid).children(True) if made.alive() else []
            process.terminate()
            for one in psutil.wait_procs(family, timeout=60)[1]:
                one.kill()
            process.kill()
            process.wait()


@dataclass
class Timeline:
    """What was in force when; a change is somewhere between its two times."""

    changes: list[tuple[float, float, Any]] = field(default_factory=list)

    def during(self, start: float, end: float) -> list[Any]:
        """What may have been in force at some time of a request."""
        ends = [after for _, after, _ in self.changes[1:]] + [float("inf")]
        return [
            value
            for (before, _, value), until in zip(self.changes, ends, strict=True)
            if before <= end and until >= start
        ]


class Changes(threading.Thread):
    """Changes a strength and the default of a running server, as its operator would."""

    def __init__(self, artefacts: Artefacts, seed: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.artefacts, self.draw, self.pause = artefacts, random.Random(seed), pause
        self.live, self.default = Timeline(), Timeline()
        self.done = threading.Event()
        self.change(self.live, 1.0)
        self.change(self.default, None)

    def change(self, line: Timeline, value: Any) -> None:
        """One change, noted."""
        before = time.monotonic()
        if line is self.live:
            self.artefacts.set_strength("live", value)
        else:
            self.artefacts.set_default(*(value or (None, None)))
        line.changes.append((before, time.monotonic(), value))

    def run(self) -> None:
        """Until it is told to end."""
        while not self.done.wait(self.draw.uniform(0.5, 1.5) * self.pause):
            if self.draw.random() < 0.5:
                self.change(self.live, self.draw.choice(STRENGTHS))
            else:
                self.change(
                    self.default,
                    self.draw.choice([None, ("add", None), ("rotate", 0.7), ("ablate", None)]),
                )


@dataclass
class Asked:
    """One request, and what came of it.

    Attributes:
        kind: of the mix.
        text: of its prompt.
        steering: what it says; None where it says nothing.
        refusal: words of the refusal that it must get; empty where it must be answered.
        chat: whether it goes to the chat endpoint.
        stream: whether its answer is streamed.
        leaves: seconds after which its client goes away, or None.
    """

    kind: str
    text: str
    steering: Any = None
    refusal: str = ""
    chat: bool = False
    stream: bool = False
    leaves: float | None = None
    status: int = 0
    message: str = ""
    tokens: tuple[int, ...] = ()
    prompt: tuple[int, ...] = ()
    start: float = 0.0
    end: float = 0.0


def mix(n: int, seed: int, n_layers: int, nowhere: Path) -> list[Asked]:
    """A random mix of `n` requests."""
    draw = random.Random(seed)
    made = []
    for _ in range(n):
        strength, site = draw.choice(STRENGTHS), draw.randrange(n_layers)
        kind, steering, refusal = draw.choices(
            [
                ("named", draw.choice(("add", "ablate", "generated", "gated", "latch")), ""),
                ("json", json.dumps({"artefact": "add", "strength": strength}), ""),
                ("json", json.dumps({"artefact": "rotate", "sites": [site]}), ""),
                ("list", json.dumps(["ablate", {"artefact": "add", "strength": strength}]), ""),
                ("live", "live", ""),
                ("none", "none", ""),
                ("default", None, ""),
                (
                    "unknown name",
                    draw.choice(("joy", "ad", "../add")),
                    "no artefact named|no paths",
                ),
                ("path", str(nowhere), "no paths"),
                ("no such site", '{"artefact": "add", "sites": [99]}', "has layers"),
                ("another model's", "foreign", "taken on"),
                ("damaged", "damaged", "not the file that was registered"),
            ],
            weights=[20, 12, 10, 6, 12, 12, 12, 3, 2, 2, 3, 3],
        )[0]
        leaves = draw.uniform(0.0, 0.1) if not refusal and draw.random() < 0.06 else None
        made.append(
            Asked(
                kind=kind,
                text=draw.choice(TEXTS),
                steering=steering,
                refusal=refusal,
                chat=draw.random() < 0.4,
                stream=not refusal and draw.random() < 0.3,
                leaves=leaves,
            )
        )
    return made


def send(server: Server, asked: Asked, prompts: Mapping[str, Sequence[int]]) -> None:
    """Send one request and note its answer, or leave before it comes."""
    body: dict[str, Any] = {
        "model": "organism", "temperature": 0, "max_tokens": NEW, "return_token_ids": True,
        "stream": asked.stream,
    }  # fmt: skip
    if asked.steering is not None:
        body["vllm_xargs"] = {"steerkit": asked.steering}
    if asked.chat:
        route = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": asked.text}]
    else:
        route = "/v1/completions"
        body["prompt"] = list(prompts[asked.text])
    asked.start = time.monotonic()
    made = server.post(route, body)
    try:
        if asked.leaves is not None:
            if asked.stream:
                # After the first words of an answer.
                made.getresponse().readline()
            time.sleep(asked.leaves)
            return
        answer = made.getresponse()
        asked.status = answer.status
        if answer.status != 200:
            asked.message = answer.read().decode()
        elif asked.stream:
            asked.prompt, asked.tokens = read_stream(answer)
        else:
            found = json.loads(answer.read())
            choice = found["choices"][0]
            asked.tokens = tuple(choice["token_ids"])
            asked.prompt = tuple(found.get("prompt_token_ids") or choice["prompt_token_ids"])
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        asked.status, asked.message = -1, repr(error)
    finally:
        asked.end = time.monotonic()
        made.close()


def read_stream(answer: http.client.HTTPResponse) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and tokens of a streamed answer."""
    prompt: tuple[int, ...] = ()
    tokens: list[int] = []
    for line in answer:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        part = json.loads(line[6:])
        for choice in part["choices"]:
            prompt = prompt or tuple(
                part.get("prompt_token_ids") or choice.get("prompt_token_ids") or ()
            )
            tokens += choice.get("token_ids") or []
    return prompt, tuple(tokens)


def clients(
    server: Server, asked: Sequence[Asked], prompts: Mapping[str, Sequence[int]], n: int
) -> None:
    """`n` clients that share the requests out among themselves."""
    waiting: queue.SimpleQueue[Asked] = queue.SimpleQueue()
    for one in asked:
        waiting.put(one)

    def work() -> None:
        while True:
            try:
                one = waiting.get_nowait()
            except queue.Empty:
                return
            send(server, one, prompts)

    threads = [threading.Thread(target=work) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Truth:
    """What the Hugging Face engine answers."""

    def __init__(self, model: Any, files: Mapping[str, tuple[Any, ...]]) -> None:
        self.model, self.files = model, files
        self.prompts = {
            text: tuple(one.prompt)
            for text, one in zip(TEXTS, model.tokenize(list(TEXTS)), strict=True)
        }
        self._views: dict[Program, Any] = {}
        self._answers: dict[Program, dict[str, tuple[int, ...]]] = {}

    def view(self, program: Program) -> Any:
        """The model under a program."""
        if program not in self._views:
            parts = [] if program == "none" else json.loads(program)
            operators = [one for part in parts for one in self._operators(part)]
            self._views[program] = self.model.with_(*operators) if operators else self.model
        return self._views[program]

    def _operators(self, part: Mapping[str, Any]) -> Iterator[Any]:
        changes = {k: part[k] for k in ("strength", "sites") if k in part}
        for operator in self.files[part["artefact"]]:
            yield replace(operator, **changes) if changes else operator

    def answer(self, program: Program, text: str) -> tuple[int, ...]:
        """Tokens of a greedy answer."""
        if program not in self._answers:
            made = self.view(program).generate(list(TEXTS), max_new_tokens=NEW)
            self._answers[program] = {
                given: tuple(one.tokens) for given, one in zip(TEXTS, made, strict=True)
            }
        return self._answers[program][text]

    def tied(self, program: Program, text: str, got: tuple[int, ...]) -> bool:
        """Whether the two best tokens are too close to call where an answer first differs."""
        want = self.answer(program, text)
        at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), None)
        if at is None:
            return False
        batch = Batch.collate([Tokenized(self.prompts[text], want[:at])], pad_id=0)
        logits = self.view(program).run(batch, logits="last").logits[0, -1]
        return bool(logits[want[at]] - logits[got[at]] < 1e-5 * logits.abs().max())


def programs(asked: Asked, changes: Changes) -> list[Program]:
    """What a request may have been answered under: more than one while something changed."""
    if asked.kind == "none":
        return ["none"]
    if asked.kind == "live":
        found = [
            [{"artefact": "live", "strength": s}]
            for s in changes.live.during(asked.start, asked.end)
        ]
    elif asked.kind == "default":
        found = []
        for value in changes.default.during(asked.start, asked.end):
            if value is None:
                found.append([])
            else:
                name, strength = value
                own = {} if strength is None else {"strength": strength}
                found.append([{"artefact": name, **own}])
    else:
        given = asked.steering
        given = json.loads(given) if given[0] in "[{" else given
        listed = given if isinstance(given, list) else [given]
        found = [[{"artefact": one} if isinstance(one, str) else one for one in listed]]
    return list(dict.fromkeys(json.dumps(one) if one else "none" for one in found))


def judged(asked: Sequence[Asked], truth: Truth, changes: Changes) -> dict[str, Any]:
    """Counts, and every wrong answer."""
    kinds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    for one in asked:
        kinds[one.kind] += 1
        if one.leaves is not None:
            counts["left"] += 1
            continue
        problem = ""
        if one.refusal:
            counts["refused"] += 1
            said = one.status == 400 and "steering refused" in one.message
            if not said or not any(words in one.message for words in one.refusal.split("|")):
                problem = f"status {one.status}: {one.message[:300]}"
        elif one.status != 200:
            problem = f"status {one.status}: {one.message[:300]}"
        elif one.prompt != truth.prompts[one.text]:
            problem = f"prompt {one.prompt}"
        else:
            counts["answered"] += 1
            able = programs(one, changes)
            counts["either side of a change"] += len(able) > 1
            if not any(one.tokens == truth.answer(p, one.text) for p in able):
                if any(truth.tied(p, one.text, one.tokens) for p in able):
                    counts["ties"] += 1
                else:
                    problem = f"{one.tokens} under {able}"
            counts["steered otherwise than plain"] += one.tokens != truth.answer("none", one.text)
        if problem:
            wrong.append({"kind": one.kind, "steering": one.steering, "problem": problem})
    return {"kinds": dict(sorted(kinds.items())), **counts, "wrong": wrong}


def load(
    n: int, n_clients: int, *, seed: int = 0, parts: int = 5, pause: float = 0.3
) -> dict[str, Any]:
    """All of it.

    Args:
        n: requests.
        n_clients: at a time.
        seed: of the mix.
        parts: memory is read after each of as many equal parts.
        pause: mean seconds between two changes.
    """
    model = sk.load("organism:aligned")
    files = steerings(model.info)
    other = replace(model.info, name="another", fingerprint="0" * 64)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = {
            name: save_steering(folder / f"{name}.safetensors", made)
            for name, made in {
                **files,
                "foreign": steerings(other)["add"],
                "damaged": (sk.Add(files["add"][0].direction, 1.25),),
            }.items()
        }
        with serving(folder, paths) as server:
            artefacts = Artefacts(folder / "artefacts")
            damaged = artefacts.path(artefacts.named("damaged"))
            damaged.write_bytes(damaged.read_bytes()[:200])
            truth = Truth(model, files)
            changes = Changes(artefacts, seed, pause)
            asked = mix(n, seed, model.info.n_layers, paths["add"])
            changes.start()
            resident = in_parts(server, asked, truth.prompts, n_clients, parts)
            changes.done.set()
            changes.join()
            changes.change(changes.default, None)
            last = [Asked("none" if i else "default", TEXTS[i]) for i in range(len(TEXTS))]
            for one in last:
                one.steering = None if one.kind == "default" else "none"
            clients(server, last, truth.prompts, 1)
            left = server.unfinished()
            status, listing = server.get("/v1/steerkit")
            alive = server.alive() and server.get("/health")[0] == 200
            text = server.log.read_text(errors="replace")
        found = judged([*asked, *last], truth, changes)
    return {
        "requests": n,
        "clients": n_clients,
        **found,
        "changes": len(changes.live.changes) + len(changes.default.changes),
        "resident_mib": resident,
        "growth_mib": growth(resident),
        "unfinished_at_the_end": left,
        "alive_at_the_end": alive,
        "listing": [status, sorted(one["name"] for one in json.loads(listing)["artefacts"])]
        if status == 200
        else [status, []],
        "engine_errors": text.count("EngineDeadError") + text.count("Traceback (most recent"),
        "holds": not found["wrong"] and alive and left == 0,
    }


def unsteered(n: int, n_clients: int, *, seed: int = 0, parts: int = 5) -> dict[str, Any]:
    """The same requests without steering, to a vLLM without the plugin: what its memory does.

    Args:
        n: requests.
        n_clients: at a time.
        seed: of the mix.
        parts: as in `load`.
    """
    truth = Truth(sk.load("organism:aligned"), {})
    asked = [
        replace(one, kind="none", steering=None, refusal="")
        for one in mix(n, seed, truth.model.info.n_layers, Path("nowhere"))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        with serving(Path(scratch), {}, plugin=False) as server:
            resident = in_parts(server, asked, truth.prompts, n_clients, parts)
    wrong = [
        one.status
        for one in asked
        if one.leaves is None and one.tokens != truth.answer("none", one.text)
    ]
    return {
        "requests": n,
        "clients": n_clients,
        "wrong": len(wrong),
        "resident_mib": resident,
        "growth_mib": growth(resident),
    }


def in_parts(
    server: Server,
    asked: Sequence[Asked],
    prompts: Mapping[str, Sequence[int]],
    n_clients: int,
    parts: int,
) -> dict[str, list[float]]:
    """Send all of it; gives the resident MiB of each process after each part."""
    resident: dict[str, list[float]] = {}
    size = -(-len(asked) // parts)
    for first in range(0, len(asked), size):
        clients(server, asked[first : first + size], prompts, n_clients)
        for name, found in server.resident().items():
            resident.setdefault(name, []).append(found)
    return resident


def growth(resident: Mapping[str, Sequence[float]]) -> float:
    """MiB between the first reading and the last, all processes together."""
    return round(sum(sizes[-1] - sizes[0] for sizes in resident.values()), 1)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("--requests", type=int, default=2000)
    given.add_argument("--clients", type=int, default=32)
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--parts", type=int, default=8)
    options = given.parse_args()
    machine = timing.machine()
    machine["versions"]["vllm"] = vllm_version()
    settings = {"seed": options.seed, "parts": options.parts}
    plain = unsteered(options.requests, options.clients, **settings)
    print(json.dumps(plain), flush=True)
    found = load(options.requests, options.clients, **settings)
    memory = {
        "beyond_plain_mib": round(found["growth_mib"] - plain["growth_mib"], 1),
        "allowed_mib": GROWTH,
    }
    memory["holds"] = memory["beyond_plain_mib"] <= GROWTH
    print(json.dumps({**found, "memory": memory}, indent=1))
    parts = {"machine": machine, "load": found, "without_plugin": plain, "memory": memory}
    timing.update("vllm_load", parts)


if __name__ == "__main__":
    main()
