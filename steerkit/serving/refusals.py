"""What cannot be batched continuously with hooks, said before anything runs."""

from collections.abc import Sequence
from typing import Any

from steerkit.errors import InterventionError, ModelError
from steerkit.models.huggingface import HuggingFaceEngine


def check_engine(engine: Any, lengths: Sequence[int]) -> Any:
    """The network, if it can be served.

    Raises:
        ModelError: not a Hugging Face network, one without continuous batching, one that
            others are serving, one on several devices, or long-rope texts of both ranges.
    """
    name = engine.info.name
    if not isinstance(engine, HuggingFaceEngine):
        raise ModelError(
            f"{name} is run by {type(engine).__name__}, and only Hugging Face models have "
            "continuous batching; use generate"
        )
    network, why = engine.network, ""
    devices = {str(part.device) for part in network.parameters()}
    if not hasattr(network, "init_continuous_batching"):
        why = f"is a {type(network).__name__}, which has no continuous batching"
    elif getattr(network, "_cached_continuous_batching_manager", None) is not None:
        why = (
            "keeps a manager of continuous batching alive, with a cache of its own (call "
            "destroy_cached_continuous_batching_manager() on the network)"
        )
    elif len(devices) > 1 or getattr(network, "_device_mesh", None) is not None:
        why = f"lies on several devices ({', '.join(sorted(devices))})"
    elif engine.text.boundary is not None and max(lengths) > engine.text.boundary:
        why = (
            f"changes its positions at {engine.text.boundary} tokens, so that longer texts "
            f"cannot share a pass with shorter ones (got one of {max(lengths)}, the answer "
            "included)"
        )
    if why:
        raise ModelError(f"{name} {why}, so it cannot be batched continuously; use generate")
    return network


def check_config(config: Any, network: Any) -> None:
    """Refuse configurations whose passes would not run our hooks.

    Raises:
        InterventionError: CUDA graphs, compilation, or passes that overlap.
    """
    asked = {
        "use_cuda_graph": any(config.cuda_graph_booleans),
        "use_async_batching": config.use_async_batching,
        "varlen_compile_config": config.varlen_compile_config is not None,
        "decode_compile_config": config.decode_compile_config is not None,
        "default_compile_level": config.default_compile_level > 0,
    }
    refused = [name for name, on in asked.items() if on]
    if getattr(network.config.get_text_config(), "compile_config", None) is not None:
        refused.append("the model's own compile_config")
    if refused:
        raise InterventionError(
            f"{', '.join(refused)}: graphs, compiled passes and passes in flight would run past "
            "the hooks that steer; leave them off, so that every pass runs eagerly"
        )
