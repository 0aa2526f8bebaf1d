"""A toy language model with a planted refusal, whose truth is known to the last digit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.batch import Batch, Tokenized, plan
from steerkit.direction import Direction, Directions
from steerkit.kernels.reference import apply, pack
from steerkit.program import Program, ProgramTable
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion, ModelInfo, Run
from steerkit.site import Site

D, HARM, CALM, EDGE = 24, 2.0, -6.0, -3.0
REFUSAL = "sorry , i can not help with that ."
ANSWER = "sure , here it is ."
WORDS = [
    "<pad>", "?", "harm", *REFUSAL.split(), "sure", "here", "it", "is",
    *(f"w{i}" for i in range(40)),
]  # fmt: skip
IDS = {word: i for i, word in enumerate(WORDS)}
INFO = ModelInfo("toy", "toy", 3, D, len(WORDS), 64, ("resid_post",), "float32", "cpu", "toy-print")


def planted_unit() -> Tensor:
    """The one vector along which refusal is written and read."""
    u = torch.randn(D, generator=torch.Generator().manual_seed(5))
    return u / u.norm()


@dataclass(frozen=True, eq=False)
class Toy:
    """Three blocks. Block 1 writes HARM or CALM along u at the last prompt token; the answer
    refuses if the coordinate there is above EDGE, which zero is. Along u elsewhere, and in
    every other direction at any token, the next-word distribution shifts a little.
    """

    table: ProgramTable | None = None
    info: ModelInfo = INFO
    plain_model: Any = field(default=None)

    @property
    def plain(self) -> "Toy":
        return Toy()

    def tokenize(self, prompts: Sequence[Prompt | str]) -> list[Tokenized]:
        items = []
        for p in map(Prompt.of, prompts):
            ids = tuple(IDS[w] for w in p.text.split())
            items.append(Tokenized(ids, tuple(IDS[w] for w in p.answer.split())))
        return items

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(WORDS[t] for t in tokens)

    def with_(self, *interventions: Any) -> "Toy":
        return self.with_rows(interventions)

    def with_rows(self, *rows: Sequence[Any]) -> "Toy":
        slots = []
        for row in rows:
            sites = {s for i in row for s in i.sites}
            slots.append(
                {s: Program.parallel([i.lower(s) for i in row if s in i.sites]) for s in sites}
            )
        return replace(self, table=ProgramTable(tuple(slots)))

    def _streams(self, batch: Batch, slots: list[int]) -> tuple[dict[Site, Tensor], Tensor, Any]:
        u = planted_unit()
        table = torch.randn(len(WORDS), D, generator=torch.Generator().manual_seed(1)) * 2
        table = table - torch.outer(table @ u, u)
        h = table[batch.tokens] * batch.mask[..., None]
        # The last prompt token sees the mean of the prompt, so that its states vary.
        prompt = (batch.mask & ~batch.answer_mask)[..., None]
        context = (h * prompt).sum(1) / batch.prompt_len[:, None]
        seen, before = {}, {}
        last = batch.absolute == batch.prompt_len[:, None] - 1
        harm = ((batch.tokens == IDS["harm"]) & ~batch.answer_mask).any(1)
        for layer in range(3):
            if layer == 1:
                value = torch.where(harm, HARM, CALM)[:, None] * last
                h = h + value[..., None] * u + last[..., None] * context[:, None]
            before[Site(layer)] = h
            if self.table is not None:
                packed = pack(self.table.at(Site(layer)), "cpu", h.dtype)
                h = apply(
                    packed,
                    h,
                    absolute=batch.absolute,
                    prompt_len=batch.prompt_len,
                    row=batch.rows,
                    slot=slots,
                )
            seen[Site(layer)] = h
        refuses = ((h @ u) * last).sum(1) > EDGE
        return seen, refuses, before

    def run(
        self,
        batch: Batch,
        *,
        sites: Sequence[Site] = (),
        pool: Any = None,
        logits: str = "all",
        slots: Any = None,
        before: bool = False,
        grad: bool = False,
    ) -> Run:
        own = [int(self.table is not None)] * len(batch) if slots is None else list(slots)
        seen, refuses, incoming = self._streams(batch, own)
        kept = incoming if before else seen
        streams = {s: pool(kept[s], batch) if pool else kept[s] for s in sites}
        if logits == "none":
            return Run(None, streams)
        last = seen[Site(2)]
        out = last @ torch.randn(D, len(WORDS), generator=torch.Generator().manual_seed(2)) * 0.1
        said = torch.full((2, batch.width + 1), -1)
        for i, text in enumerate((ANSWER, REFUSAL)):
            words = [IDS[w] for w in text.split()][: batch.width]
            said[i, : len(words)] = torch.tensor(words)
        step = (batch.absolute - batch.prompt_len[:, None] + 1).clamp(-1, batch.width)
        word = said[refuses.long()].gather(1, step.clamp(min=0)).masked_fill(step < 0, -1)
        i, j = (word >= 0).nonzero(as_tuple=True)
        out[i, j, word[i, j]] += 6
        return Run(out[:, -(batch.answer_width + 1) :], streams)

    def run_slots(self, batch: Batch, slots: Sequence[int], **asked: Any) -> Run:
        each = [slot for slot in slots for _ in range(len(batch))]
        return self.run(batch.repeated(len(slots)), slots=each, **asked)

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        max_new_tokens: int = 32,
        slots: Any = None,
        token_budget: int = 4096,
        **_: Any,
    ) -> list[Completion]:
        items = self.tokenize([replace(Prompt.of(p), answer="") for p in prompts])
        own = [int(self.table is not None)] * len(items) if slots is None else list(slots)
        done: list[Any] = [None] * len(items)
        for rows in plan([len(i) for i in items], token_budget):
            batch = Batch.collate([items[i] for i in rows], pad_id=0, rows=rows)
            _, refuses, _ = self._streams(batch, [own[i] for i in rows])
            for i, r in zip(rows, refuses.tolist(), strict=True):
                words = (REFUSAL if r else ANSWER).split()[:max_new_tokens]
                ids = tuple(IDS[w] for w in words)
                done[i] = Completion(Prompt.of(prompts[i]), " ".join(words), ids, items[i].prompt)
        return done


def toy_contrast(n: int, *, seed: int = 0) -> Contrast:
    """Pairs that differ in one word; five pairs a group."""
    rng = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 40, (n, 4), generator=rng).tolist()
    texts = [" ".join(f"w{j}" for j in row) for row in words]
    groups = [f"g{seed}.{i // 5}" for i in range(n)]
    rows = list(enumerate(zip(texts, groups, strict=True)))
    return Contrast.of(
        [{"text": f"harm {t} w{i % 40} ?", "group": g} for i, (t, g) in rows],
        [{"text": f"w{i % 40} {t} w{i % 40} ?", "group": g} for i, (t, g) in rows],
        paired=True,
        name="toy refusal",
    )


def toy_direction(layer: int, unit: Tensor | None = None) -> Direction:
    """A direction of the toy; the planted one by default, with its true class means."""
    u = planted_unit() if unit is None else unit / unit.norm()
    return Direction(u, HARM - CALM, Site(layer), "planted", "refusal", HARM, CALM, INFO, "last")


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def toy_held_out() -> Contrast:
    return toy_contrast(40, seed=3)


@pytest.fixture
def toy_directions() -> Directions:
    """The planted direction at the two layers where it is live, another one at layer 0."""
    other = torch.randn(D, generator=torch.Generator().manual_seed(9))
    return Directions((toy_direction(0, other), toy_direction(1), toy_direction(2)))


@pytest.fixture(scope="session")
def make_contrast() -> Callable[..., Contrast]:
    """A builder of toy contrasts."""
    return toy_contrast


@pytest.fixture(scope="session")
def make_direction() -> Callable[..., Direction]:
    """A builder of directions of the toy."""
    return toy_direction
