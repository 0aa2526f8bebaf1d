"""A packed stream of requests that come, go, move, wait and return: each is treated as alone."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerkit.kernels import reference
from steerkit.program import Program
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.vllm.layers import boundary
from steerkit.vllm.registrations import Artefacts
from steerkit.vllm.requests import KEY, Asked, read, steered
from steerkit.vllm.worker import Followed

ROWS = 6
BOUNDARIES = 4


def halves(seed: int, n: int, d_model: int) -> tuple[Tensor, Tensor]:
    """Hidden and residual of `n` tokens at every boundary, `[boundary token d_model]`."""
    made = torch.Generator().manual_seed(seed)
    shape = (2, BOUNDARIES, n, d_model)
    hidden, residual = torch.randn(shape, generator=made, dtype=torch.float64)
    return hidden, residual


def alone(programs: dict[Site, Program], stream: Tensor, prompt_len: int) -> Tensor:
    """What the reference makes of one whole text at every boundary; boundaries are not chained."""
    latches: dict[str, Tensor] = {}
    out = stream.clone()
    for site, program in sorted(programs.items()):
        place = boundary(site)
        out[place] = reference.apply(
            reference.pack((Program(), program), torch.device("cpu"), torch.float64),
            out[place][None],
            absolute=torch.arange(stream.shape[1])[None],
            prompt_len=torch.tensor([prompt_len]),
            row=torch.tensor([0]),
            slot=(1,),
            latches=latches,
        )[0]
    return out


class Runner:
    """The parts of vLLM's runner that are read, driven by hand."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}
        self.input_batch = SimpleNamespace(req_ids=[], num_computed_tokens_cpu=np.zeros(ROWS, int))
        self.query_start_loc = SimpleNamespace(np=np.zeros(ROWS + 1, int))

    def add(self, name: str, asked: Asked | None, prompt_len: int) -> None:
        """A new request."""
        extra = None if asked is None else {KEY: asked.to_wire()}
        parameters = SimpleNamespace(extra_args=extra)
        self.requests[name] = SimpleNamespace(
            sampling_params=parameters, num_prompt_tokens=prompt_len
        )

    def schedule(self, rows: list[tuple[str, int, int]]) -> None:
        """A pass over rows of `(name, computed tokens, tokens now)`."""
        self.input_batch.req_ids = [name for name, _, _ in rows]
        lengths = [n for _, _, n in rows]
        self.query_start_loc.np[: len(rows) + 1] = np.cumsum([0, *lengths])
        self.input_batch.num_computed_tokens_cpu[: len(rows)] = [at for _, at, _ in rows]


@pytest.fixture
def asked(
    info: ModelInfo, artefacts: Artefacts, steerings: Any, register: Any, tmp_path: Any
) -> dict[str, Asked]:
    """One steering of each kind, as requests bring them."""
    register(artefacts, steerings(), tmp_path)
    return {name: read(name, artefacts) for name in artefacts.names}


