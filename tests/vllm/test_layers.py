"""The operation between layers: compiled whole, called by name, and idle without a step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerkit.errors import ModelError
from steerkit.site import Site
from steerkit.vllm.layers import attach, boundary
from steerkit.vllm.operation import stepping


class Layer(nn.Module):
    """A layer that passes on (hidden, residual), as most of vLLM's do."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(size, size)

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        stream = hidden_states if residual is None else hidden_states + residual
        return self.mlp(stream).tanh(), stream


class Whole(nn.Module):
    """A layer that passes on its stream."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(size, size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.mlp(hidden_states).tanh()


class Model(nn.Module):
    """Layers of one kind in a row."""

    def __init__(self, kind: Any, n: int = 3, size: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(kind(size) for _ in range(n))
        self.pair = kind is Layer

    def forward(self, x: Tensor) -> Tensor:
        residual = None
        for layer in self.layers:
            if self.pair:
                x, residual = layer(x, x, residual)
            else:
                x = layer(x)
        return x if residual is None else x + residual


class Adding:
    """A step that adds its own number at every boundary, and keeps the streams it saw."""

    def __init__(self, amount: float) -> None:
        self.amount, self.seen = amount, {}

    def at(self, hidden: Tensor, residual: Tensor | None, place: int) -> None:
        self.seen[place] = (hidden if residual is None else hidden + residual).clone()
        hidden += self.amount * (place + 1)


@pytest.mark.parametrize("kind", [Layer, Whole])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_boundary_is_reached_once_also_in_a_graph(kind: Any, compiled: bool) -> None:
    model, twin = Model(kind), Model(kind)
    attach(model, 3)
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(run(x.clone()), twin(x))
        for amount in (0.1, 0.2):
            step = Adding(amount)
            with stepping(step):
                out = run(x.clone())
            stream = x.clone()
            for number, layer in enumerate(twin.layers):
                assert torch.allclose(step.seen[number], stream, atol=1e-6)
                stream = stream + amount * (number + 1)
                out_of = layer(stream, stream, None) if kind is Layer else layer(stream)
                stream = sum(out_of) if isinstance(out_of, tuple) else out_of
            assert torch.allclose(out, stream + amount * 4, atol=1e-6)
        assert torch.equal(run(x.clone()), twin(x))


def test_the_output_of_a_layer_and_the_input_of_the_next_are_one_place() -> None:
    assert boundary(Site(1)) == boundary(Site(2, "resid_pre")) == 2
    assert boundary(Site(0, "resid_pre")) == 0


def test_layers_of_another_make_are_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = nn.Module()
    model.layers = nn.ModuleList(Odd() for _ in range(2))
    with pytest.raises(ModelError, match="takes x and no hidden_states"):
        attach(model, 2)
