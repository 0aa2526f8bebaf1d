"""Where the requests of a continuously batched network stand, pass by pass."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from steerkit.errors import HookError
from steerkit.models.generate import Noise, arguments, columns
from steerkit.serving.additions import Stretch
from steerkit.serving.packed import PackedSession


class Follower:
    """Hooks that give each pass its stretches, and sampled requests their noise.

    The network says where stretches begin and at which absolute positions (`cu_seq_lens_q`,
    `position_ids`), the scheduler whose they are. True prompt lengths are ours: a request
    whose cache was dropped comes back with its own answer as part of its prompt.

    Args:
        session: what runs at the sites.
        numbers: number of each request by its name.
        scheduled: the scheduler's requests of the pass that is about to run.
        sharing: whether requests may begin after a prefix that others have cached.
        noise: of each request, by number; none for greedy answers.
    """

    def __init__(
        self,
        session: PackedSession,
        numbers: Mapping[str, int],
        scheduled: Callable[[], Sequence[Any]],
        *,
        sharing: bool,
        noise: Sequence[Noise] = (),
    ) -> None:
        self.passes = 0
        self.restarts = 0
        """How often a request began anew: its cache had been dropped."""
        self._session = session
        self._numbers = numbers
        self._scheduled = scheduled
        self._sharing = sharing
        self._noise = noise
        self._next: dict[int, int] = {}

    def on_start(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a pass through the backbone."""
        if self._session.awake():
            given = arguments(module, args, kwargs)
            self._session.begin_packed(self.stretches(given), columns(given).device)

    def on_end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a pass through the backbone: every hook must have fired once in it."""
        if self._session.awake():
            self._session.end_packed()
            self.passes += 1
            self._session.check(self.passes)

    def on_logits(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After the network's forward: its argmax becomes a sample of each request."""
        if not self._session.awake() or not self._noise:
            return
        scores = output.logits.float()
        batch, last = self._scheduled(), -1
        rows: list[tuple[int, int]] = []
        for future in batch:
            last += future.query_length
            if future.has_new_token:
                # The head runs at the last tokens alone, or at all of them.
                row = len(rows) if "logits_to_keep" in kwargs else last
                rows.append((self._numbers[future.state.request_id], row))
        for number, row in rows:
            scores[:, row] = self._noise[number](scores[:, row], scores[:, row])
        output.logits = scores

    def stretches(self, given: Mapping[str, Any]) -> list[Stretch]:
        """The stretches of a pass, by what the backbone is given and who was scheduled.

        Raises:
            HookError: the two do not agree, or a request neither goes on nor begins anew.
        """
        bounds, places = given.get("cu_seq_lens_q"), given.get("position_ids")
        if not isinstance(bounds, Tensor) or not isinstance(places, Tensor):
            raise HookError(
                "the network's backbone was not told where requests begin (cu_seq_lens_q) and "
                "stand (position_ids), so requests cannot be told apart in its packed stream"
            )
        edges, absolute = bounds.tolist(), places.flatten().tolist()
        lengths = [end - begin for begin, end in pairwise(edges)]
        batch = self._scheduled()
        width = columns(given).shape[1]
        if lengths != [future.query_length for future in batch] or len(absolute) != width:
            raise HookError(
                f"the scheduler's requests have {[f.query_length for f in batch]} tokens in this "
                f"pass, but the network was given {lengths} in {width} columns"
            )
        found = []
        for future, first, length in zip(batch, edges, lengths, strict=False):
            number = self._numbers.get(future.state.request_id)
            start = absolute[first]
            if number is None or absolute[first : first + length] != [
                *range(start, start + length)
            ]:
                raise HookError(
                    f"a pass holds '{future.state.request_id}' at positions "
                    f"{absolute[first : first + length]}, which is no stretch of a known request"
                )
            self._follow(number, start, length)
            found.append(Stretch(number, start, length))
        return found

    def _follow(self, number: int, start: int, length: int) -> None:
        before = self._next.get(number, 0)
        if start < before:
            self.restarts += 1
        # What others have cached may be taken over; nothing else may be skipped.
        if (start > before or 0 < start < before) and not self._sharing:
            raise HookError(
                f"request {number} goes on at position {start} after {before} tokens; it should "
                "go on where it was, or begin anew"
            )
        self._next[number] = start + length
