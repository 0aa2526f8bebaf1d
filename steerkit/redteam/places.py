"""Where a detector looks: known prompts, and the states at their last token and their answer's."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Batch, Tokenized
from steerkit.errors import ActivationError, PromptError
from steerkit.prompts import Contrast, Prompt, groups_of
from steerkit.protocols import Logits, Model
from steerkit.scoring import TOKEN_BUDGET, scored_batches, slot_batches, with_own_answers
from steerkit.site import Site

POINTS = ("prompt", "answer")
"""The last token of the prompt, and the last token of the answer that follows it."""
OUTPUT = "output"
"""The place after the last site: the logits."""
ELEMENTS = 2**26
"""Numbers of states held at a time."""
Asked = Contrast | Sequence[Prompt | str]


@dataclass(frozen=True)
class Known:
    """Prompts as tokens, with answers that are teacher-forced after them.

    Answers show steering that acts on generated tokens alone. They are the plain model's own,
    or the prompts' own where those have one.
    """

    items: tuple[Tokenized, ...]
    groups: tuple[str, ...]

    @property
    def answered(self) -> bool:
        """Whether every prompt has an answer to look at."""
        return all(item.answer for item in self.items)

    @property
    def sha256(self) -> str:
        """Hash of all tokens: says which prompts they are, and not what they say."""
        return hashlib.sha256(repr([(i.prompt, i.answer) for i in self.items]).encode()).hexdigest()

    def take(self, rows: Sequence[int]) -> "Known":
        """Only some of them."""
        return Known(tuple(self.items[i] for i in rows), tuple(self.groups[i] for i in rows))

    def split(self, fraction: float, *, seed: int = 0) -> tuple["Known", "Known"]:
        """Two parts that share no group; the first has about this fraction of the groups.

        Raises:
            PromptError: a part without prompts.
        """
        names = sorted(set(self.groups))
        first = np.random.default_rng(seed).permutation(len(names))[: round(fraction * len(names))]
        chosen = {names[i] for i in first}
        rows = [
            [i for i, g in enumerate(self.groups) if (g in chosen) is side]
            for side in (True, False)
        ]
        if not all(rows):
            raise PromptError(
                f"{len(self)} known prompts of {len(names)} groups cannot be split in two; "
                "give more groups"
            )
        return self.take(rows[0]), self.take(rows[1])

    def __len__(self) -> int:
        return len(self.items)


def known_prompts(
    model: Model, prompts: "Asked | Known", *, max_new_tokens: int = 16, answer: bool = True
) -> Known:
    """The prompts with answers: their own, or else the plain model's greedy ones.

    Args:
        model: whose tokenizer and plain answers are used.
        prompts: a contrast (both sides), prompts, or what this function gave.
        max_new_tokens: of each answer.
        answer: False leaves prompts without answers as they are.

    Raises:
        PromptError: no prompts.
    """
    if isinstance(prompts, Known):
        return prompts
    if isinstance(prompts, Contrast):
        asked, groups = prompts.prompts, prompts.groups
    else:
        asked = tuple(Prompt.of(p) for p in prompts)
        groups = groups_of(asked)
    if not asked:
        raise PromptError("a detector needs known prompts; give at least a few dozen")
    items = model.tokenize(asked)
    bare = [i for i, p in enumerate(asked) if not p.answer]
    if bare and answer:
        said = model.plain.generate([asked[i] for i in bare], max_new_tokens=max_new_tokens)
        for i, item in zip(bare, with_own_answers(said), strict=True):
            items[i] = item
    return Known(tuple(items), groups)


def read_states(
    model: Model,
    items: Sequence[Tokenized],
    sites: Sequence[Site],
    *,
    slots: Sequence[int] | None = None,
    outputs: bool = True,
    token_budget: int = TOKEN_BUDGET,
) -> Iterator[tuple[Float[Tensor, "slot prompt place d_model"], Tensor | None]]:
    """States of every slot at every site and point, and centred logits at both points.

    Yields a few slots at a time, so that many interventions fit into memory. Places run over
    sites in forward order, each with both points.

    Args:
        model: plain, steered, or a view with a program in every slot.
        items: prompts with answers.
        sites: in forward order.
        slots: which programs; without them, the model as it is (one).
        outputs: also the logits, `[slot prompt point vocab]`, less their mean.
        token_budget: padded tokens a forward pass; 1 runs every prompt alone.

    Raises:
        ActivationError: states that are not finite.
    """
    info = model.info
    every: Sequence[int | None] = [None] if slots is None else slots
    each = len(items) * len(POINTS) * (len(sites) * info.d_model + outputs * info.d_vocab)
    at_once = max(1, ELEMENTS // each)
    for first in range(0, len(every), at_once):
        some = every[first : first + at_once]
        shape = (len(some), len(items), len(POINTS))
        states = torch.empty(*shape[:2], len(sites), len(POINTS), info.d_model)
        logits = torch.empty(*shape, info.d_vocab) if outputs else None
        if slots is None:
            for batch in scored_batches(model, list(items), token_budget=token_budget):
                _read(model, batch, sites, 0, (), states, logits)
        else:
            chosen = slots[first : first + at_once]
            for batch, at, few in slot_batches(model, items, chosen, token_budget=token_budget):
                _read(model, batch, sites, at, few, states, logits)
        finite(states)
        yield states.flatten(2, 3), logits


def finite(states: Float[Tensor, "slot prompt site point d_model"]) -> None:
    """Refuse states that are not finite.

    Raises:
        ActivationError: naming the first prompt.
    """
    bad = ~torch.isfinite(states).all(-1)
    if bool(bad.any()):
        raise ActivationError(
            f"{int(bad.sum())} states are NaN or infinite, first of prompt "
            f"{int(bad.nonzero()[0, 1])}; load the model in a wider dtype, or use a "
            "smaller strength"
        )


def _read(
    model: Model,
    batch: Batch,
    sites: Sequence[Site],
    first: int,
    slots: Sequence[int],
    states: Tensor,
    logits: Tensor | None,
) -> None:
    """Fill in what one pass says: of some slots, the first of which has this number."""
    rows, n = batch.rows.cpu(), max(1, len(slots))
    kept: Logits = "none" if logits is None else "answer"
    run = (
        model.run_slots(batch, slots, sites=sites, pool=_ends, logits=kept)
        if slots
        else model.run(batch, sites=sites, pool=_ends, logits=kept)
    )
    for j, site in enumerate(sites):
        found = run.streams[site].float().cpu()
        states[first : first + n, rows, j] = found.view(n, len(rows), *found.shape[1:])
    if logits is not None:
        assert run.logits is not None
        # The window ends where the batch does, so columns count from its end.
        last = -1 - (batch.mask.sum(1) - batch.prompt_len).cpu().repeat(n)
        ends = torch.stack([run.logits[torch.arange(len(last)), last], run.logits[:, -1]], 1)
        ends = ends.float().cpu()
        ends = ends - ends.mean(-1, keepdim=True)
        logits[first : first + n, rows] = ends.view(n, len(rows), *ends.shape[1:])


def _ends(stream: Tensor, batch: Batch) -> Float[Tensor, "batch 2 d_model"]:
    """The stream at the last prompt token and at the last token of all."""
    here = torch.arange(len(stream), device=stream.device)
    last = batch.width - 1 - (batch.mask.sum(1) - batch.prompt_len)
    return torch.stack([stream[here, last.to(stream.device)], stream[:, -1]], 1)


def place_names(sites: Sequence[Site], *, outputs: bool) -> tuple[str, ...]:
    """`resid_post@0 prompt`, `resid_post@0 answer`, ..., `output prompt`, `output answer`."""
    named = [str(site) for site in sites] + [OUTPUT] * outputs
    return tuple(f"{name} {point}" for name in named for point in POINTS)
