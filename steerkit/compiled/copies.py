"""Structural copies of a network: modules of its own, the parameters and buffers of the original.

What is attached to a copy's modules never touches the user's network, and no weight is copied.
"""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from steerkit.errors import HookError, ModelError
from steerkit.models.hooks import Block

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OWN = ("steerkit.", "transformers.utils.output_capturing")
"""Hooks of these modules do nothing unless their owner runs the original itself."""


def structural_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares every parameter and buffer, without any hooks.

    Raises:
        HookError: hooks of somebody else's on the original, which the copy would not run.
    """
    check_hooks(network)
    memo: dict[int, Any] = {id(part): part for part in tensors_of(network)}
    made = copy.deepcopy(network, memo)
    for module in made.modules():
        module.training = False
        for name in _HOOKS:
            getattr(module, name).clear()
    return made


def check_hooks(network: nn.Module) -> None:
    """Refuse hooks that a compiled copy would silently leave out."""
    for name, module in network.named_modules():
        for kind in _HOOKS[:2]:
            hooks = module.__dict__[kind]
            for hook in hooks.values() if hooks else ():
                if not str(getattr(hook, "__module__", "")).startswith(_OWN):
                    raise HookError(
                        f"the module '{name}' of {type(network).__name__} has a hook "
                        f"({getattr(hook, '__qualname__', type(hook).__name__)}), which a compiled "
                        "model does not run; remove the hook, or use the eager path"
                    )
        if hasattr(module, "_hf_hook"):
            raise ModelError(
                f"the module '{name}' of {type(network).__name__} is moved between devices while "
                "it runs (accelerate), so it cannot be compiled; load the model on one device, "
                "or use the eager path"
            )


def tensors_of(network: nn.Module) -> Iterator[Any]:
    """Every parameter and buffer."""
    yield from network.parameters()
    yield from network.buffers()


def copied_blocks(network: nn.Module, made: nn.Module, blocks: tuple[Block, ...]) -> list[Block]:
    """The blocks of a copy that stand where these stand in the original."""
    names = {id(module): name for name, module in network.named_modules()}

    def twin(module: nn.Module | None) -> nn.Module | None:
        return None if module is None else made.get_submodule(names[id(module)])

    return [
        Block(made.get_submodule(names[id(b.module)]), twin(b.attn), twin(b.mlp), b.scale)
        for b in blocks
    ]
