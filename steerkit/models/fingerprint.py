"""Which weights are these? A hash that is quick to take and hard to share by accident."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

SAMPLES = 256
"""Values read of each parameter, evenly spaced."""

ESSENTIALS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
    "layer_norm_eps",
    "hidden_act",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
)


def fingerprint(
    parameters: Iterable[tuple[str, Tensor]],
    config: Mapping[str, Any],
    *,
    processing: str = "raw",
) -> str:
    """sha256 over what defines the architecture, a fixed sample of every parameter, processing.

    Values are rounded to bfloat16 first, so that a bfloat16 or float16 checkpoint has the
    same fingerprint in the dtypes that hold it. Fine-tuning moves some sampled value of
    some parameter across a rounding boundary; a change too small for that is not seen.
    """
    essentials = {key: config[key] for key in ESSENTIALS if key in config}
    digest = hashlib.sha256(json.dumps(essentials, sort_keys=True, default=str).encode())
    digest.update(processing.encode())
    for name, parameter in sorted(parameters, key=lambda item: item[0]):
        # A bias of zeros is no bias: wrappers add them.
        if name.endswith("bias") and not bool(parameter.any()):
            continue
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if not parameter.numel():
            continue
        flat = parameter.detach().reshape(-1)
        index = torch.linspace(
            0, flat.numel() - 1, min(SAMPLES, flat.numel()), dtype=torch.float64
        ).long()
        sample = flat[index.to(flat.device)].to(torch.bfloat16)
        digest.update(sample.cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
