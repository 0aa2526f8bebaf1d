"""One step of a network over a static cache, compiled whole, and how often that was done."""

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.compiled.programs import Programs
from steerkit.compiled.requests import Requests
from steerkit.errors import ModelError

Step = Callable[[], Tensor]
"""Runs the columns that the requests hold; gives logits `[row kept d_vocab]`."""


class Compiler:
    """Makes full graphs with one backend and counts them: a step has one, or a test fails."""

    def __init__(self, backend: str | Callable[..., Any], name: str) -> None:
        from torch._dynamo.backends.registry import lookup_backend

        self.graphs = 0
        self._name = name
        made = lookup_backend(backend)

        def counted(graph: Any, inputs: Any) -> Any:
            self.graphs += 1
            return made(graph, inputs)

        self._backend = counted

    def __call__(self, step: Step) -> Step:
        """The step as one graph, made at its first run.

        Raises:
            ModelError: at the first run, where the network cannot stand in one graph.
        """
        # Dynamo keeps graphs by code object. With its own, a step never meets another's.
        assert isinstance(step, FunctionType)
        own = FunctionType(
            step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__
        )
        compiled = torch.compile(
            own,
            fullgraph=True,
            dynamic=False,
            backend=self._backend,
            options={"guard_filter_fn": _tensors_only},
        )

        def run() -> Tensor:
            try:
                return compiled()
            except torch._dynamo.exc.TorchDynamoException as error:
                first = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise ModelError(
                    f"{self._name} cannot be compiled into one graph ({first}); use the eager path"
                ) from error

        return run


def _tensors_only(guards: Sequence[Any]) -> list[bool]:
    """What may cause a graph to be made anew: tensors of other kinds, and nothing else.

    The modules and the cache belong to the step and do not change. Guards on the rest are
    about the world: with them, a model of another class that somebody makes elsewhere changes
    a registry of the transformers library, and every graph is made again. Whether the network
    still has the same weights is looked at before each batch.
    """
    return [guard.guard_type == "TENSOR_MATCH" for guard in guards]


def make_step(
    network: nn.Module,
    cache: Any,
    requests: Requests,
    *,
    tokens: Tensor,
    keep: int,
    deciding: bool,
    accepted: Callable[[Mapping[str, Any]], dict[str, Any]],
    programs: Programs | None,
) -> Step:
    """One pass over the columns `tokens` of all requests, as a function without arguments.

    Args:
        network: a structural copy, with programs attached if `programs` is given.
        cache: its static cache.
        requests: where they stand; moved on by the columns of the pass.
        tokens: `[row pos]`, the buffer of token ids that is read.
        keep: how many of the last columns get logits; 0 for all.
        deciding: whether prompts may end in these columns.
        accepted: those of the inputs that the network takes.
        programs: of a steered step; None for one of the untouched network.
    """
    length = tokens.shape[1]
    inputs = accepted(
        {
            "input_ids": tokens,
            "attention_mask": requests.mask,
            "past_key_values": cache,
            "use_cache": True,
            "return_dict": True,
            **({"logits_to_keep": keep} if keep else {}),
        }
    )
    positions = bool(accepted({"position_ids": None}))

    def step() -> Tensor:
        places = requests.position[:, None] + torch.arange(length, device=tokens.device)
        absolute = places.clamp(min=-1)
        if programs is not None:
            programs.begin(absolute, deciding=deciding)
        given = {"position_ids": absolute.clamp(min=0)} if positions else {}
        logits: Tensor = network(**inputs, **given).logits
        if programs is not None:
            programs.end()
        requests.position.add_(length)
        requests.column.add_(length)
        return logits[:, -keep:] if keep else logits

    return step
