"""One step of a network over a static cache, compiled whole, and how often that was done."""

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch._inductor.config
from torch import Tensor, nn

from steerkit.compiled.programs import Programs
from steerkit.compiled.requests import Requests
from steerkit.errors import ModelError

Step = Callable[[], Tensor]
"""Runs the columns that the requests hold; gives logits `[row kept d_vocab]`."""


_SETTINGS = {
    # Inputs are the same tensors at every step; their sizes are looked at before each batch.
    "size_asserts": False,
    # On a CPU, less work than this a thread takes less time than its threads to meet again.
    "cpp.min_chunk_size": 4096,
}


class Compiler:
    """Makes full graphs with one backend and counts them: a step has one, or a test fails."""

    def __init__(self, backend: str | Callable[..., Any], name: str) -> None:
        from torch._dynamo.backends.registry import lookup_backend

        self.graphs = 0
        self._name = name
        self._made = lookup_backend(backend)

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
        called: list[_Called] = []

        def backend(graph: Any, inputs: Any) -> Any:
            self.graphs += 1
            made = self._backend(graph, inputs)

            def noting(*args: Any) -> Any:
                out = made(*args)
                called.append(_Called(made, args, tuple(out)))
                return out

            return noting

        compiled = torch.compile(
            own,
            fullgraph=True,
            dynamic=False,
            backend=backend,
            options={"guard_filter_fn": _unguarded},
        )
        direct: _Called | None = None

        def run() -> Tensor:
            nonlocal direct
            if direct is not None:
                (out,) = direct.graph(*direct.args)
                return out
            try:
                out = compiled()
            except torch._dynamo.exc.TorchDynamoException as error:
                first = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise ModelError(
                    f"{self._name} cannot be compiled into one graph ({first}); use the eager path"
                ) from error
            # A step has no arguments, and what its graph is given never changes: from now on
            # the graph is called with that. Dynamo would look it all up again, every step.
            if len(called) == 1 and len(called[0].out) == 1 and called[0].out[0] is out:
                direct = called[0]._replace(out=())
            called.clear()
            return out

        return run

    def _backend(self, graph: Any, inputs: Any) -> Any:
        with torch._inductor.config.patch(_SETTINGS):
            return self._made(graph, inputs)


class _Called(NamedTuple):
    """One call of a graph."""

    graph: Callable[..., Any]
    args: tuple[Any, ...]
    out: tuple[Any, ...]


def _unguarded(guards: Sequence[Any]) -> list[bool]:
    """What may cause a graph to be made anew: nothing.

    The modules, the cache and the buffers belong to the step and do not change. Guards on the
    rest are about the world: with them, a model of another class that somebody makes elsewhere
    changes a registry of the transformers library, and every graph is made again. Whether the
    network still has the same weights is looked at before each batch.
    """
    return [False] * len(guards)


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
