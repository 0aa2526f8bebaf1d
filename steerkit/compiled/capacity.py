"""What a compiled model has room for: of its table and of the requests it runs."""

from dataclasses import dataclass
from typing import Self

from steerkit.errors import InterventionError
from steerkit.kernels import layout
from steerkit.program import ProgramTable


@dataclass(frozen=True)
class Capacity(layout.Capacity):
    """Room of one compiled model; fixed when it is made, because graphs keep its shapes.

    What is left out costs nothing: a model of additions alone computes no reads and no gates.
    Beside the fields of a table (`slots`, `terms`, `groups`, `indices`, `latches`, `gates`,
    `opcodes`):

    Attributes:
        rows: requests of one batch; smaller batches are filled up.
        length: columns of the key-value cache: of a batch's longest prompt, rounded up to
            whole chunks, and of what is generated after it.
        chunk: columns of a prompt that one pass takes.
    """

    rows: int = 8
    length: int = 512
    chunk: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.rows, self.chunk) < 1 or self.length < self.chunk:
            raise InterventionError(
                "a compiled model has room for at least one row, one column a chunk and one "
                f"chunk; got rows={self.rows}, chunk={self.chunk}, length={self.length}"
            )

    @classmethod
    def of(
        cls,
        table: ProgramTable,
        *,
        slots: int | None = None,
        rows: int = 8,
        length: int = 512,
        chunk: int = 64,
    ) -> Self:
        """The least room for a view's programs, `slots` of them (default: as many as it has)."""
        programs = [program for slot in table.slots for program in slot.values()]
        need = layout.Capacity.fitting(programs, slots=slots or len(table.slots))
        return cls(**vars(need), rows=rows, length=length, chunk=chunk)

    def chunks(self, width: int) -> int:
        """Passes that a prompt of so many columns takes."""
        return -(-width // self.chunk)
