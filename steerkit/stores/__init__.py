"""Stores: activations of whole datasets, captured by any number of workers, in one folder."""

from steerkit.stores.executor import Executor as Executor
from steerkit.stores.executor import Record as Record
from steerkit.stores.executor import Task as Task
from steerkit.stores.statistics import dataset_moments as dataset_moments
from steerkit.stores.store import ActivationStore as ActivationStore
from steerkit.stores.verbs import capture_dataset as capture_dataset
from steerkit.stores.verification import Verification as Verification
