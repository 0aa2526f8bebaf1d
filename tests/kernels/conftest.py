"""Random programs, and their evaluation token by token in plain float64."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.batch import Batch, Positions, Tokenized
from steerkit.program import Gate, Group, Latch, Opcode, Program

RULES: tuple[Any, ...] = ("all", "prompt", "last_prompt", "generated", (0, 2, -1), (-2,), "mask")


def acts(rule: Positions, t: int, prompt_len: int, prompt: int) -> bool:
    """Whether a rule holds at absolute position t, written out from the definitions."""
    if t < 0:
        return False
    if rule.rule == "mask":
        assert rule.mask is not None
        return t < rule.mask.shape[1] and bool(rule.mask[prompt, t])
    return {
        "all": True,
        "prompt": t < prompt_len,
        "last_prompt": t == prompt_len - 1,
        "generated": t >= prompt_len,
        "indices": any(t == (i if i >= 0 else prompt_len + i) for i in rule.indices),
    }[rule.rule]


def coefficient(opcode: Opcode, p: float, q: float, params: Sequence[float]) -> float:
    """c of a term that keeps no norm, written out from the definitions; q: read of the partner."""
    a, b, z = params
    return {
        Opcode.CONSTANT: a,
        Opcode.AFFINE: a * p + b,
        Opcode.CLAMP: z * (min(max(p, a), b) - p),
        Opcode.ACTIVATION: z * (a - (p if p > b else 0.0)),
        Opcode.TURN: z * (a * math.sqrt(p * p + q * q) - p),
    }[opcode]


def holds(gate: Gate, h: Tensor) -> bool:
    """Whether a condition holds of one vector."""
    level = float(gate.read @ h)
    if gate.measure == "cosine":
        level = level / float(h.norm()) if float(h.norm()) else 0.0
    return level >= gate.threshold if gate.above else level < gate.threshold


def registers(program: Program, h: Tensor, prompt_len: int) -> dict[str, bool]:
    """What the latches of a program decide about one row without padding."""
    prompt = h[:prompt_len].double()
    return {
        latch.name: holds(
            latch.condition, prompt[-1] if latch.pooled == "last_prompt" else prompt.mean(0)
        )
        for latch in program.latches
    }


def moved(group: Group, x: Tensor, closed: Sequence[bool]) -> Tensor:
    """One token after one group, term by term."""
    out = x.clone()
    for j, opcode in enumerate(group.opcodes):
        if closed[j]:
            continue
        params, write = group.params[j].tolist(), group.write[j].double()
        if opcode == Opcode.KEEP_NORM:
            added = x + params[0] * write
            out += added * (x.norm() / added.norm()) - x
            continue
        p = float(group.read[j].double() @ x - group.offset[j])
        k = j + int(params[1]) if opcode == Opcode.TURN else j
        q = float(group.read[k].double() @ x - group.offset[k])
        out += coefficient(opcode, p, q, params) * write
    return out


def token_by_token(
    programs: Sequence[Program],
    h: Tensor,
    batch: Batch,
    known: Sequence[dict[str, bool]] | None = None,
) -> Tensor:
    """What row i becomes under programs[i], one token and one term at a time.

    `known` is what was decided about each row at earlier sites.
    """
    out = h.double().clone()
    for i, program in enumerate(programs):
        padding, length = int((~batch.mask[i]).sum()), int(batch.prompt_len[i])
        latched = {
            **(known[i] if known else {}),
            **registers(program, h[i, padding:], length),
        }
        for column in range(padding, h.shape[1]):
            t, prompt = column - padding, int(batch.rows[i])
            x = out[i, column]
            for group in program.groups:
                closed = []
                for j in range(len(group)):
                    gate = group.gates[j] if group.gates else None
                    is_open = acts(group.positions[j], t, length, prompt)
                    if gate and gate.latch:
                        is_open = is_open and t >= length - 1 and latched[gate.latch]
                    elif gate:
                        is_open = is_open and holds(gate, x)
                    closed.append(not is_open)
                x = moved(group, x, closed)
            out[i, column] = x
    return out


def a_batch(seed: int, n: int = 5) -> Batch:
    """Left-padded prompts of different lengths, some with answers, rows shuffled."""
    r = random.Random(seed)
    items = [
        Tokenized((1,) * r.randint(1, 6), (2,) * (r.randint(0, 4) if i else 3)) for i in range(n)
    ]
    return Batch.collate(items, pad_id=0, rows=r.sample(range(n), n))


def a_unit(g: torch.Generator, d_model: int = 16) -> Tensor:
    """A random unit vector."""
    v = torch.randn(d_model, generator=g, dtype=torch.float64)
    return v / v.norm()


def a_program(
    seed: int,
    *,
    groups: int = 1,
    terms: int = 3,
    d_model: int = 16,
    rules: Sequence[Any] = RULES,
    opcodes: Sequence[Opcode] = tuple(Opcode),
    prompts: int = 5,
    gated: bool = False,
    latched: bool = False,
) -> Program:
    """Random reads, writes, offsets, opcodes and rules; some clamps are one-sided.

    Turns come in pairs, so there may be one term more than asked for. With `gated` about half
    of the terms have a gate at the same token; with `latched`, one that two latches decide.
    """
    r = random.Random(seed)
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64) / d_model**0.5

    def params(opcode: Opcode) -> list[float]:
        if opcode == Opcode.CLAMP:
            edges = sorted([r.gauss(0, 1), r.gauss(0, 1)])
            side = r.randrange(3)
            low = -float("inf") if side == 1 else edges[0]
            return [low, float("inf") if side == 2 else edges[1], r.uniform(0.3, 1)]
        return [r.gauss(0, 1), r.gauss(0, 1), r.uniform(0.3, 1)]

    def rule() -> Positions:
        chosen = r.choice(rules)
        if chosen == "mask":
            return Positions.of(torch.rand(prompts, 8, generator=g) < 0.5)
        return Positions.of(chosen)

    def condition(latch: str = "") -> Gate:
        measure: Any = r.choice(["cosine", "projection"])
        threshold = r.uniform(-0.2, 0.2)
        return Gate(a_unit(g, d_model), threshold, measure, r.random() < 0.6, latch)

    latches = tuple(
        Latch(f"{seed}/{n}", condition(f"{seed}/{n}"), pooled)
        for n, pooled in enumerate(("last_prompt", "mean_prompt") if latched else ())
    )

    def gate() -> Gate | None:
        if (gated or latched) and r.random() < 0.6:
            if latches and not (gated and r.random() < 0.4):
                return r.choice(latches).condition
            return condition()
        return None

    made = []
    for _ in range(groups):
        ops: list[Opcode] = []
        while len(ops) < terms:
            op = r.choice(opcodes)
            ops += [op] * (2 if op == Opcode.TURN else 1)
        n = len(ops)
        read, write, offset = normal(n, d_model), normal(n, d_model), normal(n)
        numbers = torch.tensor([params(op) for op in ops], dtype=torch.float64)
        where, gates = [rule() for _ in ops], [gate() for _ in ops]
        first = 0
        while first < n:
            if ops[first] == Opcode.TURN:
                angle = r.uniform(-math.pi, math.pi)
                numbers[first] = torch.tensor([math.cos(angle), 1, 0.7])
                numbers[first + 1] = torch.tensor([math.sin(angle), -1, 0.7])
                where[first + 1], gates[first + 1] = where[first], gates[first]
                first += 1
            elif ops[first] == Opcode.KEEP_NORM:
                read[first] = write[first] = a_unit(g, d_model)
                offset[first] = 0
            first += 1
        made.append(
            Group(
                tuple(ops),
                read,
                offset,
                write,
                numbers,
                tuple(where),
                tuple(gates) if gated or latched else (),
            )
        )
    return Program(tuple(made), latches)


@pytest.fixture
def direct() -> Callable[..., Tensor]:
    return token_by_token


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
    return a_batch


@pytest.fixture
def random_program() -> Callable[..., Program]:
    return a_program
