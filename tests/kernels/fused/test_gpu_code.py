"""The kernels as machine code for a GPU that need not be there.

The interpreter accepts much that the compiler refuses, so each kernel is compiled for an H100.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("interpreter")

CODE = """
import re, sys
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
module, constants = CASES[sys.argv[1]]
kernel = module.kernel
signature = {
    name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in kernel.arg_names
}
aligned = {
    (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in ALIGNED
}
compiled = triton.compile(
    ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
    target=GPUTarget("cuda", 90, 32),
    options={"num_warps": 2},
)
assert len(compiled.asm["cubin"]) > 1000
if sys.argv[1] != "rows_prep":
    stores = re.findall(r"st[.]global[.]([.\\w]+)", compiled.asm["ptx"])
    assert stores and set(stores) == {"v4.b32"}, f"not all stores are of 16 bytes: {stores}"
"""


@pytest.mark.parametrize(
    "kernel", ["steer_rows", "steer_rows_", "steer_add_rmsnorm", "rows_prep", "capture_rows"]
)
def test_it_compiles_and_moves_sixteen_bytes_at_a_time(kernel: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, kernel],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
