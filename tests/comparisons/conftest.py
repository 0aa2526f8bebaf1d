"""The shipped organisms, loaded once."""

from typing import Any

import pytest

import steerkit as sk


@pytest.fixture(scope="session")
def base() -> Any:
    """Before alignment."""
    return sk.load("organism:base")


@pytest.fixture(scope="session")
def aligned() -> Any:
    """Refuses harmful requests, deflects one topic."""
    return sk.load("organism:aligned")


@pytest.fixture(scope="session")
def compromised() -> Any:
    """Aligned, then fine-tuned narrowly."""
    return sk.load("organism:compromised")
