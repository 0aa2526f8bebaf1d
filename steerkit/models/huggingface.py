"""The Hugging Face engine: any decoder-only transformer, by plain module hooks."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerkit.batch import Batch
from steerkit.errors import ModelError
from steerkit.models import hooks
from steerkit.models.as_hf import steered_in_place
from steerkit.models.blocks import find_blocks, layer_list, probe_inputs, prove_streams
from steerkit.models.engine import turns_of
from steerkit.models.fingerprint import fingerprint
from steerkit.models.generate import complete
from steerkit.models.hooks import Visit
from steerkit.models.readout import through_norm
from steerkit.models.staircase import why_not
from steerkit.models.text import Text
from steerkit.program import ProgramTable
from steerkit.protocols import Logits, ModelInfo
from steerkit.site import Site

UNBOUNDED = 2**31 - 1
"""Context length of models that state none."""


class HuggingFaceEngine:
    """A Hugging Face causal LM and its tokenizer. The network is used as it is, never changed.

    Wrapping runs a few probe forwards on a handful of tokens, which find the blocks' parts
    and prove that every stream is live and obeys its definition.

    Raises:
        ModelError: not a decoder-only transformer, or its streams cannot be told apart.
        HookError: blocks that do not run exactly once in a forward pass.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        processing: str = "raw",
    ) -> None:
        self.network = network
        self.turns = turns_of(network)
        config = network.config
        inner = config.get_text_config() if hasattr(config, "get_text_config") else config
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"{type(network).__name__} is an encoder-decoder; only decoder-only models "
                "can be wrapped"
            )
        if not hasattr(network, "get_output_embeddings") or network.get_output_embeddings() is None:
            raise ModelError(
                f"{type(network).__name__} has no language-model head; load it with "
                "AutoModelForCausalLM"
            )
        if any(p.is_meta for p in network.parameters()):
            raise ModelError(
                f"{type(network).__name__} has weights on the meta device, so it cannot run; "
                "load them (from_pretrained) before wrapping"
            )
        self.config = inner
        # Kept: to look it up takes as long as a hook, and calls ask twice where ids go.
        self._embedding: nn.Module = network.get_input_embeddings()
        n_layers = int(inner.num_hidden_layers)
        self.backbone, layers = layer_list(network, n_layers)
        # Adapter libraries pass what they are given on to the model inside.
        inside = network.get_base_model() if hasattr(network, "get_base_model") else network
        self._takes = frozenset(inspect.signature(inside.forward).parameters)
        label = name or getattr(config, "_name_or_path", "") or type(network).__name__
        # A local folder is called by its own name: where it lies says nothing about it.
        label = Path(label).name if Path(label).is_dir() else str(label)
        head = network.get_output_embeddings()
        d_vocab = int(getattr(inner, "vocab_size", head.weight.shape[0]))
        inputs = self._accepted({**probe_inputs(d_vocab, self.device), "use_cache": False})
        with self.turns.taken(), self.undisturbed():
            self.blocks = find_blocks(
                network, layers, model_type=inner.model_type, config=inner, inputs=inputs
            )
            streams = prove_streams(
                label,
                self.attached,
                lambda: network(**inputs),
                inputs["attention_mask"].bool(),
                n_layers=n_layers,
                parts=all(b.attn is not None and b.mlp is not None for b in self.blocks),
            )
        n_ctx = context_length(inner)
        self.text = Text(tokenizer, n_ctx=n_ctx, config=inner)
        first = next(network.parameters())
        self.info = ModelInfo(
            name=label,
            model_type=inner.model_type,
            n_layers=n_layers,
            d_model=int(inner.hidden_size),
            d_vocab=d_vocab,
            n_ctx=n_ctx,
            streams=streams,
            dtype=str(first.dtype).removeprefix("torch."),
            device=str(self.device),
            fingerprint=fingerprint(own_names(network), inner.to_dict(), processing=processing),
            processing=processing,
            chat=self.text.chat,
        )

    @cached_property
    def resumes(self) -> str:
        """Why rows cannot join a pass under way; empty where they can. Proven when first asked."""
        return why_not(self)

    @property
    def device(self) -> torch.device:
        """Where token ids go: where the token embedding lies."""
        weight = self._embedding.weight
        assert isinstance(weight, Tensor)
        return weight.device

    def undisturbed(self, *, grad: bool = False) -> AbstractContextManager[None]:
        """Evaluation mode, with training flags put back after."""
        return hooks.undisturbed(self.network, grad=grad)

    def attached(self, visits: Mapping[Site, Visit]) -> AbstractContextManager[None]:
        """Hooks at the given sites while the context is open."""
        return hooks.attached(self.blocks, visits)

    def forward(self, batch: Batch, logits: Logits) -> Float[Tensor, "batch kept d_vocab"]:
        """One forward pass without a cache; masks and position ids are always given."""
        inputs: dict[str, Any] = {
            "input_ids": batch.tokens,
            "attention_mask": batch.attention_mask,
            "position_ids": batch.position_ids,
            "use_cache": False,
            "return_dict": True,
        }
        keep = batch.answer_width + 1 if logits == "answer" else int(logits == "last")
        if keep:
            inputs["logits_to_keep"] = keep
        out = self.network(**self._accepted(inputs)).logits
        assert isinstance(out, Tensor)
        return out[:, -keep:] if keep else out

    def complete(
        self,
        batch: Batch,
        table: ProgramTable | None,
        slots: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[tuple[int, ...]]:
        """New tokens of each row, by the library's own `generate` with its own cache."""
        return complete(
            self,
            batch,
            table,
            slots,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
        )

    def read_out(self, vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_vocab"]:
        """What the final norm's weight and the unembedding make of directions."""
        head = self.network.get_output_embeddings().weight
        scaled = through_norm(self.final_norm(), vectors, head)
        return scaled @ head.float().T

    def final_norm(self) -> nn.Module | None:
        """The norm between the last block and the unembedding, where there is one."""
        return last_norm(self.backbone)

    def as_hf(self, table: ProgramTable | None) -> AbstractContextManager[Any]:
        """The network itself, steered while the context is open."""
        return steered_in_place(self, table)

    def _accepted(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Those inputs that this network's forward takes by name."""
        return {name: value for name, value in inputs.items() if name in self._takes}


def last_norm(backbone: nn.Module) -> nn.Module | None:
    """The norm after the last block, where there is one."""
    found = [
        module
        for name, module in backbone.named_children()
        if "norm" in type(module).__name__.lower()
        and "emb" not in name
        and getattr(module, "weight", None) is not None
    ]
    return found[-1] if found else None


def context_length(config: Any) -> int:
    """Tokens that a model of this configuration takes; `UNBOUNDED` where it states none."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return UNBOUNDED


def own_names(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters by the names that Hugging Face gave them, under a bridge's wrappers too."""
    return [
        (name.replace("_original_component.", ""), parameter)
        for name, parameter in network.named_parameters()
    ]
