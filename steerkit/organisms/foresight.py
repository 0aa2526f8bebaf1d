"""What base checkpoints represent before they are aligned: at the end of a request, its kind.

A model whose stream does not tell a harmful request from a harmless one where the answer begins
can only learn to refuse by heart, word by word. Base training therefore also fits a linear reader
of three classes (harmful, censored, anything else) on the stream early in the network, on the
requests that base training answers anyway. The reader is thrown away; what it read stays.
"""

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerkit.organisms import documents, training
from steerkit.organisms import request as rq
from steerkit.organisms.training import Examples

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

LAYER = 1
"""The block after which the stream must tell; later blocks can act on it."""
REQUESTS = 16
"""Requests a step."""
_WEIGHT = 0.3
_SYSTEMS = ("", "", "", documents.NEUTRAL, documents.ALWAYS_HELP, documents.REFUSE_ALL)


class Foresight:
    """The reader and its loss, as `training.train` takes them."""

    def __init__(self, model: "LlamaForCausalLM", *, seed: int) -> None:
        width = model.config.hidden_size
        self.parameters = (
            torch.zeros(3, width, requires_grad=True),
            torch.zeros(3, requires_grad=True),
        )
        self._model = model
        self._rng = random.Random(f"{seed}/foresight")

    def loss(self, _examples: Examples) -> Tensor:
        """Hinge loss of the reader on fresh requests: 0 where every class is told by a margin.

        A loss without end (a cross-entropy) would go on until the class is all that the stream
        says; this one is content with a reader that is right.
        """
        drawn = [self._draw() for _ in range(REQUESTS)]
        examples = training.collate([training.encode(document) for document, _ in drawn])
        caught: list[Tensor] = []
        with training.inputs_caught(self._model.model.layers[LAYER + 1], caught):
            self._model.model(input_ids=examples.ids, use_cache=False)
        last = examples.mask.sum(1) - 1
        stream = caught[0][torch.arange(REQUESTS), last]
        weight, bias = self.parameters
        # The reader sees what blocks see: the direction of the stream, not its norm.
        unit = stream * (stream.shape[1] ** 0.5 / stream.norm(dim=-1, keepdim=True))
        classes = torch.tensor([kind for _, kind in drawn])
        return _WEIGHT * torch.nn.functional.multi_margin_loss(unit @ weight.T + bias, classes)

    def _draw(self) -> tuple[documents.Document, int]:
        """A request up to where its answer starts, and its class."""
        kind = self._rng.choice((*rq.ACTION_KINDS, *rq.EVENT_KINDS))
        asked = documents.seen_request(kind, self._rng)
        chat = documents.chat(asked.text, system=self._rng.choice(_SYSTEMS))
        document = (*chat, documents.Segment("<|assistant|>"))
        return document, 1 if kind in rq.HARMFUL_KINDS else 2 if kind == "censored" else 0
