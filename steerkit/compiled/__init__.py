"""The compiled path: full graphs over a static cache, one table of programs edited in place."""

from steerkit.compiled.capacity import Capacity as Capacity
from steerkit.compiled.decoding import Decoding as Decoding
from steerkit.compiled.engine import Receipt as Receipt
from steerkit.compiled.model import CompiledModel as CompiledModel
from steerkit.compiled.model import compiled as compiled

__all__ = ["Capacity", "CompiledModel", "Decoding", "Receipt", "compiled"]
