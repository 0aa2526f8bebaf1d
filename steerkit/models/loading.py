"""`load` and `wrap`: names, folders and objects in, a model behind the protocol out."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from steerkit import organisms
from steerkit.errors import ModelError
from steerkit.models.view import LanguageModel
from steerkit.registry import suggest

ORGANISM = "organism:"
VLLM = "vllm:"
FAILURES = (OSError, ValueError, KeyError, ImportError)
"""What the library raises where files are missing or are not what they should be."""


def load(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    device: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **engine: Any,
) -> LanguageModel:
    """Load a model and its tokenizer by hub name, folder, or `organism:NAME`.

    With `vllm:` before any of these it runs inside vLLM, if that is installed: the same
    protocol, `resid_pre` and `resid_post` as streams, answers by continuous batching.

    Args:
        name_or_path: what to load.
        dtype: a torch dtype or its name. Default: float32 on a CPU, else the checkpoint's own.
        device: where to. Default: a GPU if there is one. `auto` spreads it over all of them.
        revision: of a hub model.
        trust_remote_code: run model code that comes with the checkpoint. Only for sources
            that you trust.
        engine: of `vllm:` only, options of `vllm.LLM` (`enforce_eager`, `max_model_len`,
            `gpu_memory_utilization`, `tensor_parallel_size`, ...).

    Raises:
        ModelError: no such model, an incomplete folder, or a model that cannot be wrapped.
    """
    if str(name_or_path).startswith(VLLM):
        return _in_vllm(
            str(name_or_path).removeprefix(VLLM),
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **engine,
        )
    if engine:
        raise ModelError(
            f"{', '.join(sorted(engine))}: an option of vLLM; load '{VLLM}{name_or_path}' with it"
        )
    import torch
    from transformers import AutoModelForCausalLM

    source, name = _source(name_or_path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            known = ("float32", "float16", "bfloat16", "float64", "auto")
            raise ModelError(f"no dtype named '{dtype}'; {suggest(dtype, known)}")
        dtype = getattr(torch, dtype)
    if dtype is None:
        dtype = torch.float32 if str(device) == "cpu" else "auto"
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    options = {key: value for key, value in options.items() if value}
    placement = {"device_map": "auto"} if device == "auto" else {}
    with _quietly() if Path(source).is_dir() else nullcontext():
        try:
            network = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, **placement, **options
            )
        except FAILURES as error:
            shipped = [f"{ORGANISM}{organism}" for organism in organisms.names()]
            raise ModelError(
                f"cannot load '{name}': {_first_line(error)}. It is neither a folder here nor a "
                f"model that the hub gives us; shipped models: {suggest(name, shipped)}"
                if source == name
                else f"cannot load '{name}': {_first_line(error)}"
            ) from error
        tokenizer = _tokenizer(source, name, options)
    if not placement:
        network = network.to(device)
    return wrap(network.eval(), tokenizer, name=name)


def wrap(model: Any, tokenizer: Any = None, *, name: str | None = None) -> LanguageModel:
    """Put a Hugging Face causal LM or a TransformerLens model behind the protocol.

    The object is used as it is and left as it is. Without a tokenizer the result runs
    batches of token ids but reads no text.

    Raises:
        ModelError: an object of another kind, or a model whose streams cannot be told apart.
    """
    if isinstance(model, LanguageModel):
        return model
    # Hooks added after compilation may be ignored: run what was compiled, as it was before.
    model = getattr(model, "_orig_mod", model)
    library = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    if "transformer_lens" in library:
        from steerkit.models.lens import engine_of

        return LanguageModel(engine_of(model, tokenizer, name=name))
    if hasattr(model, "config") and hasattr(model, "get_output_embeddings"):
        from steerkit.models.huggingface import HuggingFaceEngine

        return LanguageModel(HuggingFaceEngine(model, tokenizer, name=name))
    raise ModelError(
        f"cannot wrap a {type(model).__name__}; give a Hugging Face causal LM, a "
        "TransformerLens HookedTransformer or TransformerBridge, or use load(name)"
    )


def _in_vllm(
    name_or_path: str, *, revision: str | None, trust_remote_code: bool, **options: Any
) -> LanguageModel:
    """The checkpoint inside vLLM."""
    from transformers import AutoConfig

    from steerkit.vllm.model import load as start

    source, name = _source(name_or_path)
    given = {"revision": revision, "trust_remote_code": trust_remote_code}
    given = {key: value for key, value in given.items() if value}
    tokenizer = _tokenizer(source, name, given)
    try:
        config = AutoConfig.from_pretrained(source, **given).get_text_config()
    except FAILURES as error:
        raise ModelError(f"cannot load '{name}': {_first_line(error)}") from error
    return start(
        source,
        name,
        tokenizer=tokenizer,
        config=config,
        revision=revision,
        trust_remote_code=trust_remote_code,
        **options,
    )


def _tokenizer(source: str, name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except FAILURES as error:
        raise ModelError(
            f"'{name}' has no tokenizer that can be loaded ({_first_line(error)}); load both "
            "yourself and use wrap(model, tokenizer)"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's progress bars, which are for downloads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _source(name_or_path: str | Path) -> tuple[str, str]:
    """Where to load from, and what to call it."""
    name = str(name_or_path)
    if name.startswith(ORGANISM):
        return str(organisms.path(name.removeprefix(ORGANISM))), name
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder), folder.resolve().name
    if folder.is_file():
        raise ModelError(f"{folder} is a file; give the folder that holds config.json")
    looks_local = isinstance(name_or_path, Path) or name[:1] in "./~" or name.count("/") > 1
    if looks_local:
        parent = folder.parent
        there = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        hint = suggest(folder.name, there) if there else f"{parent} does not exist or is empty"
        raise ModelError(f"no model folder at {folder}; {hint}")
    return name, name


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json (it holds {there}); give "
            "a folder written by save_pretrained"
        )
    weights = [
        *folder.glob("*.safetensors"),
        *folder.glob("pytorch_model*.bin"),
    ]
    if not weights:
        raise ModelError(f"{folder} has a config.json but no weights (*.safetensors)")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
