"""Stores: activations of whole datasets, captured by any number of workers, in one folder.

Names are imported when first used: what a worker process needs to speak with its driver
imports no torch, and the rest comes with the worker itself.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerkit.stores.executor import Executor as Executor
    from steerkit.stores.executor import Record as Record
    from steerkit.stores.executor import Task as Task
    from steerkit.stores.statistics import dataset_moments as dataset_moments
    from steerkit.stores.store import ActivationStore as ActivationStore
    from steerkit.stores.verbs import capture_dataset as capture_dataset
    from steerkit.stores.verification import Verification as Verification

_HOME = {
    "Executor": "executor",
    "Record": "executor",
    "Task": "executor",
    "dataset_moments": "statistics",
    "ActivationStore": "store",
    "capture_dataset": "verbs",
    "Verification": "verification",
}

__all__ = [*_HOME]  # noqa: PLE0604 (names, spread from the table)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steerkit.stores' has no attribute '{name}'")
    return getattr(importlib.import_module(f"steerkit.stores.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
