"""Recorded steps: everything a graph has written down stays where it is."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import steerkit as sk
from steerkit.compiled.capacity import Capacity
from steerkit.compiled.engine import CompiledEngine
from steerkit.compiled.model import CompiledModel
from steerkit.compiled.steps import Step
from steerkit.interventions import When
from steerkit.site import Site


class Addresses:
    """Records as a CUDA graph does, and replays only on the same addresses."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, step: Step, held: Sequence[Tensor]) -> Step:
        self.recorded += 1
        for _ in range(2):
            step()
        logits = step().clone()
        known = [(part.data_ptr(), part.shape, part.dtype) for part in held]

        def replay() -> Tensor:
            assert [(part.data_ptr(), part.shape, part.dtype) for part in held] == known
            self.replayed += 1
            # A graph writes where it wrote when it was captured.
            logits.copy_(step())
            return logits

        return replay


@pytest.fixture(scope="module")
def recorded(llama: Any) -> CompiledModel:
    capacity = Capacity(slots=4, terms=2, rows=3, length=32, chunk=8)
    engine = CompiledEngine(
        llama.engine,
        capacity,
        [Site(0), Site(1)],
        path="cuda_graph",
        backend="eager",
        recorder=Addresses(),
    )
    return CompiledModel(engine)


def test_replays_on_constant_addresses_over_steps_and_edits(
    recorded: Any, llama: Any, batch: Any, batch_of: Any, relative: Any, direction: Any
) -> None:
    d = direction(llama)
    gated = sk.Ablate(d).when(When(direction(llama, 0, seed=5), above=0.0))
    view = recorded.with_rows([sk.Add(d, 2.0)], [gated])
    recorder = recorded.engine._recorder
    for slots in ([1, 2, 1], [0, 1, 2], [0, 0, 0]):
        wanted = view.eager.run(batch, slots=slots).logits
        found = view.run(batch, slots=slots).logits
        assert view.receipt.path == "cuda_graph"
        assert relative(found[batch.mask], wanted[batch.mask]) < 1e-5
    made, ran = recorder.recorded, recorder.replayed
    with view.decoding(batch_of(answers=False), slots=[1, 2, 0], room=12) as steps:
        for i in range(12):
            if i % 3 == 1:
                view = view.edited(sk.Add(direction(llama, seed=i), 1.0))
            if i % 3 == 2:
                steps.move([0, 0, 0] if i % 2 else [2, 1, 1])
            view.set_strength(i / 5, slot=2)
            steps.step([i, i + 1, i + 2])
    assert recorder.recorded == made, "nothing is recorded anew"
    assert recorder.replayed == ran + 2 + 12
    answers = [
        v.engine.complete(
            batch_of(answers=False), v.table, [1, 2, 0], max_new_tokens=8, temperature=0.0, seed=0
        )
        for v in (view.eager, view.edited(sk.Add(direction(llama, seed=10), 1.0)))
    ]
    assert answers[0] == answers[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_give_what_the_eager_path_gives(
    network_of: Any, batch_of: Any, relative: Any, direction: Any
) -> None:
    model = sk.wrap(network_of("llama").cuda(), name="tiny")
    compiled = model.compile(Capacity(rows=3, length=32, chunk=8), path="cuda_graph")
    batch = batch_of()
    for seed in range(3):
        given = [sk.Add(direction(model, seed=seed), 2.0), sk.Ablate(direction(model, 0))]
        view = compiled.with_(*given)
        wanted, found = model.with_(*given).run(batch).logits, view.run(batch).logits
        real = batch.mask.to(found.device)
        assert view.receipt.path == "cuda_graph"
        assert relative(found[real], wanted[real]) < 1e-4
    assert view.receipt.graphs == compiled.receipt.graphs
