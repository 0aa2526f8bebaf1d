"""Pairs of prompts that are patched into each other, and the places of a model to patch at."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Batch, Tokenized, plan
from steerkit.direction import Direction
from steerkit.errors import (
    DirectionError,
    InterventionError,
    MethodError,
    ModelError,
    PromptError,
    SiteError,
)
from steerkit.lenses.metrics import Text
from steerkit.models import LanguageModel
from steerkit.models.checks import check_site
from steerkit.models.heads import HeadPoint, Heads, find_heads
from steerkit.models.patching import Place
from steerkit.prompts import Contrast, Prompt
from steerkit.registry import suggest
from steerkit.site import STREAMS, Site

Align = Literal["equal", "end"]
Where = Literal["each", "whole"]
HEADS = "heads"
ELEMENTS = 2**27
"""Numbers held at a time of the streams of one run."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clean and corrupted prompts, token by token.

    Attributes:
        clean: the runs that states are taken from.
        corrupted: the runs that they are put into.
        groups: what intervals resample, one a pair.
        prompts: the two of each pair as they were given.
    """

    clean: tuple[Tokenized, ...]
    corrupted: tuple[Tokenized, ...]
    groups: tuple[str, ...]
    prompts: tuple[tuple[Text, Text], ...]

    @cached_property
    def shared(self) -> tuple[int, ...]:
        """Tokens that both sides of each pair have, counted from the end."""
        return tuple(min(len(a), len(b)) for a, b in zip(self.clean, self.corrupted, strict=True))

    @property
    def own_answers(self) -> list[tuple[str, str]] | None:
        """The answers that both prompts of every pair carry; None where one carries none."""
        found = [
            tuple(p.answer if isinstance(p, Prompt) else "" for p in two) for two in self.prompts
        ]
        return found if all(a and b and a != b for a, b in found) else None  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self.clean)

    def batches(self, model: LanguageModel, n_numbers: int, token_budget: int) -> list[list[int]]:
        """Pairs that run together: `n_numbers` a token are kept of each side."""
        lengths = [max(len(a), len(b)) for a, b in zip(self.clean, self.corrupted, strict=True)]
        budget = max(1, min(token_budget, ELEMENTS // max(1, n_numbers)))
        return [
            [regime[i] for i in group]
            for regime in model.engine.text.regimes(lengths)
            for group in plan([lengths[i] for i in regime], budget)
        ]

    def batch(self, model: LanguageModel, side: str, rows: Sequence[int]) -> Batch:
        """One side of some pairs, left-padded."""
        items = self.clean if side == "clean" else self.corrupted
        device = model.engine.device
        return Batch.collate([items[i] for i in rows], pad_id=0, rows=rows, device=device)

    def labels(self, model: LanguageModel, positions: Sequence[int]) -> tuple[str, ...]:
        """What stands at each position: the token where all agree, both of a single pair."""
        return tuple(self._label(model, position) for position in positions)

    def _label(self, model: LanguageModel, position: int) -> str:
        have = [i for i, n in enumerate(self.shared) if n >= -position]
        clean, corrupted = (
            Counter(items[i].prompt[position] for i in have)
            for items in (self.clean, self.corrupted)
        )
        if len(clean) > 1 or len(corrupted) > 1:
            return f"{position}"
        (a,), (b,) = clean, corrupted
        word = shown(model, a) if a == b else f"{shown(model, a)}/{shown(model, b)}"
        return f"{position} {word}"


def shown(model: LanguageModel, token: int) -> str:
    """A token as text; its number where the model has no tokenizer or shows nothing."""
    try:
        tokenizer = model.tokenizer
    except ModelError:
        return f"#{token}"
    return str(tokenizer.decode([token])).replace("\n", "\\n").strip() or f"#{token}"


def read_pairs(
    model: LanguageModel,
    clean: Sequence[Text] | Contrast,
    corrupted: Sequence[Text] | None,
    *,
    align: Align,
    groups: Sequence[str] | None,
) -> Pairs:
    """Pairs from two lists, or from a paired contrast whose positive side is clean.

    Answers that prompts carry are not run.

    Raises:
        PromptError: an unpaired contrast, lists that are not as long as each other, or pairs
            that differ in their number of tokens while `align` is `equal`.
        MethodError: an unknown alignment.
    """
    if align not in get_args(Align):
        raise MethodError(f"no alignment named '{align}'; {suggest(str(align), get_args(Align))}")
    if isinstance(clean, Contrast):
        if corrupted is not None or not clean.paired:
            raise PromptError(
                "a contrast holds both sides; give it alone"
                if corrupted is not None
                else f"the contrast '{clean.name}' is not paired, so no prompt has a partner to "
                "be patched from; read it with paired=True if its i-th prompts belong together"
            )
        groups = clean.groups[: len(clean.positive)] if groups is None else groups
        contrast = clean
        clean, corrupted = contrast.positive, contrast.negative
    if corrupted is None or isinstance(clean, str) or isinstance(corrupted, str):
        raise PromptError("give two lists of prompts, clean and corrupted, or a paired contrast")
    if len(clean) != len(corrupted) or not clean:
        raise PromptError(
            f"the i-th prompts belong together; got {len(clean)} clean and {len(corrupted)} "
            "corrupted ones"
        )
    own = tuple(groups) if groups is not None else groups_of(clean)
    if len(own) != len(clean):
        raise PromptError(f"one group a pair: {len(clean)} pairs, got {len(own)} groups")
    two = (tokenized(model, clean), tokenized(model, corrupted))
    uneven = [
        f"{i} ({len(a)} and {len(b)} tokens)"
        for i, (a, b) in enumerate(zip(*two, strict=True))
        if len(a) != len(b)
    ]
    if uneven and align == "equal":
        more = f" and {len(uneven) - 5} more" if len(uneven) > 5 else ""
        raise PromptError(
            f"{len(uneven)} of {len(clean)} pairs differ in length: {', '.join(uneven[:5])}{more}. "
            "States are replaced position by position: make both sides equally long, or pass "
            "align='end' to count positions from the end"
        )
    sides = tuple(zip(map(_text, clean), map(_text, corrupted), strict=True))
    return Pairs(*two, own, sides)


def tokenized(model: LanguageModel, prompts: Sequence[Text]) -> tuple[Tokenized, ...]:
    """Prompts as token ids, without their answers."""
    if isinstance(prompts, str | Prompt | Tokenized):
        raise PromptError("give a list of prompts, not a single one: [prompt]")
    if not prompts:
        raise PromptError("no prompts were given; give at least one")
    texts = [replace(Prompt.of(p), answer="") for p in prompts if not isinstance(p, Tokenized)]
    read = iter(model.tokenize(texts) if texts else ())
    return tuple(Tokenized((p if isinstance(p, Tokenized) else next(read)).prompt) for p in prompts)


def groups_of(prompts: Sequence[Text]) -> tuple[str, ...]:
    """Each prompt's group, or one of its own."""
    return tuple(
        (p.group if isinstance(p, Prompt) else "") or f"pair{i}" for i, p in enumerate(prompts)
    )


