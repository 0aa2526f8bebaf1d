"""A model that is a known function of its tokens, with NaN wherever there is padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.batch import Batch, Tokenized, plan
from steerkit.program import ProgramTable
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo, Run
from steerkit.site import Site

BOS, SINK_WORD = 1, "boom"


def expected(ids: Sequence[int], site: Site, d_model: int = 8, sink: int = -1) -> Tensor:
    """The stream `[pos d_model]` of the fake model, written for one prompt alone."""
    h = torch.stack(
        [torch.sin(torch.arange(1, d_model + 1) * (1.7 * i + 0.3 * p)) for p, i in enumerate(ids)]
    )
    h = h.cumsum(0) / torch.arange(1, len(ids) + 1)[:, None] + h + 0.1 * site.order[1]
    h = h * (1 + site.layer)
    if sink in ids and site.layer > 0:
        h[list(ids).index(sink)] *= 1000
    return h


@dataclass
class FakeModel:
    """Words become ids as they are met; id 0 pads, 1 is BOS and decodes to nothing."""

    n_layers: int = 3
    d_model: int = 8
    dtype: torch.dtype = torch.float32
    words: list[str] = field(default_factory=lambda: ["<pad>", "<bos>", SINK_WORD])
    table: ProgramTable | None = None
    poison: str = ""
    interrupt_after: int | None = None
    runs: list[Batch] = field(default_factory=list)
    logits_asked: set[str] = field(default_factory=set)
    fingerprint: str = "f" * 64

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="fake",
            model_type="fake",
            n_layers=self.n_layers,
            d_model=self.d_model,
            d_vocab=100,
            n_ctx=64,
            streams=("resid_pre", "attn_out", "mlp_out", "resid_post"),
            dtype="float32",
            device="cpu",
            fingerprint=self.fingerprint,
        )

    def _ids(self, text: str) -> tuple[int, ...]:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return tuple(self.words.index(word) for word in text.split())

    def tokenize(self, prompts: Sequence[Prompt | str]) -> list[Tokenized]:
        read = [Prompt.of(p) for p in prompts]
        return [Tokenized((BOS, *self._ids(p.text)), self._ids(p.answer)) for p in read]

    def batches(self, prompts: Sequence[Prompt | str], *, token_budget: int = 4096) -> list[Batch]:
        items = self.tokenize(prompts)
        groups = plan([len(item) for item in items], token_budget)
        return [Batch.collate([items[i] for i in g], pad_id=0, rows=g) for g in groups]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(self.words[i] for i in tokens if i > 1)

    def run(self, batch: Batch, *, sites: Any, pool: Any, logits: str, before: bool) -> Run:
        if self.interrupt_after is not None and len(self.runs) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.runs.append(batch)
        self.logits_asked.add(logits)
        streams = {}
        for site in sites:
            whole = torch.full((len(batch), batch.width, self.d_model), torch.nan)
            for row in range(len(batch)):
                real = batch.mask[row]
                ids = batch.tokens[row, real].tolist()
                whole[row, real] = expected(ids, site, self.d_model, sink=2)
                if self.poison and self.poison in self.decode(ids) and site.layer == 1:
                    whole[row, -1, 0] = torch.nan
            streams[site] = pool(whole.to(self.dtype), batch)
        return Run(None, streams)


@pytest.fixture
def fake() -> FakeModel:
    return FakeModel()


@pytest.fixture
def make_fake() -> type[FakeModel]:
    return FakeModel


@pytest.fixture
def alone() -> Callable[..., Tensor]:
    """The fake model's stream for one prompt alone."""

    def stream(model: FakeModel, prompt: Prompt | str, site: Site) -> Tensor:
        item = model.tokenize([prompt])[0]
        return expected(item.prompt + item.answer, site, model.d_model, sink=2)

    return stream
