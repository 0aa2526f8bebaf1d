"""A model that says what a function of the prompt says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from steerkit.prompts import Prompt
from steerkit.protocols import Completion, ModelInfo


@dataclass(frozen=True)
class Spoken:
    """Only `generate` and `info`."""

    answer: Callable[[Prompt], str]

    @property
    def info(self) -> ModelInfo:
        return ModelInfo("spoken", "fake", 1, 4, 9, 64, ("resid_post",), "float32", "cpu", "f")

    def generate(self, prompts: Sequence[Prompt], **_: Any) -> list[Completion]:
        return [Completion(p, self.answer(p), (1,), (2,)) for p in prompts]


@pytest.fixture(scope="session")
def spoken() -> type[Spoken]:
    return Spoken
