"""A key-value cache at fixed addresses, and the models that cannot have one."""

from typing import Any

import torch
from torch import Tensor

from steerkit.errors import ModelError


def static_cache(config: Any, length: int, column: Tensor, name: str) -> Any:
    """A Hugging Face static cache of `length` columns, every layer of full length.

    Sliding layers keep all columns too and are masked to their window: the library's own
    sliding cache counts steps in Python, which would make a graph for every count.

    Args:
        config: of the network.
        length: columns.
        column: the next column to be written, a tensor without axes; all layers share it.
        name: of the model, for errors.

    Raises:
        ModelError: layers whose state is no cache of keys and values.
    """
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

    class Layer(StaticLayer):
        """Keys and values of one layer."""

        def __init__(self, sliding: bool) -> None:
            super().__init__(max_cache_len=length)
            self.is_sliding = sliding
            self.cumulative_length = column

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            # The step moves on to the next columns itself, once for all layers.
            where = torch.arange(key_states.shape[-2], device=column.device) + column
            self.keys.index_copy_(2, where, key_states)
            self.values.index_copy_(2, where, value_states)
            return self.keys, self.values

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            rows, heads = key_states.shape[:2]
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys = key_states.new_zeros(rows, heads, length, key_states.shape[-1])
            self.values = value_states.new_zeros(rows, heads, length, value_states.shape[-1])
            self.is_initialized = True

    advice = "so its cache cannot be static and it cannot be compiled; use the eager path"
    try:
        cache = StaticCache(config=config, max_cache_len=length)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{name} has layers of a kind without a static form, {advice}") from error
    for i, layer in enumerate(cache.layers):
        if type(layer) not in (StaticLayer, StaticSlidingWindowLayer):
            raise ModelError(f"layer {i} of {name} keeps a {type(layer).__name__}, {advice}")
    cache.layers = [Layer(bool(layer.is_sliding)) for layer in cache.layers]
    return cache
