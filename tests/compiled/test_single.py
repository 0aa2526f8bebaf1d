"""One row: linear layers as matrix-vector products, and graphs called without a look-up."""

from typing import Any

import pytest
import torch
from torch import nn

import steerkit as sk
from steerkit.compiled import Capacity
from steerkit.compiled.single import vectors_for_single_rows
from steerkit.compiled.steps import Compiler
from steerkit.errors import ModelError

ROOM = Capacity(slots=2, terms=1, rows=1, length=24, chunk=8)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 7), (7,), (1, 3, 7), (2, 1, 7), (0, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_linear_layers_give_what_they_gave(
    bias: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer = nn.Linear(7, 5, bias=bias, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    wanted = layer(x)
    vectors_for_single_rows(layer)
    found = layer(x)
    assert found.shape == wanted.shape and found.dtype == dtype
    torch.testing.assert_close(found, wanted)


def test_only_single_rows_of_plain_layers_are_products_with_a_vector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Other(nn.Linear):
        pass

    own = nn.Linear(4, 4)
    own.forward = lambda x: x  # type: ignore[method-assign]
    layers = nn.ModuleList([nn.Linear(4, 4), Other(4, 4), own])
    vectors_for_single_rows(layers)
    seen: list[Any] = []
    product = torch.mv
    monkeypatch.setattr(torch, "mv", lambda *given: seen.append(given) or product(*given))
    layers[0](torch.ones(2, 4))
    layers[1](torch.ones(1, 4))
    assert torch.equal(layers[2](torch.ones(1, 4)), torch.ones(1, 4))
    assert not seen
    layers[0](torch.ones(1, 4))
    assert len(seen) == 1


@pytest.mark.parametrize("slot", [0, 1])
def test_one_row_decodes_what_the_eager_path_gives(
    slot: int, llama: Any, direction: Any, batch_of: Any, cached: Any, relative: Any
) -> None:
    add = sk.Add(direction(llama, 0), 2.0)
    view = llama.compile(ROOM, backend="eager").with_(add)
    (found,) = cached(view, (0,), [slot])
    wanted = llama.with_(add).run(batch_of((0,)), slots=[slot], logits="answer").logits
    assert relative(found, wanted[0]) < 1e-5


def test_a_graph_is_called_with_what_it_was_given_first() -> None:
    weight, state = torch.ones(3), torch.zeros(3)

    def step() -> torch.Tensor:
        state.add_(1)
        return state * weight

    run = Compiler("eager", "test")(step)
    found = [run().clone() for _ in range(3)]
    assert [int(x[0]) for x in found] == [1, 2, 3]
    # In place: what a graph reads and writes is looked at when it runs.
    weight.fill_(10)
    state.fill_(4)
    assert run().tolist() == [50, 50, 50]
    assert int(state[0]) == 5


def test_weights_of_another_size_are_refused(network_of: Any, batch_of: Any) -> None:
    net = network_of("llama")
    compiled = sk.wrap(net).compile(ROOM, backend="eager")
    norm = net.model.norm.weight
    norm.data = norm.data[: norm.numel() // 2].clone()
    with pytest.raises(ModelError, match="other parameters"):
        compiled.run(batch_of((0,), answers=False))
