"""The Triton kernels on a GPU: right first, then timed; nothing is written if they are wrong.

    python benchmarks/gpu_kernels.py [--tokens 1 32 256 8192] [--width 4096] [--repeats 15]

Each arm is one CUDA graph of many launches, replayed. The base is the fused residual add and
RMSNorm with every token at slot 0. Writes `results/gpu_kernels.json` with the device's name.
It has not been run on a GPU yet: there are no committed results.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import timing
import torch
from torch import Tensor

from steerkit.batch import Positions
from steerkit.kernels import dispatch, static
from steerkit.kernels.device import DeviceTable
from steerkit.kernels.layout import Capacity
from steerkit.program import Gate, Group, Opcode, Program
from steerkit.site import Site

SITE = Site(0)
EPS = 1e-5
LAUNCHES = 50
FUSED_GOAL, DISTINCT_GOAL, BANDWIDTH_GOAL = 1.03, 1.28, 1 / 0.85
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}


def program(
    width: int, opcode: Opcode, *, terms: int = 1, gate: bool = False, seed: int = 0
) -> Any:
    """Random unit directions that are all read and written, everywhere."""
    g = torch.Generator().manual_seed(seed)
    units = torch.linalg.qr(torch.randn(width, terms, generator=g, dtype=torch.float64))[0].T
    strength = {Opcode.CONSTANT: 3.0, Opcode.AFFINE: -1.0, Opcode.KEEP_NORM: 3.0}[opcode]
    params = torch.tensor([[strength, 0.0, 0.0]] * terms, dtype=torch.float64)
    gates = (Gate(units[0], -2.0, "cosine") if gate else None,) * terms
    every = (Positions(),) * terms
    offset = torch.zeros(terms, dtype=torch.float64)
    return Program((Group((opcode,) * terms, units, offset, units, params, every, gates),))


def table_of(programs: Sequence[Program], width: int, device: str, dtype: Any) -> DeviceTable:
    """One program a slot."""
    table = DeviceTable([SITE], width, Capacity.fitting(programs), device=device, dtype=dtype)
    for slot, each in enumerate(programs, 1):
        table.write_slot(slot, {SITE: each})
    return table


def rows_of(table: DeviceTable, slots: Sequence[int], device: str) -> static.Rows:
    """Decoding: one token a request."""
    table.check_slots(slots)
    n = len(slots)
    token, slot = torch.arange(n, device=device), torch.tensor(slots, device=device)
    length, at = torch.ones(n, dtype=torch.long, device=device), torch.full_like(slot, 5)
    return dispatch.prepare(table.tensors, token, at, slot, length, path="triton")


def check(device: str, tokens: int, width: int, dtype: Any) -> None:
    """Every kernel against float64 torch, slot 0 to the bit, and edits of what was captured."""
    kinds = (Opcode.CONSTANT, Opcode.AFFINE, Opcode.KEEP_NORM)
    programs = [
        program(width, op, terms=2, gate=gate, seed=i)
        for i, (op, gate) in enumerate((op, gate) for op in kinds for gate in (False, True))
    ]
    table, exact = (table_of(programs, width, device, d) for d in (dtype, torch.float64))
    rows = rows_of(table, [i % (len(programs) + 1) for i in range(tokens)], device)
    g = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(tokens, width, generator=g).to(device, dtype) for _ in range(2))
    weight = torch.randn(width, generator=g).to(device, dtype)
    at = (rows.slot, rows.active[0])

    def near(name: str, out: Tensor, wanted: Tensor) -> None:
        error = float((out.double() - wanted).norm() / wanted.norm())
        if not error < 2 * TOLERANCE[dtype]:
            raise SystemExit(f"{name} is wrong by {error:.2e} at {dtype}, {tokens} x {width}")

    out = dispatch.rows_program(x, rows, table.tensors, 0, path="triton")
    near("steer_rows", out, static.rows_program(x.double(), *at, exact.tensors, 0))
    if not torch.equal(out[rows.slot == 0], x[rows.slot == 0]):
        raise SystemExit("steer_rows touched slot 0")
    for gemma in (False, True):
        given = (x, residual, weight)
        got = dispatch.add_rmsnorm(
            *given, rows, table.tensors, 0, eps=EPS, gemma=gemma, path="triton"
        )
        wanted = static.add_rmsnorm(
            *(part.double() for part in given), *at, exact.tensors, 0, eps=EPS, gemma=gemma
        )
        for name, ours, theirs in zip(("stream", "norm"), got, wanted, strict=True):
            near(f"steer_add_rmsnorm ({name}, gemma={gemma})", ours, theirs)
    ring = torch.zeros(tokens + 1, width, dtype=torch.float32, device=device)
    place = torch.arange(tokens, device=device).flip(0)
    dispatch.capture_rows(x, place, ring, path="triton")
    if not torch.equal(ring[:tokens], x.float().flip(0)):
        raise SystemExit("capture_rows is wrong")
    if device == "cuda":
        graph, held = captured(
            lambda: dispatch.rows_program(x, rows, table.tensors, 0, path="triton"), launches=1
        )
        for each in (table, exact):
            each.write_slot(1, {SITE: programs[2]})
            each.set_strength(2, -0.5)
        graph.replay()
        near("a replayed graph", held[0], static.rows_program(x.double(), *at, exact.tensors, 0))


def captured(run: Callable[[], Any], launches: int = LAUNCHES) -> tuple[Any, list[Any]]:
    """A CUDA graph of many launches, and the outputs of the last."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph, out = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph), torch.no_grad():
        for _ in range(launches):
            out = [run()]
    return graph, out


