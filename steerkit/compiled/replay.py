"""Recorded steps: CUDA graphs behind an interface of one verb, so that it can be tested off a GPU.

A recorded step runs again and again on the memory that it was recorded with: whatever it
reads and writes has to stay where it is.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from steerkit.compiled.steps import Step


class Recorder(Protocol):
    """Turns a step into one that is replayed."""

    def record(self, step: Step, held: Sequence[Tensor]) -> Step:
        """Run the step once, and give what repeats it; the logits lie at one place for good.

        Args:
            step: what is recorded. It may run several times before.
            held: everything it reads and writes that others edit in place.
        """
        ...


class CudaGraphs:
    """Records steps as CUDA graphs, all in one memory pool.

    Edits (`copy_` into tables and requests) and replays go to the current stream, in order.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Step, held: Sequence[Tensor]) -> Step:
        """See `Recorder`."""
        # Compilation and lazy handles first, on a stream of their own, as captures need it.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
