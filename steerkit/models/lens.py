"""The TransformerLens engines. The only module that imports transformer_lens.

A `TransformerBridge` is a Hugging Face network with wrapped modules, so the Hugging Face
engine runs it; a `HookedTransformer` has hook points of its own at every stream.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge

from steerkit.batch import Batch, Tokenized
from steerkit.errors import ModelError
from steerkit.models import hooks
from steerkit.models.blocks import PROBE_LENGTHS, probe_inputs, prove_streams
from steerkit.models.engine import Engine, turns_of
from steerkit.models.fingerprint import fingerprint
from steerkit.models.generate import Noise, until
from steerkit.models.hooks import Visit, removed_after
from steerkit.models.huggingface import HuggingFaceEngine
from steerkit.models.readout import through_norm
from steerkit.models.steering import Session
from steerkit.models.text import Text
from steerkit.program import ProgramTable
from steerkit.protocols import Logits, ModelInfo
from steerkit.site import Site


def engine_of(model: Any, tokenizer: Any = None, *, name: str | None = None) -> Engine:
    """The engine for a TransformerLens model.

    Raises:
        ModelError: a TransformerLens object that is neither of the two.
    """
    if isinstance(model, TransformerBridge):
        return bridge_engine(model, tokenizer, name=name)
    if isinstance(model, HookedTransformer):
        return HookedEngine(model, tokenizer, name=name)
    raise ModelError(
        f"cannot wrap TransformerLens' {type(model).__name__}; give a HookedTransformer or a "
        "TransformerBridge"
    )


def bridge_engine(
    bridge: TransformerBridge, tokenizer: Any = None, *, name: str | None = None
) -> HuggingFaceEngine:
    """A bridge runs as the Hugging Face network that it wraps.

    Unprocessed, it has the fingerprint of the plain network; compatibility mode folds and
    centres the weights, which makes it another model.
    """
    processed = bool(getattr(bridge, "_weights_processed", False))
    return HuggingFaceEngine(
        bridge.original_model,
        tokenizer if tokenizer is not None else bridge.tokenizer,
        name=name or getattr(bridge.cfg, "model_name", None),
        processing="folded" if processed else "raw",
    )


class HookedEngine:
    """A `HookedTransformer`: its hook points are the streams.

    Generation runs the whole text again for each token, through the same forward as `run`.
    """

    def __init__(
        self, network: HookedTransformer, tokenizer: Any = None, *, name: str | None = None
    ) -> None:
        self.network = network
        self.turns = turns_of(network)
        cfg = network.cfg
        label = name or cfg.model_name or "HookedTransformer"
        tokenizer = tokenizer if tokenizer is not None else network.tokenizer
        self.text = Text(tokenizer, n_ctx=int(cfg.n_ctx))
        tokens = probe_inputs(int(cfg.d_vocab), self.device)
        probe = Batch.collate(
            [
                Tokenized(tuple(row[-n:]))
                for row, n in zip(tokens["input_ids"].tolist(), PROBE_LENGTHS, strict=True)
            ],
            pad_id=0,
            device=self.device,
        )
        with self.turns.taken(), self.undisturbed():
            streams = prove_streams(
                label,
                self.attached,
                lambda: self.forward(probe, "all"),
                probe.mask,
                n_layers=int(cfg.n_layers),
                parts=not cfg.attn_only,
            )
        processing = _processing(network)
        self.info = ModelInfo(
            name=label,
            model_type="hooked_transformer",
            n_layers=int(cfg.n_layers),
            d_model=int(cfg.d_model),
            d_vocab=int(cfg.d_vocab),
            n_ctx=int(cfg.n_ctx),
            streams=streams,
            dtype=str(network.W_E.dtype).removeprefix("torch."),
            device=str(self.device),
            fingerprint=fingerprint(
                network.named_parameters(),
                {"model_type": "hooked_transformer", "hidden_size": cfg.d_model},
                processing=processing,
            ),
            processing=processing,
            chat=self.text.chat,
        )

    @property
    def resumes(self) -> str:
        """Why rows cannot join a pass under way."""
        return "TransformerLens' own forward keeps the number of rows it began with"

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.network.W_E.device

    def undisturbed(self, *, grad: bool = False) -> AbstractContextManager[None]:
        """Evaluation mode, with training flags put back after."""
        return hooks.undisturbed(self.network, grad=grad)

    @contextmanager
    def attached(self, visits: Mapping[Site, Visit]) -> Iterator[None]:
        """Hooks at the given sites while the context is open."""
        with removed_after() as handles:
            for site, visit in visits.items():
                point = getattr(self.network.blocks[site.layer], f"hook_{site.stream}")
                handles.append(point.register_forward_hook(_hook(visit), prepend=True))
            yield

    def forward(self, batch: Batch, logits: Logits) -> Float[Tensor, "batch kept d_vocab"]:
        """One forward pass; TransformerLens derives the position ids from the mask."""
        out = self.network(batch.tokens, attention_mask=batch.mask.long(), padding_side="left")
        assert isinstance(out, Tensor)
        keep = {"last": 1, "answer": batch.answer_width + 1}.get(logits, 0)
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
        """New tokens of each row: what `run` would predict, one after another."""
        prompts = [
            tuple(row[mask].tolist()) for row, mask in zip(batch.tokens, batch.mask, strict=True)
        ]
        new: list[tuple[int, ...]] = [() for _ in prompts]
        ends = self.text.eos_ids
        noise = None
        if temperature > 0:
            noise = Noise(temperature, seed, batch.rows.tolist(), top_k=top_k, top_p=top_p)
        for _ in range(max_new_tokens):
            current = Batch.collate(
                [Tokenized(p, n) for p, n in zip(prompts, new, strict=True)],
                pad_id=self.text.pad_id,
                rows=batch.rows.tolist(),
                device=self.device,
            )
            session = Session()
            session.steer(table, slots)
            session.begin(current.state(slots), current.width)
            with (
                self.turns.taken() as session.awake,
                self.undisturbed(),
                self.attached(session.guarded),
            ):
                scores = self.forward(current, "last")[:, -1].float()
            session.check()
            if noise is not None:
                scores = noise(current.tokens, scores)
            # Finished rows keep growing until all have finished; what follows is cut off.
            new = [(*n, t) for n, t in zip(new, scores.argmax(-1).tolist(), strict=True)]
            if all(set(n) & set(ends) for n in new):
                break
        return [until(n, ends) for n in new]

    def read_out(self, vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_vocab"]:
        """What the final norm's weight and the unembedding make of directions."""
        unembed = self.network.W_U
        norm: nn.Module | None = getattr(self.network, "ln_final", None)
        return through_norm(norm, vectors, unembed) @ unembed.float()

    def as_hf(self, table: ProgramTable | None) -> NoReturn:
        """Refused: there is no Hugging Face object underneath."""
        raise ModelError(
            "a HookedTransformer has no Hugging Face object to steer; load the same model with "
            "steerkit.load, or as a TransformerBridge"
        )


def _hook(visit: Visit) -> Any:
    def on_output(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        changed = visit(output)
        return None if changed is output else changed

    return on_output


def _processing(network: HookedTransformer) -> str:
    """What was done to the weights, as far as they show it."""
    done = []
    if str(network.cfg.normalization_type).endswith("Pre"):
        done.append("folded")
    written = network.W_E.detach().float()
    if float(written.mean(-1).abs().max()) < 1e-4 * float(written.abs().max()):
        done.append("centred")
    return "+".join(done) or "raw"
