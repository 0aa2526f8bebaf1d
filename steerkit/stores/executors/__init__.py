"""What runs a capture at dataset scale: this process, local processes, or a Ray cluster."""

from steerkit.errors import WorkerError
from steerkit.stores.executor import Executor
from steerkit.stores.executors.in_process import InProcess as InProcess
from steerkit.stores.executors.processes import Processes as Processes
from steerkit.stores.executors.ray_actors import RayActors as RayActors


def choose(
    workers: int = 1,
    address: str | None = None,
    *,
    gpus: float | None = None,
    cpus: float = 1.0,
) -> Executor:
    """The executor for so many workers, here or at an address.

    Args:
        workers: how many tasks run at a time. One without an address: this process.
        address: a Ray cluster's ("auto", "HOST:PORT"), or "local" to start one here.
        gpus: GPUs of each Ray worker; by default one where the cluster has any.
        cpus: CPUs of each Ray worker.

    Raises:
        WorkerError: a number of workers below one, or of GPUs below none.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise WorkerError(f"workers must be a number from 1, not {workers!r}")
    if gpus is not None and gpus < 0:
        raise WorkerError(f"gpus must be at least 0, not {gpus!r}")
    if address is not None:
        return RayActors(workers, address, gpus=gpus, cpus=cpus)
    if gpus is not None:
        raise WorkerError(
            "gpus= is for workers on Ray (address=); workers of this machine divide the GPUs that "
            "CUDA_VISIBLE_DEVICES shows"
        )
    return InProcess() if workers == 1 else Processes(workers)