def _text(prompt: Any) -> Text:
    return prompt if isinstance(prompt, Tokenized) else Prompt.of(prompt)


def read_positions(pairs: Pairs, positions: Where | Sequence[int]) -> tuple[int, ...]:
    """Positions counted from the end, -1 the last; () for all of them at once.

    Raises:
        InterventionError: another rule, a position from the start, or one that no pair has.
    """
    longest = max(pairs.shared)
    if positions == "whole":
        return ()
    if positions == "each":
        return tuple(range(-longest, 0))
    if isinstance(positions, str):
        raise InterventionError(
            f"positions are 'each', 'whole', or numbers from the end such as [-2, -1]; "
            f"got '{positions}'"
        )
    wanted = sorted(dict.fromkeys(int(p) for p in positions))
    if not wanted or wanted[-1] >= 0 or wanted[0] < -longest:
        raise InterventionError(
            f"positions count from the end, from {-longest} (the longest pair) to -1 (the last "
            f"prompt token); got {list(positions)}"
        )
    return tuple(wanted)


def read_places(
    model: LanguageModel, streams: Sequence[str] | str | None, layers: Sequence[int] | None
) -> tuple[tuple[Place, ...], tuple[HeadPoint, ...]]:
    """The places of streams at layers, in forward order, and the heads if they are asked for.

    Raises:
        SiteError: a stream or layer that the model lacks, or heads that cannot be told apart.
        ModelError: a model that does not run eagerly.
    """
    if not isinstance(model, LanguageModel) or model.path != "eager":
        raise ModelError(
            "maps need an eager model, whose streams can be written row by row; "
            "wrap the network again with steerkit.wrap"
        )
    info = model.info
    names = _names(model, streams)
    chosen = tuple(range(info.n_layers)) if layers is None else tuple(dict.fromkeys(layers))
    if not chosen or not names:
        raise SiteError("no place to look at; give at least one stream and one layer")
    found: list[Place] = []
    for layer in chosen:
        site = Site(layer, info.streams[-1])
        check_site(site, info)
        for name in names:
            if name == HEADS:
                found.append(Heads(layer))
            else:
                check_site(site := Site(layer, name), info)  # type: ignore[arg-type]
                found.append(site)
    return (
        tuple(sorted(found, key=lambda p: p.order)),
        find_heads(model.engine) if HEADS in names else (),
    )


def _names(model: LanguageModel, streams: Sequence[str] | str | None) -> tuple[str, ...]:
    if streams is None:
        usual = ("resid_post", "attn_out", "mlp_out")
        return tuple(s for s in usual if s in model.info.streams)
    names = tuple(dict.fromkeys((streams,) if isinstance(streams, str) else streams))
    known = (*STREAMS, HEADS)
    if unknown := [name for name in names if name not in known]:
        raise SiteError(f"no stream named '{unknown[0]}'; {suggest(unknown[0], known)}")
    return names


def read_basis(
    model: LanguageModel, along: Direction | Tensor, places: Sequence[Place]
) -> Float[Tensor, "k d_model"]:
    """Orthonormal rows that span one direction or several.

    Raises:
        DirectionError: another model's direction, or vectors of another width or of rank < k.
        SiteError: heads, which do not lie in the stream's space.
    """
    if any(isinstance(place, Heads) for place in places):
        raise SiteError("a direction of the stream does not lie in a head's space; leave out heads")
    if isinstance(along, Direction):
        along.check(model.info)
        along = along.unit
    rows = along.detach().double().cpu()
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != model.info.d_model or not rows.isfinite().all():
        raise DirectionError(
            f"along takes a direction of width {model.info.d_model} or rows of that width, all "
            f"finite; got {tuple(along.shape)}"
        )
    q, r = torch.linalg.qr(rows.T)
    if len(rows) > rows.shape[1] or float(r.diagonal().abs().min()) < 1e-6 * float(rows.norm()):
        raise DirectionError(
            f"the {len(rows)} vectors of along= span fewer dimensions; leave out those that "
            "follow from the others"
        )
    return q.T
