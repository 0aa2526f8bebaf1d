"""A batch under way on a compiled model: prompts first, then a token a row and step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.batch import Batch
from steerkit.errors import InterventionError, PromptError
from steerkit.models.generate import Noise, until
from steerkit.program import ProgramTable

if TYPE_CHECKING:
    from steerkit.compiled.engine import CompiledEngine


class Decoding:
    """A batch under way: its prompts have run, and each `step` takes one more token a row.

    Made by `CompiledModel.decoding`. Slots, and what stands in them, may change between steps.
    """

    def __init__(
        self,
        engine: "CompiledEngine",
        batch: Batch,
        table: ProgramTable | None,
        slots: Sequence[int],
        room: int,
    ) -> None:
        self._engine, self._n, self._left = engine, len(batch), room
        # A successor of the view keeps these slots.
        self._held = engine.slots.of(table)
        self._view = table
        self._slots = [self._held[slot] for slot in slots]
        columns = engine.begin(batch, self._slots, "prompt", room)
        steered = engine.slots.steered(self._slots)
        for tokens in columns:
            self._out = engine.run_step("prompt", tokens, steered)

    @property
    def logits(self) -> Float[Tensor, "row d_vocab"]:
        """What comes next; valid until the next step."""
        return self._out[: self._n, -1]

    def step(self, tokens: Int[Tensor, "row"] | Sequence[int]) -> Float[Tensor, "row d_vocab"]:
        """Take one token a row; gives the logits of the next.

        Raises:
            PromptError: more steps than there is room for, or another number of tokens.
        """
        engine, n = self._engine, self._n
        if self._left < 1:
            raise PromptError(
                "no room for another step; give `decoding` a larger `room`, and the model a "
                "Capacity(length=...) for it"
            )
        given = torch.as_tensor(tokens, device=engine.device)
        if given.shape != (n,):
            raise PromptError(f"one token a row: {n} rows, got {tuple(given.shape)}")
        fill = engine.requests.token
        fill[:n, 0].copy_(given)
        self._left -= 1
        self._out = engine.run_step("token", fill, engine.slots.steered(self._slots))
        return self.logits

    def close(self) -> None:
        """The batch is over; its view may go."""
        self._left, self._view = 0, None

    def move(self, slots: Sequence[int]) -> None:
        """Point rows at other slots of the view from the next step on; 0 is unsteered.

        What a row's former program had decided on its prompt is forgotten: conditions of the
        new one stay closed.

        Raises:
            InterventionError: not one slot a row, or a slot that the view does not have.
        """
        last = len(self._held) - 1
        if len(slots) != self._n or not all(0 <= slot <= last for slot in slots):
            raise InterventionError(
                f"one slot a row: {self._n} rows, slots 0..{last}; got {list(slots)}"
            )
        self._slots = [self._held[slot] for slot in slots]
        self._engine.requests.move(self._slots)


def complete(
    engine: "CompiledEngine",
    batch: Batch,
    table: ProgramTable | None,
    slots: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[tuple[int, ...]]:
    """New tokens of each row, greedy or sampled."""
    eos = engine.text.eos_ids
    noise = None
    if temperature > 0:
        noise = Noise(temperature, seed, batch.rows.tolist(), top_k=top_k, top_p=top_p)
    ends = torch.tensor(eos, dtype=torch.long, device=engine.device)
    new: list[Tensor] = []
    # Looking is free on a CPU; an accelerator would have to be waited for.
    look = 1 if engine.device.type == "cpu" else 8
    with engine.turn():
        decoding = Decoding(engine, batch, table, slots, max_new_tokens - 1)
        done = torch.zeros(len(batch), dtype=torch.bool, device=engine.device)
        while True:
            scores = decoding.logits if noise is None else noise(batch.tokens, decoding.logits)
            new.append(scores.argmax(-1))
            done |= (new[-1][:, None] == ends).any(1)
            if len(new) == max_new_tokens:
                break
            if len(new) % look == 0 and bool(done.all()):
                break
            decoding.step(new[-1])
    return [until(row, eos) for row in torch.stack(new, 1).tolist()]
