"""What a view needs from the network under it: one small contract, one adapter a library."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Batch
from steerkit.models.hooks import Visit
from steerkit.models.text import Text
from steerkit.program import ProgramTable
from steerkit.protocols import Logits, ModelInfo
from steerkit.site import Site


class Engine(Protocol):
    """A network of some library, with its streams under hooks."""

    info: ModelInfo
    text: Text
    turns: "Turns"
    """One call at a time; shared by every view of the network."""

    @property
    def resumes(self) -> str:
        """Why rows cannot join a pass under way (`models.staircase`); empty where they can."""
        ...

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        ...

    @property
    def network(self) -> Any:
        """The library's own object."""
        ...

    def undisturbed(self, *, grad: bool = False) -> AbstractContextManager[None]:
        """Evaluation mode, with training flags put back after."""
        ...

    def attached(self, visits: Mapping[Site, Visit]) -> AbstractContextManager[None]:
        """Hooks at the given sites while the context is open."""
        ...

    def forward(self, batch: Batch, logits: Logits) -> Float[Tensor, "batch kept d_vocab"]:
        """One forward pass without a cache."""
        ...

    def complete(
        self,
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
        """New tokens of each row, the end-of-sequence token included where it was reached."""
        ...

    def read_out(self, vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_vocab"]:
        """What the final norm's weight and the unembedding make of directions."""
        ...

    def as_hf(self, table: ProgramTable | None) -> AbstractContextManager[Any]:
        """The library's object, steered while the context is open."""
        ...


class Turns:
    """Who may run a network: one thread at a time, and of nested calls the innermost.

    A call made inside another (in a pool, or while `as_hf` is open) has the network to
    itself: the hooks of the calls around it are dormant until it ends.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._running: list[object] = []

    @contextmanager
    def taken(self) -> Iterator[Callable[[], bool]]:
        """A turn; the function it gives says whether hooks of this turn are awake."""
        turn = object()
        with self.lock:
            self._running.append(turn)
            try:
                yield lambda: self._running[-1] is turn
            finally:
                self._running.remove(turn)


_TURNS: dict[int, Turns] = {}
_GUARD = threading.Lock()


def turns_of(network: Any) -> Turns:
    """The turns of a network: the same ones however often it is wrapped."""
    with _GUARD:
        if id(network) not in _TURNS:
            _TURNS[id(network)] = Turns()
            weakref.finalize(network, _TURNS.pop, id(network), None)
        return _TURNS[id(network)]
