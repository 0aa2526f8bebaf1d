"""A model's description, directions of it, and steering files; nothing here needs vLLM."""

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Read when vLLM is imported: engines in this process, on one thread, with a small cache.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import pytest
import torch

import steerkit as sk
from steerkit.direction import Direction
from steerkit.interventions import InOrder, When, save_steering
from steerkit.protocols import ModelInfo
from steerkit.site import Site, Stream
from steerkit.vllm.registrations import Artefacts

INFO = ModelInfo(
    name="tiny",
    model_type="llama",
    n_layers=3,
    d_model=16,
    d_vocab=50,
    n_ctx=64,
    streams=("resid_pre", "resid_post"),
    dtype="float64",
    device="cpu",
    fingerprint="f" * 64,
)


def random_direction(
    layer: int = 1,
    stream: Stream = "resid_post",
    seed: int = 0,
    info: ModelInfo = INFO,
    scale: float = 2.0,
) -> Direction:
    """A direction whose reach and mid-range matter for streams of norm about one a dimension."""
    unit = torch.randn(info.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(
        unit=unit / unit.norm(),
        scale=scale,
        site=Site(layer, stream),
        method="mean_difference",
        concept="random",
        positive_mean=1.0,
        negative_mean=-0.5,
        model=info,
        pooling="last",
    )


def kinds(
    make: Callable[..., Direction] = random_direction, last: int = 2
) -> dict[str, tuple[Any, ...]]:
    """One steering of each kind that there is, at sites of a model of `last + 1` layers."""
    d = [make(seed=seed) for seed in range(5)]
    every = range(last + 1)
    return {
        "add": (sk.Add(d[0], 1.5),),
        "generated": (sk.Add(d[1], 2.0, positions="generated"),),
        "late": (sk.Add(d[2], -2.0, positions="last_prompt"),),
        "places": (sk.Add(d[0], 2.0, positions=[0, -2]),),
        "ablate": (sk.Ablate(d[1], sites=every),),
        "centred": (sk.Ablate(d[1], reference="negative_mean", positions="prompt"),),
        "clamp": (sk.Clamp(d[2], low=0.0, high=0.5),),
        "rotate": (sk.Rotate((d[0], d[3]), by=0.9),),
        "norm": (sk.AddKeepingNorm(d[3], 1.0),),
        "several": (
            sk.Add(d[0], 1.0),
            sk.Ablate(d[1], sites=["resid_pre@1", "resid_post@1"]),
            sk.Add(d[4], 2.0, sites="resid_pre@0"),
        ),
        "order": (InOrder(sk.Add(d[0], 1.0), sk.Ablate(d[1]), sk.Clamp(d[2], low=0.0, high=0.5)),),
        "gated": (sk.Add(d[2], 2.0).when(When(d[3], above=0.0, on="token")),),
        "latch": (sk.Add(d[2], 2.0, sites=last).when(When(d[4], above=0.0)),),
        "mean": (sk.Add(d[0], 2.0, sites=last).when(When(d[1], above=0.0, on="mean_prompt")),),
    }


@pytest.fixture(scope="session")
def info() -> ModelInfo:
    """A model of three layers that nobody has."""
    return INFO


@pytest.fixture(scope="session")
def direction() -> Callable[..., Direction]:
    """A builder of random directions."""
    return random_direction


@pytest.fixture(scope="session")
def steerings() -> Callable[..., dict[str, tuple[Any, ...]]]:
    """A builder of one steering of each kind."""
    return kinds


@pytest.fixture
def artefacts(tmp_path: Path) -> Artefacts:
    """An empty place for artefacts."""
    return Artefacts(tmp_path / "artefacts")


def registered(artefacts: Artefacts, steerings: Mapping[str, Any], folder: Path) -> None:
    """Register steerings by their names."""
    for name, made in steerings.items():
        artefacts.register(name, save_steering(folder / f"{name}.safetensors", made))


@pytest.fixture(scope="session")
def register() -> Callable[..., None]:
    """Registers steerings by their names."""
    return registered


class Engines:
    """vLLM engines in this process, one at a time: ending one ends what all of them share."""

    def __init__(self) -> None:
        self._wanted: Any = None
        self._made: Any = None

    def get(self, path: Path, **settings: Any) -> Any:
        """The engine with these settings; eager and in float32 unless told otherwise."""
        if (path, settings) != self._wanted:
            from vllm import LLM

            self.stop()
            given = {
                "dtype": "float32",
                "enforce_eager": True,
                "max_model_len": 128,
                "max_num_seqs": 8,
                "disable_log_stats": True,
                **settings,
            }
            self._made = LLM(str(path), **given)
            self._wanted = path, settings
        return self._made

    def stop(self) -> None:
        """End the engine that runs."""
        if self._made is not None:
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            self._made.llm_engine.engine_core.shutdown()
            self._made = self._wanted = None
            gc.collect()
            cleanup_dist_env_and_memory()


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """Starts vLLM engines."""
    made = Engines()
    yield made
    made.stop()
