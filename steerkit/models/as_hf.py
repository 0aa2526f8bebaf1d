"""Steer the Hugging Face object itself, for any caller, while a context is open."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from steerkit.batch import RequestState
from steerkit.errors import HookError
from steerkit.models import hooks
from steerkit.models.generate import arguments, columns
from steerkit.models.hooks import removed_after
from steerkit.models.steering import Session
from steerkit.program import ProgramTable

if TYPE_CHECKING:
    from steerkit.models.huggingface import HuggingFaceEngine


@contextmanager
def steered_in_place(engine: "HuggingFaceEngine", table: ProgramTable | None) -> Iterator[Any]:
    """The network, every row steered by slot 1 until the context closes; then plain again.

    Where each token stands is read from the attention mask and the cache. `generate` is
    wrapped so that its whole input counts as the prompt, also when it is fed in chunks.
    Views of the model stay what they are inside the context; other threads wait.
    """
    network = engine.network
    session = Session()
    session.steer(table, [1])
    with engine.turns.taken() as session.awake:
        if not session.visits:
            yield network
            return
        hooks.refuse_compiled(network)
        follower = Follower(session)
        plain_generate = network.generate
        had_own = "generate" in vars(network)

        def generate(*args: Any, **kwargs: Any) -> Any:
            with follower.generating(args, kwargs):
                return plain_generate(*args, **kwargs)

        with hooks.attached(engine.blocks, session.guarded), removed_after() as handles:
            handles.append(
                engine.backbone.register_forward_pre_hook(
                    follower.on_start, prepend=True, with_kwargs=True
                )
            )
            handles.append(engine.backbone.register_forward_hook(follower.on_end, prepend=True))
            network.generate = generate
            try:
                yield network
            finally:
                del network.generate
                if had_own:
                    network.generate = plain_generate


class Follower:
    """Works out, for each pass of a network that others drive, where its columns stand."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._prompt_len: Int[Tensor, batch] | None = None
        self._whole: int | None = None
        self._mask: Tensor | None = None
        self._before: dict[Any, int] = {}
        self._latches: dict[str, Tensor] = {}

    @contextmanager
    def generating(self, args: tuple[Any, ...], kwargs: Any) -> Iterator[None]:
        """Inside `generate`, whose input is the prompt however it is fed."""
        inputs = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        if inputs is None:
            inputs = kwargs.get("inputs_embeds")
        self._whole = int(inputs.shape[1]) if inputs is not None else None
        self._mask = kwargs.get("attention_mask")
        self._prompt_len = None
        try:
            yield
        finally:
            self._whole = self._mask = self._prompt_len = None

    def on_start(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        """Before a pass: the place of its columns, by mask and cache."""
        if not self._session.awake():
            return
        given = arguments(module, args, kwargs)
        tokens = columns(given)
        rows, length, device = tokens.shape[0], tokens.shape[1], tokens.device
        cache = given.get("past_key_values")
        seen = int(cache.get_seq_length()) if cache is not None else 0
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask.to(device).bool()
        elif mask is None:
            real = torch.ones(rows, seen + length, dtype=torch.bool, device=device)
        else:
            raise HookError(
                "as_hf reads positions from a 2-D attention mask, but the model was given "
                "another kind; use a dynamic cache (cache_implementation='dynamic')"
            )
        if real.shape[1] < seen + length:
            raise HookError(
                f"the attention mask has {real.shape[1]} columns for {seen} cached and "
                f"{length} new ones; pass a mask over all of them"
            )
        real = real[:, : seen + length]
        if seen == 0 or self._prompt_len is None:
            # Inside `generate` a second start recomputes the same requests.
            if self._whole is None or self._prompt_len is None:
                self._latches = {}
                self._refuse_unseen(seen)
            self._prompt_len = self._prompt(real, seen)
        if self._prompt_len.shape[0] != rows:
            raise HookError(
                f"a cached step has {rows} rows but its prompt had "
                f"{self._prompt_len.shape[0]}; as_hf cannot tell which row is which"
            )
        state = RequestState(
            prompt_len=self._prompt_len,
            position=real.sum(1) - real[:, seen:].sum(1) - _leading(~real[:, seen:]),
            slot=torch.ones(rows, dtype=torch.long, device=device),
            row=torch.arange(rows, device=device),
            latches=self._latches,
        )
        self._before = self._session.fired
        if len(self._session.slots) != rows:
            self._session.slots = (1,) * rows
        self._session.begin(state, length)

    def on_end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a pass: every hook must have fired once in it."""
        if not self._session.awake():
            return
        wrong = [
            f"{site} {n - self._before[site]}"
            for site, n in self._session.fired.items()
            if n - self._before[site] != 1
        ]
        if wrong:
            raise HookError(
                f"in one forward pass each hook must fire once, but they fired: {', '.join(wrong)}"
            )

    def _refuse_unseen(self, seen: int) -> None:
        """The mean over a prompt needs all of it."""
        if seen and self._session.averages:
            raise HookError(
                f"a condition is averaged over the prompt, but the first {seen} columns of it are "
                "in the cache already; begin with an empty cache, or decide at the last token "
                "of the prompt (on='last_prompt')"
            )

    def _prompt(self, real: Tensor, seen: int) -> Int[Tensor, "batch"]:
        """Tokens of each row's prompt, at the first pass of a request."""
        if self._whole is None:
            return real.sum(1)
        if isinstance(self._mask, Tensor) and self._mask.ndim == 2:
            given = self._mask.to(real.device).bool().sum(1)
        else:
            given = self._whole - _leading(~real)
        # Beams and several answers a prompt repeat each row in place.
        repeats = real.shape[0] // given.shape[0]
        return given.repeat_interleave(repeats)


def _leading(flags: Tensor) -> Int[Tensor, "batch"]:
    """How many columns at the start of each row are True."""
    return flags.long().cumprod(1).sum(1)
