"""The one place that chooses between Triton and torch, and says which it was.

Triton runs on CUDA outside of compilers: under hooks, and captured in CUDA graphs. Everywhere
else, and inside everything that `torch.compile` traces, it is the plain torch of `static`,
which Inductor fuses. What is asked for by name is done by that path or refused.
"""

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from steerkit.errors import InterventionError
from steerkit.kernels import static
from steerkit.kernels.device import TableTensors
from steerkit.kernels.static import Rows

Path = Literal["auto", "torch", "triton"]
Taken = Literal["torch", "triton"]

_taken: dict[str, Taken] = {}


def last_path(kernel: str) -> Taken | None:
    """Which path the named operation took when it last ran outside a compiler; None for never.

    Names: `prepare`, `rows_program`, `rows_program_`, `add_rmsnorm`, `capture_rows`.
    """
    return _taken.get(kernel)


def triton_refusal(device: torch.device, d_model: int) -> str | None:
    """Why the Triton kernels cannot run there; None if they can."""
    if not _installed():
        return "Triton is not installed; install steerkit[gpu]"
    from steerkit.kernels.fused.launch import WIDEST, interpreted

    if device.type != "cuda" and not interpreted():
        return f"the stream is on {device}, and Triton runs on CUDA (or with TRITON_INTERPRET=1)"
    if d_model > WIDEST:
        return f"rows of {d_model} columns are wider than the {WIDEST} that fit into registers"
    return None


def prepare(
    tensors: TableTensors,
    request: Int[Tensor, "*token"],
    absolute: Int[Tensor, "*token"],
    slot: Int[Tensor, "request"],
    prompt_len: Int[Tensor, "request"],
    registers: Int8[Tensor, "request register"] | None = None,
    *,
    path: Path = "auto",
) -> Rows:
    """`static.prepare`, by either path.

    Raises:
        InterventionError: a slot outside the table (on CUDA, which is not waited for, that
            stops the device instead).
    """
    if not torch.compiler.is_compiling():
        _check_slots(slot, tensors.strength.shape[0])
    if _choose("prepare", path, absolute.device, 1) == "torch":
        return static.prepare(tensors, request, absolute, slot, prompt_len, registers)
    from steerkit.kernels.fused.rows_prep import rows_prep

    if registers is None:
        registers = torch.empty((slot.shape[0], 0), dtype=torch.int8, device=slot.device)
    return Rows(
        *rows_prep(request, absolute, slot, prompt_len, registers, tensors.codes, tensors.strength)
    )


def rows_program(
    h: Float[Tensor, "*token d_model"],
    rows: Rows,
    tensors: TableTensors,
    site: int,
    *,
    path: Path = "auto",
) -> Float[Tensor, "*token d_model"]:
    """`static.rows_program`, by either path: a new tensor, differentiable."""
    _check_width(h, tensors)
    if _choose("rows_program", path, h.device, h.shape[-1]) == "torch":
        return static.rows_program(h, rows.slot, rows.active[site], tensors, site)
    from steerkit.kernels.fused.launch import opcode_bits
    from steerkit.kernels.fused.steer_rows import steer_rows

    bits = opcode_bits(tensors.capacity.opcodes)
    return steer_rows(h, rows.slot, rows.active[site], *tensors, site, bits)


def rows_program_(
    h: Float[Tensor, "*token d_model"],
    rows: Rows,
    tensors: TableTensors,
    site: int,
    *,
    path: Path = "auto",
) -> None:
    """The same in place, without a gradient: tokens at which nothing acts cost nothing."""
    _check_width(h, tensors)
    if torch.is_grad_enabled() and h.requires_grad:
        raise InterventionError(
            "an in-place program has no gradient; use rows_program, or torch.no_grad()"
        )
    if _choose("rows_program_", path, h.device, h.shape[-1]) == "torch":
        h.copy_(static.rows_program(h, rows.slot, rows.active[site], tensors, site))
        return
    from steerkit.kernels.fused.launch import opcode_bits
    from steerkit.kernels.fused.steer_rows import steer_rows_

    slot, active = rows.slot.reshape(-1), rows.active[site].reshape(-1)
    bits = opcode_bits(tensors.capacity.opcodes)
    # Never a copy: what is written to it would be lost.
    steer_rows_(h.view(-1, h.shape[-1]), slot, active, *tensors, site, bits)


def add_rmsnorm(
    x: Float[Tensor, "*token d_model"],
    residual: Float[Tensor, "*token d_model"],
    weight: Float[Tensor, "d_model"],
    rows: Rows,
    tensors: TableTensors,
    site: int,
    *,
    eps: float,
    gemma: bool = False,
    path: Path = "auto",
) -> tuple[Float[Tensor, "*token d_model"], Float[Tensor, "*token d_model"]]:
    """`static.add_rmsnorm`, by either path: the new stream and its norm."""
    _check_width(x, tensors)
    if _choose("add_rmsnorm", path, x.device, x.shape[-1]) == "torch":
        return static.add_rmsnorm(
            x, residual, weight, rows.slot, rows.active[site], tensors, site, eps=eps, gemma=gemma
        )
    from steerkit.kernels.fused.launch import opcode_bits
    from steerkit.kernels.fused.steer_add_rmsnorm import steer_add_rmsnorm

    bits = opcode_bits(tensors.capacity.opcodes)
    return steer_add_rmsnorm(
        x, residual, weight, rows.slot, rows.active[site], *tensors, site, bits, eps, gemma
    )


def capture_rows(
    h: Float[Tensor, "*token d_model"],
    place: Int[Tensor, "*token"],
    ring: Float[Tensor, "place_and_one d_model"],
    *,
    path: Path = "auto",
) -> None:
    """`static.capture_rows`, by either path."""
    if _choose("capture_rows", path, h.device, h.shape[-1]) == "torch":
        static.capture_rows(h.detach(), place, ring)
        return
    from steerkit.kernels.fused.capture_rows import capture_rows_

    capture_rows_(h.detach(), place, ring)


def _choose(kernel: str, path: Path, device: torch.device, d_model: int) -> Taken:
    if torch.compiler.is_compiling():
        if path == "triton":
            raise InterventionError(f"the Triton path of {kernel} is not for compiled graphs")
        return "torch"
    taken: Taken = "torch"
    if path == "triton" or (path == "auto" and device.type == "cuda"):
        refusal = triton_refusal(device, d_model)
        if refusal and path == "triton":
            raise InterventionError(f"the Triton path of {kernel} is unavailable: {refusal}")
        taken = "torch" if refusal else "triton"
    _taken[kernel] = taken
    return taken


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _check_width(h: Tensor, tensors: TableTensors) -> None:
    if h.shape[-1] != tensors.write.shape[-1]:
        raise InterventionError(
            f"a table of width {tensors.write.shape[-1]} cannot run on a stream of shape "
            f"{tuple(h.shape)}; was it made for this model?"
        )


def _check_slots(slot: Tensor, slots: int) -> None:
    inside = ((slot >= 0) & (slot < slots)).all()
    if slot.is_cuda:
        torch._assert_async(inside, f"a request asks for a slot outside 0..{slots - 1}")
    elif not inside:
        wrong = next(s for s in slot.tolist() if not 0 <= s < slots)
        raise InterventionError(
            f"a request asks for program slot {wrong}; this table has slots 0..{slots - 1} "
            "(0 = unsteered)"
        )
