"""What a program costs inside the norm that follows it: residual add, program, RMSNorm, compiled.

    python benchmarks/norm_fused.py [--quick] [--threads 2] [--repeats 41] [--tokens 64 2048]

On a CPU, where Inductor fuses them; on a GPU it is the Triton kernel, in `gpu_kernels.py`. The
base is the residual add and RMSNorm alone, compiled by the same compiler, with no program in it.
Every arm is compared with float64 before it is timed. Writes `results/norm_fused.json`.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch
from gpu_kernels import EPS, program, table_of
from torch import Tensor

from steerkit.kernels import static
from steerkit.program import Opcode, Program

BASE = "residual add and RMSNorm"
SLOTS = 32
WORK = 1 << 24
"""Elements of a round: a single call on few tokens is too short to be timed."""


def alone(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Llama's norm of a stream that something was added to."""
    h = x + residual
    return h, h * torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS) * weight


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A graph of its own for each arm: they share their code."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def arm(
    x: Tensor, residual: Tensor, weight: Tensor, programs: list[Program], slots: list[int]
) -> Callable[[], tuple[Tensor, Tensor]]:
    """The fused norm under programs, checked."""
    tables = [table_of(programs, x.shape[1], "cpu", dtype) for dtype in (x.dtype, torch.float64)]
    slot = torch.tensor(slots)
    active = torch.full_like(slot, (1 << tables[0].capacity.terms) - 1)
    fused = compiled(
        lambda: static.add_rmsnorm(x, residual, weight, slot, active, tables[0].tensors, 0, eps=EPS)
    )
    exact = static.add_rmsnorm(
        x.double(), residual.double(), weight.double(), slot, active, tables[1].tensors, 0, eps=EPS
    )
    for found, wanted in zip(fused(), exact, strict=True):
        error = float((found.double() - wanted).norm() / wanted.norm())
        if not error < 1e-6:
            raise SystemExit(f"wrong by {error:.2e}")
    return fused


def arms(tokens: int, width: int) -> dict[str, Callable[[], Any]]:
    """The norm alone, and under each kind of program."""
    draw = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(tokens, width, generator=draw) for _ in range(2))
    weight = torch.rand(width, generator=draw) + 0.5
    under = partial(arm, x, residual, weight)
    one = [1] * tokens
    distinct = [program(width, Opcode.CONSTANT, seed=i) for i in range(SLOTS)]
    base = compiled(lambda: alone(x, residual, weight))
    base()
    made = {
        BASE: base,
        f"{BASE}, again (A/A)": base,
        "add": under([program(width, Opcode.CONSTANT)], one),
        "ablate": under([program(width, Opcode.AFFINE)], one),
        "ablate 3 directions": under([program(width, Opcode.AFFINE, terms=3)], one),
        "gated add": under([program(width, Opcode.CONSTANT, gate=True)], one),
        "add, norm kept": under([program(width, Opcode.KEEP_NORM)], one),
        f"add, {SLOTS} programs": under(distinct, [1 + i % SLOTS for i in range(tokens)]),
    }
    calls = min(100, max(1, WORK // (tokens * width)))
    return {name: partial(timing.repeated, function, calls) for name, function in made.items()}


def main() -> None:
    """Check, time, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny and few; proves it runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=41)
    options.add_argument("--tokens", type=int, nargs="+", default=[64, 2048])
    options.add_argument("--width", type=int, default=4096)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.quick:
        given.repeats, given.tokens, given.width = 2, [4], 64
    for tokens in given.tokens:
        before = timing.machine()
        with torch.no_grad():
            times = timing.measure(arms(tokens, given.width), repeats=given.repeats, warmup=3)
        table = timing.rows(times, BASE)
        timing.show(f"{tokens} x {given.width}, float32", table)
        before["load_average_after"] = list(os.getloadavg())
        name = "norm_fused-quick" if given.quick else "norm_fused"
        part = {f"{tokens}x{given.width}": {"machine": before, "rows": table}}
        print(timing.update(name, part))


if __name__ == "__main__":
    main()
