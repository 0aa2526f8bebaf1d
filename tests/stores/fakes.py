"""A model that every process makes for itself in no time: for tests of processes, not of models."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch

from steerkit.batch import Batch, Tokenized, plan
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo, Run

BOS = 1


class Sines:
    """Its states are sines of a token's id and position; each batch goes through a torch module."""

    table = None
    info = ModelInfo(
        "sines", "fake", 3, 8, 1000, 64, ("resid_post",), "float32", "cpu", fingerprint="5" * 64
    )

    def tokenize(self, prompts: Sequence[Prompt | str]) -> list[Tokenized]:
        """BOS, and a token a word."""
        texts = [Prompt.of(prompt).text.split() for prompt in prompts]
        return [Tokenized((BOS, *(2 + crc32(w.encode()) % 998 for w in text))) for text in texts]

    def batches(self, prompts: Sequence[Prompt | str], *, token_budget: int = 4096) -> list[Batch]:
        """Prompts of similar length together."""
        items = self.tokenize(prompts)
        chosen = plan([len(item) for item in items], token_budget)
        return [Batch.collate([items[i] for i in rows], pad_id=0, rows=rows) for rows in chosen]

    def decode(self, tokens: Sequence[int]) -> str:
        """Numbers; the BOS is nothing."""
        return " ".join(str(token) for token in tokens if token != BOS)

    def run(self, batch: Batch, *, sites: Any, pool: Any, **_: Any) -> Run:
        """The streams of a batch."""
        angle = batch.tokens[..., None] * torch.arange(1.0, 9.0) + batch.absolute[..., None]
        states = torch.nn.Identity()(torch.sin(angle))
        return Run(None, {site: pool(states * (1 + site.layer), batch) for site in sites})
