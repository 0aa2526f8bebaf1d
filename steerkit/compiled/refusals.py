"""What cannot be compiled, said before anything is built."""

from typing import Any

from steerkit.compiled.copies import check_hooks
from steerkit.errors import InterventionError, ModelError
from steerkit.models.hooks import refuse_compiled
from steerkit.models.huggingface import HuggingFaceEngine
from steerkit.protocols import ModelInfo
from steerkit.registry import suggest

PATHS = ("compiled", "cuda_graph")
LENGTH_DEPENDENT = ("longrope", "dynamic")
"""Rotations that depend on how long the longest text of a batch is."""


def check_engine(engine: Any, info: ModelInfo) -> HuggingFaceEngine:
    """The engine, if its network can stand in one graph.

    Raises:
        ModelError: a TransformerLens model, a rotation that depends on lengths, weights on
            several devices, an attention or architecture without a static form.
        HookError: hooks on the network.
    """
    if not isinstance(engine, HuggingFaceEngine):
        raise ModelError(
            f"{info.name} is run by {type(engine).__name__}, and only Hugging Face models can be "
            "compiled; load the Hugging Face model, or use the eager path"
        )
    network, why = engine.network, ""
    devices = {str(part.device) for part in network.parameters()}
    kinds = _rope_types(engine.config) & set(LENGTH_DEPENDENT)
    attention = str(getattr(engine.config, "_attn_implementation", ""))
    if kinds:
        why = f"rotates positions by the length of the text ({', '.join(sorted(kinds))})"
    elif len(devices) > 1:
        why = f"lies on several devices ({', '.join(sorted(devices))})"
    elif getattr(network, "_can_compile_fullgraph", True) is False:
        why = "is an architecture whose forward cannot stand in one graph"
    elif "flash" in attention or "paged" in attention:
        why = f"uses the attention '{attention}', which takes no static cache (load with 'sdpa')"
    if why:
        raise ModelError(f"{info.name} {why}, so it cannot be compiled; use the eager path")
    refuse_compiled(network)
    check_hooks(network)
    return engine


def check_path(path: str, device_type: str) -> None:
    """Refuse unknown paths, and CUDA graphs where there is no GPU."""
    if path not in PATHS:
        raise InterventionError(f"no path named '{path}'; {suggest(path, PATHS)}")
    if path == "cuda_graph" and device_type != "cuda":
        raise ModelError(
            f"the path 'cuda_graph' is unavailable: the model is on '{device_type}', and CUDA "
            "graphs need it on a GPU; use path='compiled'"
        )


def _rope_types(config: Any) -> set[str]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return {str(parameters.get("rope_type", "")) for parameters in nested or [rope]}
