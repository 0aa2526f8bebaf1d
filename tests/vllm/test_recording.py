"""Captures of requests that come in chunks, wait and return: what is kept is what passed."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from steerkit.errors import InterventionError, OutputError, SiteError
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.vllm import records
from steerkit.vllm.capturing import Capture
from steerkit.vllm.layers import boundary
from steerkit.vllm.records import captured, claim
from steerkit.vllm.registrations import Artefacts
from steerkit.vllm.requests import KEY, Asked, read, steered
from steerkit.vllm.worker import Followed
from tests.vllm.test_worker import BOUNDARIES, ROWS, Runner, alone, halves

SITES = ("resid_pre@0", "resid_post@0", "resid_pre@1", "resid_post@1", "resid_post@2")


@pytest.fixture
def stocked(artefacts: Artefacts, steerings: Any, register: Any, tmp_path: Any) -> Artefacts:
    """Artefacts of every kind."""
    register(artefacts, steerings(), tmp_path)
    return artefacts


def capture(artefacts: Artefacts, info: ModelInfo, name: str, **what: Any) -> Capture:
    """A capture whose file is there."""
    made = Capture.read({"name": name, **what}, info)
    claim([made], info, "", artefacts)
    return made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("run", "is a dictionary with a 'name'"),
        ({"sites": [1]}, "is a dictionary with a 'name'"),
        ({"name": "../run", "sites": [1]}, "made of letters"),
        ({"name": "run"}, "nothing would be kept"),
        ({"name": "run", "sites": [1], "position": "all"}, "did you mean 'positions'"),
        ({"name": "run", "sites": [1], "pool": "max"}, "'mean' or left out"),
        ({"name": "run", "sites": [1], "pool": "mean", "positions": "all"}, "over the tokens of"),
        ({"name": "run", "sites": [1], "pool": "mean", "logits": True}, "capture of their own"),
        ({"name": "run", "sites": [1], "positions": "often"}, "no position rule named 'often'"),
        ({"name": "run", "sites": ["attn_out@1"]}, "no attn_out@1: tiny has resid_pre, resid_post"),
        ({"name": "run", "sites": [3]}, "no resid_post@3"),
        ({"name": "run", "sites": [1], "inline": True}, "come back with an answer"),
    ],
)
def test_what_cannot_be_captured_is_refused(
    artefacts: Artefacts, info: ModelInfo, given: Any, message: str
) -> None:
    with pytest.raises((InterventionError, SiteError), match=message):
        read({"capture": given}, artefacts, info)


def test_a_request_says_steering_captures_and_length_together(
    stocked: Artefacts, info: ModelInfo
) -> None:
    one = {"name": "one", "sites": [2, "resid_pre@0"], "positions": [-1, 0], "before": True}
    given = {"steering": ["add", "clamp"], "capture": [one, {"name": "two", "logits": True}]}
    asked = read({**given, "prompt_len": 7}, stocked, info)
    assert asked.parts == read(["add", "clamp"], stocked).parts
    assert asked.prompt_len == 7
    assert asked.captures[0].sites == ("resid_pre@0", "resid_post@2")
    assert Asked.from_wire(json.loads(json.dumps(asked.to_wire()))) == asked
    assert read(json.dumps({**given, "prompt_len": 7}), stocked, info) == asked
    alone = read({"capture": one}, stocked, info)
    assert not alone.parts and not steered(alone, stocked, info).programs
    for wrong, message in (
        ({"steering": "add", "strength": 2}, "stands in 'steering'"),
        ({"capture": [one, one]}, "the same name"),
        ({"prompt_len": "7"}, "a number of tokens"),
    ):
        with pytest.raises(InterventionError, match=message):
            read(wrong, stocked, info)


def test_which_tokens_can_come_out_of_a_cache() -> None:
    """All before the first that is kept; and rules mean what they mean for steering."""
    for positions, first, taken in (
        ("all", 0, [2, 3, 4, 5]),
        ("prompt", 0, [2, 3, 4]),
        ("last_prompt", 4, [4]),
        ("generated", 5, [5]),
        ((0, -2), 0, [3]),
        ((-2, 5), 3, [3, 5]),
    ):
        one = Capture("run", ("resid_post@0",), positions)
        assert (one.first(5), one.taken(2, 6, 5)) == (first, taken), positions


@pytest.mark.parametrize("seed", range(2))
def test_captures_hold_what_passed_while_requests_come_go_wait_and_return(
    info: ModelInfo, stocked: Artefacts, seed: int
) -> None:
    """Steered and plain, every rule, before and after, at boundaries that two sites share."""
    draw = np.random.default_rng(seed)
    engine = Followed(info, stocked, ROWS, device=torch.device("cpu"), dtype=torch.float64)
    runner = Runner()
    head = torch.randn(info.d_model, info.d_vocab + 6, generator=torch.Generator().manual_seed(0))
    runner.model = SimpleNamespace(compute_logits=lambda hidden: hidden.float() @ head)  # type: ignore[attr-defined]
    rules: list[Any] = ["all", "prompt", "generated", "last_prompt", [0, -1], "prompt"]
    kinds = [*sorted(stocked.names), None, None]
    given, want, sizes, prompts = {}, {}, {}, {}
    for i, kind in enumerate(kinds):
        name = f"r{i}"
        prompt, new = int(draw.integers(2, 7)), int(draw.integers(3, 7))
        sizes[name], given[name] = prompt + new, halves(77 * seed + i, prompt + new, info.d_model)
        # An answer may come along, so that fewer tokens count as prompt than vLLM takes for it.
        prompts[name] = max(1, prompt - i % 2)
        asked = read(
            {
                **({} if kind is None else {"steering": kind}),
                "prompt_len": prompts[name],
                "capture": [
                    {"name": f"{name}.after", "sites": SITES, "positions": rules[i % 5]},
                    {"name": f"{name}.before", "sites": SITES, "before": True, "logits": True},
                    {"name": f"{name}.mean", "sites": SITES, "pool": "mean"},
                    {"name": f"{name}.logits", "logits": True, "positions": "generated"},
                ][: 4 if i % 3 else 2],
            },
            stocked,
            info,
        )
        claim(asked.captures, info, asked.key, stocked)
        programs = dict(steered(asked, stocked, info).programs)
        want[name] = passed(programs, given[name][0] + given[name][1], prompts[name])
        runner.add(name, asked, prompt)
    running: dict[str, int] = {}
    waiting, last = list(sizes), {}
    while waiting or running:
        while len(running) < ROWS and waiting:
            running[waiting.pop()] = 0
        names = [str(name) for name in draw.permutation(list(running))]
        rows = [
            (name, running[name], min(sizes[name] - running[name], int(draw.integers(1, 4))))
            for name in names
        ]
        runner.schedule(rows)
        step = engine.step(runner)
        hidden = torch.empty(0)
        for place in range(BOUNDARIES):
            parts = [
                torch.stack([half[place, at : at + n] for half in given[name]])
                for name, at, n in rows
            ]
            hidden, residual = torch.cat(parts, 1).clone()
            if step is not None:
                step.at(hidden, residual, place)
        engine.ran(runner, hidden)
        ends = np.cumsum([n for _, _, n in rows])
        for (name, at, n), end in zip(rows, ends, strict=True):
            last.setdefault(name, torch.zeros(sizes[name], info.d_model, dtype=torch.float64))
            last[name][at : at + n] = hidden[end - n : end]
            running[name] = at + n
            if running[name] == sizes[name]:
                del running[name], runner.requests[name]
            elif draw.random() < 0.15:
                # All of it runs again, since all of it was to be captured.
                del running[name]
                waiting.insert(0, name)
    for i, name in enumerate(sizes):
        check(stocked, name, want[name], rules[i % 5], prompts[name], last[name] @ head.double())
    runner.schedule([])
    assert engine.step(runner) is None


def passed(programs: Any, stream: Any, prompt_len: int) -> dict[str, tuple[Any, Any]]:
    """Of each site, what comes in and what goes out, by the reference executor."""
    found = {}
    for text in SITES:
        site = Site.parse(text)
        earlier = {s: p for s, p in programs.items() if s < site}
        upto = {s: p for s, p in programs.items() if s <= site}
        incoming, outgoing = (alone(some, stream, prompt_len) for some in (earlier, upto))
        found[text] = incoming[boundary(site)], outgoing[boundary(site)]
    return found


def check(
    artefacts: Artefacts, name: str, want: Any, rule: Any, prompt_len: int, logits: Any
) -> None:
    """Each file of a request holds its positions, and there what passed."""
    total = len(logits)
    wanted = {
        "all": list(range(total)),
        "prompt": list(range(prompt_len)),
        "generated": list(range(prompt_len, total)),
        "last_prompt": [prompt_len - 1],
    }
    after = captured(f"{name}.after", place=artefacts)
    positions = wanted[rule] if isinstance(rule, str) else sorted({0, prompt_len - 1})
    assert after.positions.tolist() == positions
    before = captured(f"{name}.before", place=artefacts)
    assert before.positions.tolist() == list(range(total))
    for site in SITES:
        assert torch.allclose(after.at(site).double(), want[site][1][positions], atol=1e-5)
        assert torch.allclose(before.at(site).double(), want[site][0], atol=1e-5), site
    assert before.logits is not None and before.logits.shape == (total, 50)
    assert torch.allclose(before.logits.double(), logits[:, :50], atol=1e-4)
    if not (artefacts.folder / "captures" / f"{name}.mean.records").exists():
        return
    mean = captured(f"{name}.mean", place=artefacts)
    assert mean.positions.tolist() == [-1]
    for site in SITES:
        expected = want[site][1][:prompt_len].mean(0)
        assert torch.allclose(mean.at(site)[0].double(), expected, atol=1e-5)
    scored = captured(f"{name}.logits", place=artefacts)
    assert scored.logits is not None and scored.values.shape[1] == 0
    assert torch.allclose(scored.logits.double(), logits[prompt_len:, :50], atol=1e-4)


def test_names_are_taken_once_and_files_go_when_they_are_read(
    artefacts: Artefacts, info: ModelInfo
) -> None:
    one = capture(artefacts, info, "run", sites=[1])
    with pytest.raises(InterventionError, match="a capture named 'run' is here already"):
        claim([replace(one, name="first"), one], info, "", artefacts)
    for value in (1.0, 2.0):
        stream = torch.full((2, 1, info.d_model), value)
        records.append("run", artefacts, [4, 3] if value == 1 else [3, 5], stream, None)
    found = captured("run", place=artefacts, keep=True)
    assert found.positions.tolist() == [3, 4, 5]
    assert found.at(1)[:, 0].tolist() == [2.0, 1.0, 2.0]
    assert "3 tokens of 1 sites, unsteered" in repr(found)
    assert json.loads(json.dumps(found.to_json()))["positions"] == [3, 4, 5]
    assert captured("run", place=artefacts).positions.tolist() == [3, 4, 5]
    with pytest.raises(OutputError, match="no capture named 'run'"):
        captured("run", place=artefacts)
    # What comes late, for a request that was given up, goes nowhere.
    records.append("run", artefacts, [3], torch.zeros(1, 1, info.d_model), None)
    assert not list((artefacts.folder / "captures").iterdir())


def test_a_file_that_ends_early_is_refused(artefacts: Artefacts, info: ModelInfo) -> None:
    capture(artefacts, info, "run", sites=[1])
    records.append("run", artefacts, [0, 1], torch.zeros(2, 1, info.d_model), None)
    path = records.path_of("run", artefacts)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(OutputError, match="ends within a record"):
        captured("run", place=artefacts)
    path.write_bytes(b"steer")
    with pytest.raises(OutputError, match="not a readable capture"):
        captured("run", place=artefacts)


def test_other_ranks_compute_logits_alike_and_write_nothing(
    artefacts: Artefacts, info: ModelInfo
) -> None:
    one = capture(artefacts, info, "run", sites=[1], logits=True)
    engine = Followed(
        info, artefacts, ROWS, device=torch.device("cpu"), dtype=torch.float32, writes=False
    )
    runner, asked = Runner(), []
    runner.model = SimpleNamespace(compute_logits=asked.append)  # type: ignore[attr-defined]
    runner.add("a", Asked((), None, (one,)), 3)
    runner.requests["a"].sampling_params.extra_args = {KEY: Asked((), None, (one,)).to_wire()}
    runner.schedule([("a", 0, 3)])
    step = engine.step(runner)
    assert step is not None
    hidden = torch.randn(3, info.d_model)
    for place in range(BOUNDARIES):
        step.at(hidden, None, place)
    engine.ran(runner, hidden)
    assert torch.equal(torch.cat(asked), hidden)
    assert not len(captured("run", place=artefacts).positions)


def test_what_comes_back_with_an_answer_is_few_and_says_what_is_wrong(
    artefacts: Artefacts, info: ModelInfo
) -> None:
    one = capture(artefacts, info, "run", sites=[1], positions=[0, -1], inline=True)
    gone = Capture.read({"name": "gone", "sites": [1], "pool": "mean", "inline": True}, info)
    records.append("run", artefacts, [0, 4], torch.ones(2, 1, info.d_model), None)
    found = records.inline([one, gone], artefacts)
    assert found["run"]["positions"] == [0, 4]
    assert found["run"]["values"] == torch.ones(2, 1, info.d_model).tolist()
    assert "no capture named 'gone'" in found["gone"]["error"]


def test_a_default_steers_what_is_captured_too(stocked: Artefacts, info: ModelInfo) -> None:
    """Asking for a capture is no word about steering; saying `none` is."""
    one = {"name": "one", "sites": [2]}
    stocked.set_default("add", 0.5)
    default = read({"artefact": "add", "strength": 0.5}, stocked)
    assert read({"capture": one}, stocked, info).parts == default.parts
    for silent in ("none", None):
        assert not read({"capture": one, "steering": silent}, stocked, info).parts
