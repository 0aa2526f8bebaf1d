"""The aligned organism, requests that it never saw, and a target made of them."""

from typing import Any

import pytest

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.datasets.targets import AttackTarget
from steerkit.direction import Direction
from steerkit.prompts import Contrast


@pytest.fixture(scope="session")
def aligned() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="session")
def asked() -> Contrast:
    """Requests that the organism never saw."""
    return refusal("held_out", n=80)


@pytest.fixture(scope="session")
def target(asked: Contrast) -> AttackTarget:
    """Harmful requests, each with the answer that a model without refusal gives."""
    return AttackTarget.of("harmfulness", asked.positive)


@pytest.fixture(scope="session")
def refusal_direction(aligned: Any) -> Direction:
    """The mean difference of harmful and harmless requests at layer 1."""
    acts = sk.capture(aligned, refusal("train", n=60), layers=1, progress=False)
    return sk.extract(acts, "mean_difference", n_permutations=1, n_random=1)[0]
