"""How far a capture is, in tokens, and how long the rest takes."""

from collections.abc import Sequence
from typing import Any

from steerkit.stores.executor import Record, Task


class Progress:
    """Counts what workers report; the estimate is their own seconds a token times what is left.

    It starts with the first shard that was computed: until then nothing is known, and nothing
    is said. Loading the model is not counted, and neither are shards that were adopted. Tokens
    of texts that were not run yet are estimated from their characters.
    """

    def __init__(self, tasks: Sequence[Task], *, workers: int) -> None:
        self._size = {task.name: task.characters for task in tasks}
        self._left = sum(self._size.values())
        self._workers = max(1, min(workers, len(tasks)))
        self._seconds = 0.0
        self._characters = self._computed = 0
        self.tokens = 0

    def add(self, record: Record) -> None:
        """Take in what a worker has finished."""
        size = self._size.pop(record.name)
        self._left -= size
        self.tokens += record.tokens
        self._characters += size
        if not record.resumed:
            self._seconds += record.seconds
            self._computed += size

    @property
    def total_tokens(self) -> int:
        """All tokens, those to come estimated."""
        rate = self.tokens / self._characters if self._characters else 0.0
        return self.tokens + round(rate * self._left)

    @property
    def seconds_left(self) -> float | None:
        """Estimated time until the end; None before anything was measured."""
        if not self._computed:
            return None
        return self._seconds / self._computed * self._left / self._workers


class Bar:
    """A bar on stderr."""

    def __init__(self, progress: Progress, *, shown: bool, what: str = "capture") -> None:
        from tqdm.auto import tqdm

        self._progress = progress
        self._bar: Any = tqdm(
            desc=what,
            unit="tok",
            unit_scale=True,
            disable=not shown,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} tokens{postfix}",
            total=1,
        )

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, record: Record) -> None:
        """Take in what a worker has finished, and show it."""
        self._progress.add(record)
        self._bar.total = max(1, self._progress.total_tokens)
        left = self._progress.seconds_left
        self._bar.set_postfix_str("" if left is None else f"about {spell(left)} left", False)
        self._bar.update(record.tokens)


def spell(seconds: float) -> str:
    """A duration in words, no finer than it is known.

    >>> spell(42), spell(600), spell(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
