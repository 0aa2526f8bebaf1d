"""Random requests and programs, and their evaluation token by token in float64.

Written from the definitions in `steerkit/program.py`, with nothing of the executors in it.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.batch import Positions
from steerkit.kernels.device import DeviceTable
from steerkit.kernels.layout import Capacity
from steerkit.kernels.static import Rows, prepare
from steerkit.program import Gate, Group, Opcode, Program
from steerkit.site import Site

SITE = Site(0)
RULES: tuple[Any, ...] = ("all", "prompt", "last_prompt", "generated", (0, 2, -1), (-2,))


@dataclass
class Requests:
    """Tokens of several requests, packed in any order, some of them padding."""

    request: Tensor
    absolute: Tensor
    slot: Tensor
    prompt_len: Tensor
    latches: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.request)

    def rows(self, table: DeviceTable) -> Rows:
        """What `prepare` makes of them."""
        return prepare(table.tensors, *self.given(table))

    def given(self, table: DeviceTable) -> tuple[Tensor, ...]:
        """The arguments of `prepare`."""
        slots = self.slot.tolist()
        return (
            self.request,
            self.absolute,
            self.slot,
            self.prompt_len,
            table.registers(self.latches, slots),
        )

    def at(self, order: Tensor) -> "Requests":
        """The same with the tokens in another order."""
        return Requests(
            self.request[order], self.absolute[order], self.slot, self.prompt_len, self.latches
        )


def some_requests(seed: int, tokens: int, slots: Sequence[int], names: Sequence[str] = ()) -> Any:
    """Requests at these slots, their tokens shuffled, about one in eight of them padding."""
    r = random.Random(seed)
    n = len(slots)
    request = torch.tensor([r.randrange(n) for _ in range(tokens)], dtype=torch.long)
    absolute = torch.tensor([r.randrange(-1, 7) for _ in range(tokens)], dtype=torch.long)
    if tokens > 3:
        request[r.randrange(tokens)] = -1
    lengths = torch.tensor([r.randint(1, 5) for _ in slots])
    latches = {
        name: torch.tensor([r.choice([-1, 0, 1]) for _ in slots], dtype=torch.int8)
        for name in names
    }
    return Requests(request, absolute, torch.tensor(list(slots)), lengths, latches)


def _acts(rule: Positions, t: int, n: int) -> bool:
    return {
        "all": True,
        "prompt": t < n,
        "last_prompt": t == n - 1,
        "generated": t >= n,
        "indices": any(t == (i if i >= 0 else n + i) for i in rule.indices),
    }[rule.rule]


def _is_open(gate: Gate | None, x: Tensor, t: int, n: int, latches: Mapping[str, int]) -> bool:
    if gate is None:
        return True
    if gate.latch:
        return t >= n - 1 and latches.get(gate.latch, 0) > 0
    level = float(gate.read.double() @ x)
    if gate.measure == "cosine":
        size = float(x.norm())
        level = level / size if size else 0.0
    return level >= gate.threshold if gate.above else level < gate.threshold


def _coefficient(opcode: Opcode, p: float, q: float, a: float, b: float, z: float) -> float:
    if opcode == Opcode.CONSTANT:
        return a
    if opcode == Opcode.AFFINE:
        return a * p + b
    if opcode == Opcode.CLAMP:
        return z * (min(max(p, a), b) - p)
    if opcode == Opcode.ACTIVATION:
        return z * (a - (p if p > b else 0.0))
    return z * (a * math.hypot(p, q) - p)


def _one_group(
    group: Group, x: Tensor, t: int, n: int, latches: Mapping[str, int], strength: float
) -> Tensor:
    """x + strength * what the group's terms add, each from its definition."""
    gates = group.gates or (None,) * len(group)
    reads = [float(group.read[j].double() @ x - group.offset[j]) for j in range(len(group))]
    change = torch.zeros_like(x)
    for j, opcode in enumerate(group.opcodes):
        if not (_acts(group.positions[j], t, n) and _is_open(gates[j], x, t, n, latches)):
            continue
        w, params = group.write[j].double(), group.params[j].tolist()
        if opcode == Opcode.KEEP_NORM:
            moved = x + params[0] * w
            if float(moved.norm()):
                change += moved * (x.norm() / moved.norm()) - x
            continue
        partner = j + int(params[1]) if opcode == Opcode.TURN else j
        change += _coefficient(opcode, reads[j], reads[partner], *params) * w
    return x + strength * change


def token_by_token(
    programs: Sequence[Program],
    h: Tensor,
    requests: Requests,
    strengths: Mapping[int, float] | None = None,
) -> Tensor:
    """`programs[slot]` run on every token; padding and slot 0 stay as they are. Float64."""
    out = h.double().clone()
    for i in range(len(requests)):
        owner, t = int(requests.request[i]), int(requests.absolute[i])
        slot = int(requests.slot[owner]) if owner >= 0 and t >= 0 else 0
        strength = (strengths or {}).get(slot, 1.0)
        if not slot or not strength:
            continue
        n = int(requests.prompt_len[owner])
        latches = {name: int(value[owner]) for name, value in requests.latches.items()}
        for group in programs[slot].groups:
            out[i] = _one_group(group, out[i], t, n, latches, strength)
    return out


