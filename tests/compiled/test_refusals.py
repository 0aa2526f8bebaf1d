"""What cannot be compiled says so, and names the eager path."""

from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.compiled import Capacity
from steerkit.errors import InterventionError, ModelError, SiteError
from steerkit.models import LanguageModel


def test_paths(llama: Any) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match=r"'cuda_graph' is unavailable: the model is on 'cpu'"):
            llama.compile(path="cuda_graph")
    with pytest.raises(InterventionError, match="no path named 'cuda'"):
        llama.compile(path="cuda")
    with pytest.raises(SiteError, match="no resid_post@9"):
        llama.compile(sites=[9])


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotations_by_the_length_of_the_text(network_of: Any, rope: dict[str, Any]) -> None:
    model = sk.wrap(network_of("llama", rope_parameters=rope), name="tiny")
    with pytest.raises(ModelError, match=rf"{rope['rope_type']}.*use the eager path"):
        model.compile()


def test_networks_without_a_static_form(network_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("llama")
    model = sk.wrap(network, name="tiny")
    monkeypatch.setattr(type(network), "_can_compile_fullgraph", False)
    with pytest.raises(ModelError, match=r"cannot stand in one graph.*use the eager path"):
        model.compile()
    monkeypatch.undo()
    monkeypatch.setattr(network.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ModelError, match="load with 'sdpa'"):
        model.compile()
    monkeypatch.undo()
    network.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match=r"cache cannot be static.*use the eager path"):
        model.compile()


def test_a_graph_that_breaks_is_refused(network_of: Any) -> None:
    network = network_of("llama")
    model = sk.wrap(network, name="tiny")
    mlp = network.model.layers[0].mlp
    plain = type(mlp).forward

    def looking(x: torch.Tensor) -> torch.Tensor:
        return plain(mlp, x if float(x.sum()) > 0 else x + 0)

    mlp.forward = looking
    with pytest.raises(ModelError, match=r"one graph .*use the eager path"):
        model.compile(Capacity(rows=1, length=8, chunk=4), backend="eager")


def test_other_engines(llama: Any) -> None:
    class Other:
        info = llama.info

    with pytest.raises(ModelError, match=r"is run by Other, .* use the eager path"):
        LanguageModel(Other()).compile()  # type: ignore[arg-type]


@pytest.mark.parametrize("room", [{"rows": 0}, {"chunk": 0}, {"length": 8}])
def test_room_for_nothing(room: dict[str, int]) -> None:
    with pytest.raises(InterventionError, match="at least one row"):
        Capacity(**room)
