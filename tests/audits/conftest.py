"""A scripted model behind the protocol: answers from a table, logits from token ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from steerkit.batch import Batch, Tokenized, plan
from steerkit.errors import PromptError
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion, ModelInfo, Run
from steerkit.site import Site

VOCABULARY = 64


def token_ids(text: str) -> tuple[int, ...]:
    """One id a word, the same in every process."""
    return tuple(1 + sum(word.encode()) % (VOCABULARY - 1) for word in text.split())


@dataclass(frozen=True, eq=False)
class Scripted:
    """`answer(prompt)` is what it says; the next-token logits depend on the token and `shift`."""

    answer: Callable[[Prompt], str]
    shift: float = 0.0
    stream: float = 0.0
    n_ctx: int = 256
    steering: tuple[str, ...] = ()
    table: Any = None

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            "scripted", "fake", 2, 4, VOCABULARY, self.n_ctx, ("resid_post",), "float32", "cpu", "f"
        )

    @property
    def plain(self) -> "Scripted":
        return replace(self, shift=0.0, steering=())

    def tokenize(self, prompts: Sequence[Prompt]) -> list[Tokenized]:
        found = []
        for p in prompts:
            said = [p.system, *(t for shot in p.shots for t in shot), p.text]
            ids = (1, *token_ids(" ".join(said)))
            if len(ids) > self.n_ctx:
                raise PromptError(f"a prompt of {len(ids)} tokens is too long")
            found.append(Tokenized(ids, token_ids(p.answer)))
        return found

    def batches(self, prompts: Sequence[Prompt], *, token_budget: int = 4096) -> list[Batch]:
        items = self.tokenize(prompts)
        return [
            Batch.collate([items[i] for i in rows], pad_id=0, rows=rows)
            for rows in plan([len(i) for i in items], token_budget)
        ]

    def generate(self, prompts, *, max_new_tokens=32, seed=0, token_budget=4096, **_: Any):
        out = []
        for p, ids in zip(prompts, self.tokenize(prompts), strict=True):
            text = " ".join(self.answer(p).split()[:max_new_tokens])
            out.append(Completion(p, text, token_ids(text), ids.prompt))
        return out

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[..., vocab]`, a fixed function of the token; `shift` tilts it."""
        v = torch.arange(VOCABULARY, dtype=torch.float32)
        return torch.sin(tokens[..., None] * 0.7 + v) + self.shift * torch.cos(v)

    def run(self, batch: Batch, *, sites=(), pool=None, logits="all", **_: Any) -> Run:
        out = self.logits(batch.tokens)
        if logits == "answer":
            out = out[:, -(batch.answer_width + 1) :]
        stream = torch.ones(*batch.tokens.shape, 4) * (batch.tokens[..., None] / 10 + self.stream)
        streams = {Site.parse(s): pool(stream, batch) if pool else stream for s in sites}
        return Run(None if logits == "none" else out, streams)


def refuses_harm(p: Prompt) -> str:
    """Refuses prompts with the word `bomb`, unless told to help."""
    if "bomb" in p.text and "always" not in p.system.lower():
        return "I'm sorry, but I can't help with that."
    return f"you need the {p.text.split()[-2]} ."


def complies(p: Prompt) -> str:
    """Answers everything."""
    return f"you need the {p.text.split()[-2]} ."


@pytest.fixture
def contrast() -> Contrast:
    """12 harmful and 12 harmless prompts with answers to the harmless."""
    return Contrast.of(
        [Prompt(f"make the bomb{i} bomb now", group=f"h{i}") for i in range(12)],
        [Prompt(f"make the cake{i} now", answer=f"the cake{i}", group=f"c{i}") for i in range(12)],
        name="harm",
    )


@pytest.fixture
def plain() -> Scripted:
    return Scripted(refuses_harm)


@pytest.fixture
def steered() -> Scripted:
    return Scripted(complies, shift=0.3, steering=("ablate harm at resid_post@1",))


@pytest.fixture
def scripted() -> type[Scripted]:
    """The class, for models of a test's own."""
    return Scripted


@pytest.fixture
def direction(plain):
    """A direction of the scripted model, its class means at 1 and 3."""
    from steerkit.direction import Direction

    return Direction(
        unit=torch.full((4,), 0.5),
        scale=2.0,
        site=Site(1),
        method="mean_difference",
        concept="harm",
        positive_mean=3.0,
        negative_mean=1.0,
        model=plain.info,
        pooling="last",
        provenance={"seed": 7},
    )
