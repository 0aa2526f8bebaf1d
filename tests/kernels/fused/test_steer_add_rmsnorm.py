"""K1 under Triton's interpreter: the stream, its programs and its norm, in one pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.kernels import dispatch, static
from steerkit.program import Program

pytestmark = pytest.mark.usefixtures("interpreter")

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
EPS = 1e-5


def error(out: Tensor, wanted: Tensor) -> float:
    return float((out.double() - wanted).norm() / wanted.norm().clamp(min=1e-300))


def by_hand(h: Tensor, weight: Tensor, gemma: bool) -> Tensor:
    """RMSNorm in float64."""
    scale = 1 + weight.double() if gemma else weight.double()
    return h / ((h**2).sum(-1, keepdim=True) / h.shape[-1] + EPS).sqrt() * scale


@pytest.mark.parametrize("path", ["triton", "torch"])
@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_it_equals_adding_steering_and_norming_in_float64(
    oracle: Any,
    requests_of: Any,
    program_of: Any,
    table_of: Any,
    stream_of: Any,
    path: Any,
    gemma: bool,
    dtype: Any,
) -> None:
    for tokens in (0, 1, 33):
        programs = [program_of(i, groups=1 + i, gates=("", "cosine")) for i in range(3)]
        table = table_of(programs, dtype)
        requests = requests_of(tokens, tokens, [1, 2, 0, 3])
        x, residual = (stream_of(tokens, seed=seed, dtype=dtype) for seed in (1, 2))
        weight = stream_of(1, seed=3, dtype=dtype)[0]
        stream, normed = dispatch.add_rmsnorm(
            x, residual, weight, requests.rows(table), table.tensors, 0,
            eps=EPS, gemma=gemma, path=path,
        )  # fmt: skip
        assert dispatch.last_path("add_rmsnorm") == path
        assert stream.dtype == normed.dtype == dtype
        if tokens:
            h = oracle([Program(), *programs], x.double() + residual.double(), requests)
            assert error(stream, h) < TOLERANCE[dtype]
            assert error(normed, by_hand(h, weight, gemma)) < TOLERANCE[dtype]


def test_each_family_casts_as_its_own_norm_does(table_of: Any, program_of: Any) -> None:
    """Without a program and a residual, exactly what the model's own module computes."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    table = table_of([program_of(0, d_model=64)], torch.bfloat16)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(16, 64, generator=g).bfloat16()
    rows = static.Rows(torch.zeros(16).long(), torch.zeros(1, 16).long())
    for gemma, module in [(False, LlamaRMSNorm(64, EPS)), (True, GemmaRMSNorm(64, EPS))]:
        for weight_dtype in (torch.bfloat16, torch.float32):
            module = module.to(weight_dtype)
            torch.nn.init.normal_(module.weight, generator=g)
            with torch.no_grad():
                wanted = module(x)
                for path in ("torch", "triton"):
                    stream, normed = dispatch.add_rmsnorm(
                        x, torch.zeros_like(x), module.weight, rows, table.tensors, 0,
                        eps=EPS, gemma=gemma, path=path,
                    )  # fmt: skip
                    assert normed.dtype == wanted.dtype
                    assert torch.equal(stream, x)
                    # One in the last place at most, where the roots round differently; the
                    # interpreter cuts bfloat16 off instead of rounding it.
                    tolerance = 2**-6 if path == "triton" else 2**-7
                    torch.testing.assert_close(normed, wanted, rtol=tolerance, atol=1e-6)
                    if path == "torch":
                        assert float((normed == wanted).float().mean()) > 0.99


@pytest.mark.parametrize("d_model", [1, 5, 123, 1000, 4096, 5120])
def test_any_width_and_layout(
    requests_of: Any, program_of: Any, table_of: Any, stream_of: Any, d_model: int
) -> None:
    programs = [program_of(i, d_model=d_model) for i in range(2)]
    table, exact = table_of(programs, torch.float32), table_of(programs)
    requests = requests_of(1, 12, [1, 0, 2])
    rows, weight = requests.rows(table), stream_of(1, d_model, 5, torch.float32)[0]
    x = stream_of(24, d_model, 1, torch.float32)[::2]
    residual = stream_of(d_model, 12, 2, torch.float32).T
    stream, normed = dispatch.add_rmsnorm(
        x, residual, weight, rows, table.tensors, 0, eps=EPS, path="triton"
    )
    h, wanted = static.add_rmsnorm(
        x.double(), residual.double(), weight.double(), rows.slot, rows.active[0],
        exact.tensors, 0, eps=EPS,
    )  # fmt: skip
    assert stream.is_contiguous() and normed.is_contiguous()
    assert error(stream, h) < 1e-6 and error(normed, wanted) < 1e-6


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_unsteered_rows_are_those_of_a_batch_without_steering(
    requests_of: Any,
    program_of: Any,
    table_of: Any,
    stream_of: Any,
    bits_of: Any,
    poison: float,
    dtype: Any,
) -> None:
    table = table_of([program_of(i, rules=["prompt"], gates=[""]) for i in range(2)], dtype)
    table.tensors.write[2], table.tensors.read[0] = poison, poison
    requests = requests_of(0, 32, [1, 0, 1])
    rows, weight = requests.rows(table), stream_of(1, seed=3, dtype=dtype)[0]
    x, residual = (stream_of(32, seed=seed, dtype=dtype) for seed in (1, 2))
    touched = rows.active[0] != 0
    none = static.Rows(torch.zeros_like(rows.slot), torch.zeros_like(rows.active))

    def run(x: Tensor, rows: Any) -> tuple[Tensor, Tensor]:
        return dispatch.add_rmsnorm(
            x, residual, weight, rows, table.tensors, 0, eps=EPS, path="triton"
        )

    plain, mixed = run(x, none), run(x, rows)
    for before, after in zip(plain, mixed, strict=True):
        assert torch.equal(bits_of(after[~touched]), bits_of(before[~touched]))
        assert torch.isfinite(after).all() and not torch.equal(after[touched], before[touched])
    poisoned = torch.where(touched[:, None], x, poison)
    for clean, after in zip(mixed, run(poisoned, rows), strict=True):
        assert torch.equal(bits_of(after[touched]), bits_of(clean[touched]))


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_gradients_and_soundness(
    requests_of: Any, program_of: Any, table_of: Any, stream_of: Any, gemma: bool
) -> None:
    from steerkit.kernels.fused.launch import opcode_bits
    from steerkit.kernels.fused.steer_add_rmsnorm import steer_add_rmsnorm

    table = table_of([program_of(i, d_model=4) for i in range(2)])
    # Open edges of clamps have no finite difference.
    table.tensors.numbers.clamp_(-5, 5)
    rows = requests_of(3, 5, [1, 2, 0]).rows(table)
    bits = opcode_bits(table.capacity.opcodes)
    given: list[Any] = [stream_of(5, 4, 1), stream_of(5, 4, 2), stream_of(1, 4, 3)[0]]
    given += [rows.slot, rows.active[0].clone(), *(part.clone() for part in table.tensors)]
    given += [0, bits, EPS, gemma]
    torch.library.opcheck(steer_add_rmsnorm, tuple(given))
    for i in (0, 1, 2, 5, 6, 8, 10):
        given[i].requires_grad_()
    torch.library.opcheck(steer_add_rmsnorm, tuple(given))
    assert torch.autograd.gradcheck(steer_add_rmsnorm, given, fast_mode=True)
