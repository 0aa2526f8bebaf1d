"""Where the rows that an SAE learns from come from: memory, a store, or a model while it runs."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.activations import Activations
from steerkit.captures.verbs import stream
from steerkit.errors import ActivationError
from steerkit.prompts import Prompt
from steerkit.protocols import Model, ModelInfo
from steerkit.site import Site
from steerkit.stores.opening import Given
from steerkit.stores.parsing import Columns
from steerkit.stores.store import ActivationStore
from steerkit.stores.texts import BadRows

HELD_OUT = 0.05
"""Fraction of the rows that no step sees; L0 and variance explained are measured on them."""
HELD_ROWS = 2**16
"""At most so many, from a store."""
ASIDE = 64
"""Prompts that no step sees, where a model runs while training."""
MIXED_BYTES = 64 * 2**20
"""Rows that are mixed at a time where a model runs while training."""
CHUNK = 256
"""Prompts that are sorted by length together."""


class Rows(Protocol):
    """Single tokens' rows at one site, in shuffled batches without end."""

    @property
    def info(self) -> ModelInfo:
        """The model that they come from."""
        ...

    @property
    def held(self) -> Float[Tensor, "row d_model"]:
        """Rows that no batch holds."""
        ...

    @property
    def sample(self) -> Float[Tensor, "row d_model"]:
        """Rows from which the mean and the mean norm are taken."""
        ...

    @property
    def count(self) -> int | None:
        """Rows that the batches hold before they come again; None where it is not known."""
        ...

    def batches(self, size: int) -> Iterator[Float[Tensor, "size d_model"]]:
        """Batches without end."""
        ...


class InMemory:
    """Captured rows: every row once, then every row again in another order."""

    def __init__(self, acts: Activations, site: Site, seed: int) -> None:
        self.info = acts.info
        x = acts.at(site).float()
        _require_enough(len(x))
        _require_spread(x, site)
        self._generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x), generator=self._generator)
        n = max(1, int(HELD_OUT * len(x)))
        self.held, self.sample = x[order[:n]], x[order[n:]]
        self.count: int | None = len(self.sample)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches without end."""
        x = self.sample
        while True:
            order = torch.randperm(len(x), generator=self._generator)
            for start in range(0, len(x) - size + 1, size):
                yield x[order[start : start + size]]


class FromStore:
    """A store's rows, mapped from disk; blocks of neighbouring rows are held out."""

    def __init__(self, store: ActivationStore, site: Site, seed: int) -> None:
        _require_enough(len(store))
        self.info = store.info
        self._store, self._site, self._seed = store, site, seed
        parts = store.batches(1024, site, held_out=HELD_OUT, held=True, seed=seed)
        # Whole and in memory: it is looked at again and again.
        self.held = torch.cat(list(islice(parts, HELD_ROWS // 1024)))
        _require_spread(self.held, site)
        self.sample = self.held
        self.count: int | None = int(len(store) * (1 - HELD_OUT))

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches without end, in another order each time."""
        seed = self._seed
        while True:
            yield from self._store.batches(
                size, self._site, seed=seed, held_out=HELD_OUT, drop_last=True
            )
            seed += 1


class Live:
    """What a model's stream holds while it reads a dataset: nothing but a buffer is kept.

    The rows of the first prompts are held out. A buffer of mixed rows is topped up whenever
    half of it has been used, so that neighbours in a text rarely meet in a batch.

    Args:
        model: the model.
        dataset: what `capture_dataset` takes; texts that are too long are cut.
        site: where.
        exclude_bos: leave a special first token out.
        seed: of the order.

    Raises:
        ActivationError: too few prompts.
    """

    def __init__(
        self, model: Model, dataset: Any, site: Site, *, exclude_bos: bool, seed: int
    ) -> None:
        self.info = model.info
        self._model, self._site, self._exclude_bos, self._seed = model, site, exclude_bos, seed
        self._given = Given(dataset, "train", None, "", "auto", None, None, BadRows("truncate"))
        self._again = not isinstance(dataset, Iterator)
        self._texts = self._prompts()
        aside = list(islice(self._texts, ASIDE))
        if len(aside) < ASIDE:
            raise ActivationError(
                f"{len(aside)} texts are too few to train on while the model runs, which holds "
                f"{ASIDE} out; leave live out"
            )
        self.held = self.sample = torch.cat([*self._run(aside)])
        _require_spread(self.held, site)
        self.count: int | None = None

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches without end; a dataset that can be read again is.

        Raises:
            ActivationError: one that cannot has come to its end.
        """
        generator = torch.Generator().manual_seed(self._seed)
        room = max(2 * size, MIXED_BYTES // (4 * self.info.d_model))
        rows, buffer, given = self._rows(), torch.empty(0, self.info.d_model), 0
        while True:
            parts, ended = [buffer], False
            while not ended and sum(map(len, parts)) < room:
                new = next(rows, None)
                ended = new is None
                parts += [] if new is None else [new]
            buffer = torch.cat(parts)
            buffer = buffer[torch.randperm(len(buffer), generator=generator)]
            used = (len(buffer) if ended else max(size, len(buffer) // 2)) // size * size
            yield from buffer[:used].split(size)
            given += used
            buffer = buffer[used:]
            if ended:
                raise ActivationError(
                    f"the texts ended after {given} rows; give more, a dataset that can be read "
                    "again (a list or a file), or a smaller n_tokens"
                )

    def _rows(self) -> Iterator[Tensor]:
        texts, given = self._texts, True
        while given:
            given = False
            while chunk := list(islice(texts, CHUNK)):
                given = self._again
                yield from self._run(chunk)
            texts = islice(self._prompts(), ASIDE, None)

    def _prompts(self) -> Iterator[Prompt]:
        return (row.prompt for row in self._given.rows(self._model, Columns()))

    def _run(self, prompts: list[Prompt]) -> Iterator[Tensor]:
        found = stream(
            self._model,
            prompts,
            sites=[self._site],
            positions="all",
            exclude_bos=self._exclude_bos,
            progress=False,
        )
        return (rows[self._site].float() for _, rows in found)


def _require_enough(rows: int) -> None:
    if rows < 100:
        raise ActivationError(f"{rows} tokens are too few to train an SAE on; give at least 100")


def _require_spread(x: Float[Tensor, "row d_model"], site: Site) -> None:
    if float(x.std(0).norm()) == 0:
        raise ActivationError(
            f"all {len(x)} rows at {site} are the same; there is nothing to learn"
        )
