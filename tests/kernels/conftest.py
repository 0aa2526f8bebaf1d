"""Random programs, and their evaluation token by token in plain float64."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.batch import Batch, Positions, Tokenized
from steerkit.program import Group, Opcode, Program

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


def token_by_token(programs: Sequence[Program], h: Tensor, batch: Batch) -> Tensor:
    """What row i becomes under programs[i], one token and one term at a time."""
    out = h.double().clone()
    for i, program in enumerate(programs):
        padding = int((~batch.mask[i]).sum())
        for column in range(padding, h.shape[1]):
            t, length, prompt = column - padding, int(batch.prompt_len[i]), int(batch.rows[i])
            x = out[i, column]
            for group in program.groups:
                delta = torch.zeros_like(x)
                for j, opcode in enumerate(group.opcodes):
                    if not acts(group.positions[j], t, length, prompt):
                        continue
                    p = float(group.read[j].double() @ x - group.offset[j])
                    a, b, z = group.params[j].tolist()
                    c = {0: a, 1: a * p + b, 2: z * (min(max(p, a), b) - p)}[int(opcode)]
                    delta += c * group.write[j].double()
                x = x + delta
            out[i, column] = x
    return out


def a_batch(seed: int, n: int = 5) -> Batch:
    """Left-padded prompts of different lengths, some with answers, rows shuffled."""
    r = random.Random(seed)
    items = [
        Tokenized((1,) * r.randint(1, 6), (2,) * (r.randint(0, 4) if i else 3)) for i in range(n)
    ]
    return Batch.collate(items, pad_id=0, rows=r.sample(range(n), n))


def a_program(
    seed: int,
    *,
    groups: int = 1,
    terms: int = 3,
    d_model: int = 16,
    rules: Sequence[Any] = RULES,
    opcodes: Sequence[Opcode] = tuple(Opcode)[:3],
    prompts: int = 5,
) -> Program:
    """Random reads, writes, offsets, opcodes and rules; some clamps are one-sided."""
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
        return [r.gauss(0, 1), r.gauss(0, 1), 0.0]

    def rule() -> Positions:
        chosen = r.choice(rules)
        if chosen == "mask":
            return Positions.of(torch.rand(prompts, 8, generator=g) < 0.5)
        return Positions.of(chosen)

    made = []
    for _ in range(groups):
        ops = [r.choice(opcodes) for _ in range(terms)]
        made.append(
            Group(
                tuple(ops),
                normal(terms, d_model),
                normal(terms),
                normal(terms, d_model),
                torch.tensor([params(op) for op in ops], dtype=torch.float64),
                tuple(rule() for _ in ops),
            )
        )
    return Program(tuple(made))


@pytest.fixture
def direct() -> Callable[..., Tensor]:
    return token_by_token


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
    return a_batch


@pytest.fixture
def random_program() -> Callable[..., Program]:
    return a_program
