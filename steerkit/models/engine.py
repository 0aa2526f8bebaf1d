"""What a view needs from the network under it: one small contract, one adapter a library."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
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
    lock: threading.RLock
    """One call at a time; shared by every view of the network."""

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
    ) -> list[tuple[int, ...]]:
        """New tokens of each row, the end-of-sequence token included where it was reached."""
        ...

    def read_out(self, vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_vocab"]:
        """What the final norm's weight and the unembedding make of directions."""
        ...

    def as_hf(self, table: ProgramTable | None) -> AbstractContextManager[Any]:
        """The library's object, steered while the context is open."""
        ...


_LOCKS: dict[int, threading.RLock] = {}
_LOCKS_GUARD = threading.Lock()


def lock_of(network: Any) -> threading.RLock:
    """The lock of a network: the same one however often it is wrapped."""
    import weakref

    with _LOCKS_GUARD:
        if id(network) not in _LOCKS:
            _LOCKS[id(network)] = threading.RLock()
            weakref.finalize(network, _LOCKS.pop, id(network), None)
        return _LOCKS[id(network)]
