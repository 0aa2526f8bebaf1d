"""The kernels as machine code for a GPU that need not be there.

The interpreter accepts much that the compiler refuses, so each kernel is compiled for an H100.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("interpreter")

CODE = """
import json, re, traceback
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from steerkit.kernels.fused import capture_rows, rows_prep, steer_add_rmsnorm, steer_rows

POINTERS = {
    "bf16": "h out x residual weight stream normed ring",
    "fp32": "read write gate numbers strength",
    "i64": "slot active request absolute prompt_len token_slot place",
    "i32": "codes",
    "i8": "registers",
}
TYPES = {name: "*" + kind for kind, names in POINTERS.items() for name in names.split()}
TYPES["eps"] = "fp32"
ALIGNED = {*TYPES, "row_stride", "x_row", "residual_row", "ring_stride"} - {"eps"}
ROW = dict(D=1024, ROWS=1, BLOCK=1024)
TABLE = dict(SITES=32, GROUPS=1, TERMS=2, CODES=8)
ALL = dict(READS=True, GATES=True, TURNS=True, KEEPS=True)
CONTIGUOUS = dict(column_stride=1, active_stride=1)
CASES = {
    "steer_rows": (steer_rows, TABLE | ALL | ROW | CONTIGUOUS | dict(IN_PLACE=False)),
    "steer_rows_": (steer_rows, TABLE | ALL | ROW | CONTIGUOUS | dict(IN_PLACE=True)),
    "steer_add_rmsnorm": (
        steer_add_rmsnorm,
        TABLE | ALL | ROW | dict(x_column=1, residual_column=1, active_stride=1, GEMMA=False),
    ),
    "rows_prep": (
        rows_prep,
        dict(SLOTS=9, SITES=32, RECORDS=4, CODES=8, INDICES=2, REGISTERS=2, BLOCK=256),
    ),
    "capture_rows": (capture_rows, ROW | dict(column_stride=1)),
}


def check(name):
    module, constants = CASES[name]
    names = module.kernel.arg_names
    signature = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in ALIGNED}
    compiled = triton.compile(
        ASTSource(fn=module.kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 2},
    )
    assert len(compiled.asm["cubin"]) > 1000
    if name != "rows_prep":
        stores = re.findall(r"st[.]global[.]([.\\w]+)", compiled.asm["ptx"])
        assert stores and set(stores) == {"v4.b32"}, f"not all stores are of 16 bytes: {stores}"


wrong = {}
for name in CASES:
    try:
        check(name)
        wrong[name] = ""
    except Exception:
        wrong[name] = traceback.format_exc()
print(json.dumps(wrong))
"""
KERNELS = ["steer_rows", "steer_rows_", "steer_add_rmsnorm", "rows_prep", "capture_rows"]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is wrong with each kernel; all are compiled in one process without the interpreter."""
    cache = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_compiles_and_moves_sixteen_bytes_at_a_time(kernel: str, wrong: dict[str, str]) -> None:
    assert wrong[kernel] == ""