def followed(info: ModelInfo, artefacts: Artefacts) -> Followed:
    """The steered requests of an engine in float64."""
    return Followed(info, artefacts, ROWS, device=torch.device("cpu"), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_steering_is_as_alone_while_requests_come_go_wait_and_return(
    info: ModelInfo, artefacts: Artefacts, asked: dict[str, Asked], seed: int
) -> None:
    """Random schedules: chunks of prompts, swapped rows, interrupted and restarted requests."""
    draw = np.random.default_rng(seed)
    engine, runner = followed(info, artefacts), Runner()
    kinds = [*asked, *asked, None, None, None]
    waiting = [(f"r{i}", kinds[k]) for i, k in enumerate(draw.permutation(len(kinds)))]
    sizes = {name: (int(draw.integers(2, 7)), int(draw.integers(3, 7))) for name, _ in waiting}
    want, given, seen = {}, {}, {}
    for i, (name, kind) in enumerate(waiting):
        prompt, new = sizes[name]
        given[name] = halves(1000 * seed + i, prompt + new, info.d_model)
        total = given[name][0] + given[name][1]
        programs = {} if kind is None else dict(steered(asked[kind], artefacts, info).programs)
        want[name] = alone(programs, total, prompt)
        seen[name] = torch.full_like(total, torch.nan)
        runner.add(name, None if kind is None else asked[kind], prompt)
    running: dict[str, int] = {}
    paused: dict[str, int] = {}
    interrupted = 0
    while waiting or running or paused:
        while len(running) < ROWS and (waiting or paused):
            if (paused and draw.random() < 0.5) or not waiting:
                name = next(iter(paused))
                # Back to the start, or to what the prefix cache still has of it.
                running[name] = paused.pop(name)
            else:
                running[waiting.pop()[0]] = 0
        names = [str(name) for name in draw.permutation(list(running))]
        rows = []
        for name in names:
            left = sum(sizes[name]) - running[name]
            in_prompt = running[name] < sizes[name][0]
            now = min(left, int(draw.integers(1, 5))) if in_prompt else 1
            rows.append((name, running[name], now))
        runner.schedule(rows)
        step = engine.step(runner)
        for place in range(BOUNDARIES):
            parts = [
                torch.stack([half[place, at : at + n] for half in given[name]])
                for name, at, n in rows
            ]
            hidden, residual = torch.cat(parts, 1).clone()
            before = hidden.clone()
            if step is not None:
                step.at(hidden, residual, place)
            ends = np.cumsum([n for _, _, n in rows])
            for (name, at, n), end in zip(rows, ends, strict=True):
                seen[name][place, at : at + n] = (hidden + residual)[end - n : end]
                if KEY not in (runner.requests[name].sampling_params.extra_args or {}):
                    assert torch.equal(hidden[end - n : end], before[end - n : end])
        for name, at, n in rows:
            running[name] = at + n
            if running[name] == sum(sizes[name]):
                del running[name], runner.requests[name]
            elif draw.random() < 0.1 and interrupted < 8:
                interrupted += 1
                whole = running.pop(name)
                resumed = int(draw.integers(0, whole + 1))
                # What has to see the whole prompt reads nothing from a cache.
                paused[name] = 0 if _whole(runner, name, artefacts, info) else resumed
    assert interrupted > 2
    for name, expected in want.items():
        assert torch.allclose(seen[name], expected, atol=1e-12, rtol=1e-12), name


def _whole(runner: Runner, name: str, artefacts: Artefacts, info: ModelInfo) -> bool:
    extra = runner.requests[name].sampling_params.extra_args
    return bool(extra) and steered(Asked.from_wire(extra[KEY]), artefacts, info).whole_prompt


@pytest.mark.parametrize("kind", ["latch", "mean"])
@pytest.mark.parametrize("open_", [True, False])
def test_what_was_decided_on_a_prompt_survives_an_interruption(
    info: ModelInfo, artefacts: Artefacts, asked: dict[str, Asked], kind: str, open_: bool
) -> None:
    """The request returns with its prompt in the prefix cache, so nothing can be decided anew."""
    programs = dict(steered(asked[kind], artefacts, info).programs)
    for seed in range(20):
        hidden, residual = halves(seed, 6, info.d_model)
        want = alone(programs, hidden + residual, 4)
        if torch.equal(want[:, 4:], (hidden + residual)[:, 4:]) != open_:
            break
    engine, runner = followed(info, artefacts), Runner()
    runner.add("a", asked[kind], 4)
    runner.add("b", None, 2)
    for rows in ([("a", 0, 3)], [("a", 3, 1)], [("b", 0, 2)], [("b", 2, 1), ("a", 4, 2)]):
        runner.schedule(rows)
        step = engine.step(runner)
        first = 0
        for name, at, n in rows:
            for place in range(BOUNDARIES) if name == "a" and step is not None else ():
                whole = torch.zeros(first + n, info.d_model, dtype=torch.float64)
                rest = whole.clone()
                whole[first:], rest[first:] = (
                    half[place, at : at + n] for half in (hidden, residual)
                )
                step.at(whole, rest, place)
                assert torch.allclose((whole + rest)[first:], want[place, at : at + n], atol=1e-12)
            first += n


def test_unsteered_requests_make_no_step(info: ModelInfo, artefacts: Artefacts) -> None:
    engine, runner = followed(info, artefacts), Runner()
    runner.add("a", None, 3)
    runner.schedule([("a", 0, 3)])
    assert engine.step(runner) is None
    assert engine.room.table is None


def test_a_pass_can_hold_as_many_programs_as_rows_and_forgets_the_oldest(
    info: ModelInfo, artefacts: Artefacts, asked: dict[str, Asked]
) -> None:
    engine, runner = followed(info, artefacts), Runner()
    for i, (name, one) in enumerate(asked.items()):
        runner.add(name, one, 2)
        recent = list(asked)[max(0, i - ROWS + 1) : i + 1]
        runner.schedule([(other, 0, 2) for other in recent])
        assert engine.step(runner) is not None
    assert engine.room.table is not None
    assert engine.room.table.capacity.slots == ROWS


def test_steering_that_no_front_end_looked_at_stops_the_engine(
    info: ModelInfo, artefacts: Artefacts
) -> None:
    engine, runner = followed(info, artefacts), Runner()
    runner.add("a", None, 3)
    runner.requests["a"].sampling_params.extra_args = {KEY: "joy"}
    runner.schedule([("a", 0, 3)])
    with pytest.raises(Exception, match="without passing this plugin's admission"):
        engine.step(runner)


def test_halves_of_tokens_at_which_a_gate_is_closed_keep_their_bits(
    info: ModelInfo, artefacts: Artefacts, asked: dict[str, Asked]
) -> None:
    engine, runner = followed(info, artefacts), Runner()
    runner.add("a", asked["gated"], 40)
    runner.schedule([("a", 0, 40)])
    step = engine.step(runner)
    assert step is not None
    hidden, residual = (half[2] for half in halves(0, 40, info.d_model))
    before = hidden.clone()
    step.at(hidden, residual, 2)
    moved = (hidden != before).any(-1)
    gate = next(iter(steered(asked["gated"], artefacts, info).programs.values())).groups[0].gates[0]
    assert gate is not None
    assert torch.equal(moved, (before + residual) @ gate.read >= 0)
    assert 5 < int(moved.sum()) < 35


def test_what_the_builders_make_is_used(asked: dict[str, Asked]) -> None:
    """Every kind has its own key, so that no two share a slot or a cached block."""
    assert len({one.key for one in asked.values()}) == len(asked) == 14
