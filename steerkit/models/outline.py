"""What the driver of a capture needs of a model that other processes run: all but its weights.

The driver names sites, reads rows and writes down which model a store is of. For that it takes
the model's description, read from the checkpoint's files without loading it, and its tokenizer.
A large model is then held by its workers alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerkit.batch import Tokenized
from steerkit.errors import ModelError
from steerkit.models.checkpoints import checkpoint_info
from steerkit.models.checks import listed
from steerkit.models.loading import FAILURES, VLLM, _source, load
from steerkit.models.text import Text
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo
from steerkit.site import STREAMS, Stream

SEQUENTIAL = frozenset(
    {
        "gemma2",
        "gemma3_text",
        "gpt2",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "stablelm",
        "starcoder2",
    }
)
"""Model types whose blocks have every stream, whatever their configuration says.

Which streams a model has is otherwise found by running it. Tests compare the two."""

EXACT = ("float32", "float64", "bfloat16")
"""Types in which a loaded model has its checkpoint's fingerprint, in whatever it is stored.

Fingerprints round to bfloat16; float16 would round before."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A plain model without its weights: what it is, and how it reads text.

    Attributes:
        info: what `load` would say of it.
        text: its tokenizer and the rules by which prompts are rendered.
    """

    info: ModelInfo
    text: Text
    table: None = None
    steering: tuple[str, ...] = ()

    def tokenize(self, prompts: Sequence[Prompt | str]) -> list[Tokenized]:
        """Render and tokenize prompts and answers, as the model itself does."""
        return self.text.tokenize(listed(prompts))


def outline(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    device: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **engine: Any,
) -> Outline:
    """The outline of what `load` would give for the same arguments.

    A model whose files do not tell is loaded, and nothing of it is kept but this.

    Raises:
        ModelError: no such model, one that cannot be wrapped, or one for vLLM without a dtype.
    """
    if str(name_or_path).startswith(VLLM):
        return _in_vllm(str(name_or_path).removeprefix(VLLM), dtype, revision, engine)
    found = None
    if not (trust_remote_code or engine):
        place = str(device or ("cuda" if _on_gpu() else "cpu"))
        kind = dtype or ("float32" if place == "cpu" else "auto")
        found = _read(name_or_path, kind, _entry(place), revision, STREAMS)
    if found is None:
        model = load(
            name_or_path,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **engine,
        )
        found = Outline(model.info, model.engine.text)
    return found


def _in_vllm(name: str, dtype: Any, revision: str | None, engine: Mapping[str, Any]) -> Outline:
    """Of a checkpoint that workers run in vLLM: an engine here would take its memory twice."""
    from steerkit.vllm.layers import STREAMS as OUTSIDE

    found = None if dtype in (None, "auto") else _read(name, dtype, "cpu", revision, OUTSIDE)
    if found is None:
        raise ModelError(
            f"'{VLLM}{name}' is run by workers in other processes, and this one has to know it "
            f"without running it: say in which type by model_options={{'dtype': ...}}, one of "
            f"{', '.join(EXACT)}, or capture with workers=1"
        )
    most = min(int(engine.get("max_model_len") or found.info.n_ctx), found.info.n_ctx)
    found.text.n_ctx = most
    return Outline(replace(found.info, n_ctx=most), found.text)


def _read(
    name_or_path: str | Path,
    dtype: Any,
    device: str,
    revision: str | None,
    streams: tuple[Stream, ...],
) -> Outline | None:
    """From the checkpoint's files; None where they do not tell, or cannot be read."""
    from transformers import AutoConfig, AutoTokenizer

    source, name = _source(name_or_path)
    given = {"revision": revision} if revision else {}
    try:
        config = AutoConfig.from_pretrained(source, **given)
        inner = config.get_text_config()
        kind = str(config.dtype if dtype == "auto" else dtype).removeprefix("torch.")
        known = config is inner and (streams != STREAMS or inner.model_type in SEQUENTIAL)
        if not known or getattr(config, "quantization_config", None) or kind not in EXACT:
            return None
        tokenizer = AutoTokenizer.from_pretrained(source, **given)
        info = checkpoint_info(
            source, streams=streams, dtype=kind, device=device, revision=revision
        )
    except (*FAILURES, ModelError):
        return None  # loading says what is wrong with it, if anything is
    text = Text(tokenizer, n_ctx=info.n_ctx, config=inner)
    return Outline(replace(info, name=name, chat=text.chat), text)


def _on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _entry(place: str) -> str:
    """Where token ids go, as a loaded model says it."""
    if place == "auto":
        place = "cuda" if _on_gpu() else "cpu"
    return "cuda:0" if place == "cuda" else place