def arms(tokens: int, width: int, dtype: Any) -> dict[str, Callable[[], Any]]:
    """The fused norm under each kind of program, and copies of as many bytes."""
    x, residual = (torch.randn(tokens, width, device="cuda").to(dtype) for _ in range(2))
    weight = torch.ones(width, device="cuda", dtype=dtype)
    copies = torch.empty_like(x), torch.empty_like(x)

    def copy() -> None:
        copies[0].copy_(x)
        copies[1].copy_(residual)

    def fused(programs: Sequence[Program], slots: Sequence[int]) -> Callable[[], Any]:
        table = table_of(programs, width, "cuda", dtype)
        rows = rows_of(table, slots, "cuda")
        return lambda: dispatch.add_rmsnorm(
            x, residual, weight, rows, table.tensors, 0, eps=EPS, path="triton"
        )

    one = [1] * tokens
    add, ablate = program(width, Opcode.CONSTANT), program(width, Opcode.AFFINE)
    distinct = [program(width, Opcode.CONSTANT, seed=i) for i in range(min(tokens, 256))]
    plain: dict[str, Callable[[], Any]] = {
        "unsteered": fused([add], [0] * tokens),
        "copy of the same bytes": copy,
        "add": fused([add], one),
        "add 3 vectors": fused([program(width, Opcode.CONSTANT, terms=3)], one),
        "ablate": fused([ablate], one),
        "ablate 8 directions": fused([program(width, Opcode.AFFINE, terms=8)], one),
        "gated add": fused([program(width, Opcode.CONSTANT, gate=True)], one),
        "add, norm kept": fused([program(width, Opcode.KEEP_NORM)], one),
        "add, all programs distinct": fused(
            distinct, [1 + i % len(distinct) for i in range(tokens)]
        ),
    }
    return {name: captured(run)[0].replay for name, run in plain.items()}


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 32, 256, 8192])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("unavailable: these kernels are timed on CUDA, and there is no such device here")
    for dtype in TOLERANCE:
        for tokens in (3, 257):
            for width in (123, 1000, args.width):
                check("cuda", tokens, width, dtype)
    parts: dict[str, Any] = {"machine": timing.machine()}
    goals = dict.fromkeys(
        ["add", "add 3 vectors", "ablate", "gated add", "add, norm kept"], FUSED_GOAL
    ) | {"add, all programs distinct": DISTINCT_GOAL}
    for tokens in args.tokens:
        times = timing.measure(arms(tokens, args.width, torch.bfloat16), repeats=args.repeats)
        table = timing.rows(times, "unsteered", goals=goals)
        against = timing.rows(
            {
                clock: {n: t[n] for n in ("copy of the same bytes", "unsteered")}
                for clock, t in times.items()
            },
            "copy of the same bytes",
            goals={"unsteered": BANDWIDTH_GOAL},
        )
        timing.show(f"{tokens} x {args.width}, bfloat16", [*table, against[1]])
        parts[f"{tokens} x {args.width}"] = {"fused": table, "bandwidth": against}
    print(timing.update("gpu_kernels", parts))


if __name__ == "__main__":
    main()