def some_program(
    seed: int,
    *,
    groups: int = 1,
    terms: int = 3,
    d_model: int = 16,
    opcodes: Sequence[Opcode] = tuple(Opcode),
    rules: Sequence[Any] = RULES,
    gates: Sequence[str] = ("", "", "cosine", "projection"),
) -> Program:
    """Random reads, writes, opcodes, rules and gates (a name with ':' is a latch)."""
    r = random.Random(seed)
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64) / d_model**0.5

    def unit() -> Tensor:
        v = normal(d_model)
        return v / v.norm()

    def gate() -> Gate | None:
        kind = r.choice(gates)
        if not kind:
            return None
        measure: Any = "projection" if ":" in kind else kind
        latch = kind if ":" in kind else ""
        return Gate(unit(), r.gauss(0, 0.3), measure, r.random() < 0.5, latch)

    def params(opcode: Opcode) -> list[float]:
        if opcode == Opcode.CLAMP:
            edges = sorted([r.gauss(0, 1), r.gauss(0, 1)])
            side = r.randrange(3)
            low = -math.inf if side == 1 else edges[0]
            return [low, math.inf if side == 2 else edges[1], r.uniform(0.3, 1)]
        if opcode == Opcode.KEEP_NORM:
            return [r.gauss(0, 2), 0.0, 0.0]
        return [r.gauss(0, 1), r.gauss(0, 0.5), r.uniform(0.3, 1)]

    def one_group() -> Group:
        ops: list[Opcode] = []
        while len(ops) < terms:
            op = r.choice(opcodes)
            if op == Opcode.TURN and len(ops) + 2 > terms:
                op = Opcode.CONSTANT
            ops += [op, op] if op == Opcode.TURN else [op]
        table = torch.tensor([params(op) for op in ops], dtype=torch.float64)
        read, write, offset = normal(terms, d_model), normal(terms, d_model), normal(terms)
        j = 0
        while j < terms:
            if ops[j] == Opcode.TURN:
                angle = r.uniform(0, 2 * math.pi)
                table[j : j + 2] = torch.tensor(
                    [[math.cos(angle), 1.0, 0.7], [math.sin(angle), -1.0, 0.7]]
                )
                j += 1
            elif ops[j] == Opcode.KEEP_NORM:
                write[j] = read[j] = unit()
                offset[j] = 0
            j += 1
        chosen = [Positions.of(r.choice(rules)) for _ in ops]
        closing = [gate() for _ in ops]
        for j in range(terms):
            if ops[j] == Opcode.TURN and table[j, 1] < 0:
                chosen[j], closing[j] = chosen[j - 1], closing[j - 1]
        return Group(tuple(ops), read, offset, write, table, tuple(chosen), tuple(closing))

    return Program(tuple(one_group() for _ in range(groups)))


def a_table(programs: Sequence[Program], dtype: Any = torch.float64, **more: Any) -> DeviceTable:
    """A table that just holds these programs at slots 1, 2, ... of one site."""
    width = next(g.d_model for p in programs for g in p.groups)
    capacity = more.pop("capacity", None) or Capacity.fitting(programs)
    table = DeviceTable([SITE], more.pop("d_model", width), capacity, dtype=dtype, **more)
    for slot, program in enumerate(programs, 1):
        table.write_slot(slot, {SITE: program})
    return table


@pytest.fixture
def oracle() -> Callable[..., Tensor]:
    return token_by_token


@pytest.fixture
def requests_of() -> Callable[..., Any]:
    return some_requests


@pytest.fixture
def program_of() -> Callable[..., Program]:
    return some_program


@pytest.fixture
def table_of() -> Callable[..., DeviceTable]:
    return a_table


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Triton's interpreter, or a skip where Triton cannot be installed."""
    pytest.importorskip("triton", reason="Triton is not installed here")
    from steerkit.kernels.fused.launch import interpreted

    assert interpreted(), "tests run kernels on the CPU; something imported Triton too early"


@pytest.fixture
def stream_of() -> Callable[..., Tensor]:
    def stream(tokens: int, d_model: int = 16, seed: int = 0, dtype: Any = torch.float64) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return torch.randn(tokens, d_model, generator=g, dtype=torch.float64).to(dtype)

    return stream


@pytest.fixture
def bits_of() -> Callable[[Tensor], Tensor]:
    def bits(x: Tensor) -> Tensor:
        sizes = {8: torch.int64, 4: torch.int32, 2: torch.int16}
        return x.contiguous().view(sizes[x.element_size()])

    return bits


@pytest.fixture
def guarded() -> Callable[..., tuple[Tensor, Tensor]]:
    """Room for an output inside a larger tensor of NaNs, and that tensor."""

    def make(tokens: int, d_model: int, dtype: Any, band: int = 3) -> tuple[Tensor, Tensor]:
        whole = torch.full((tokens + 2 * band, d_model), torch.nan, dtype=dtype)
        return whole[band : band + tokens], whole

    return make
