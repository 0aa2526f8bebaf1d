"""A Ray cluster as a run finds it: connected, with room enough, and what ended a process there."""

import logging
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import monotonic, sleep
from typing import Any

from steerkit.errors import WorkerError
from steerkit.stores.executors.attempts import RESUME

SETTLE = 10.0
"""Seconds in which Ray must report as free what an earlier job has just left."""

OBJECTS = 100_000_000
"""Bytes of object store of a Ray that is started here: it holds metadata alone."""


@dataclass(frozen=True)
class Needs:
    """What a run asks of a cluster.

    Attributes:
        workers: how many actors.
        cpus: CPUs of each.
        gpus: GPUs of each; `None`: one where the cluster has any.
    """

    workers: int
    cpus: float = 1.0
    gpus: float | None = None

    def on(self, ray: Any) -> "Needs":
        """The same with the GPUs that this cluster makes of `None`."""
        if self.gpus is not None:
            return self
        there = ray.cluster_resources().get("GPU", 0.0)
        return Needs(self.workers, self.cpus, float(there >= 1))


@contextmanager
def connected(address: str | None, needs: Needs) -> Iterator[Any]:
    """Ray, connected; shut down afterwards only if it was connected here.

    Raises:
        WorkerError: no Ray here, or none at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise WorkerError(
            "Ray is not installed here; pip install 'steerkit[ray]', or leave `address` out to "
            "capture on local processes"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address in (None, "local"):
            ray.init(
                address="local",
                num_cpus=ceil(needs.workers * needs.cpus) + 1,
                object_store_memory=OBJECTS,
                include_dashboard=False,
                **quiet,
            )
        else:
            _require_answer(str(address))
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkerError(
            f"no connection to Ray at {address!r} ({_reason(error)}); start one with "
            "`ray start --head`, or give its address as HOST:PORT"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Knock: Ray itself would try for minutes, without a word, where nobody listens."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=SETTLE).close()


def require_room(ray: Any, needs: Needs) -> None:
    """Refuse a run for which the cluster is too small, too busy, or cut into too small machines.

    Raises:
        WorkerError: with what is missing, and the number of workers that would fit.
    """
    until = monotonic() + SETTLE
    for report, which in ((ray.cluster_resources, ""), (ray.available_resources, " free")):
        while refusal := lacking(needs, report(), which):
            if not which or monotonic() > until:
                raise WorkerError(refusal)
            sleep(0.25)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = sum(places(needs, machine) for machine in machines)
    if fit < needs.workers:
        asked = f"{needs.cpus:g} CPUs" + (f" and {needs.gpus:g} GPUs" if needs.gpus else "")
        raise WorkerError(
            f"{fit} of {needs.workers} Ray workers find a place: each needs {asked} on one "
            f"machine, and the cluster's {len(machines)} have {_shown(machines)}. Ask for fewer "
            "or smaller workers, or add machines"
        )


def places(needs: Needs, machine: dict[str, float]) -> int:
    """How many workers one machine holds.

    >>> places(Needs(9, cpus=2, gpus=4), {"CPU": 64.0, "GPU": 8.0})
    2
    """
    each = {"CPU": needs.cpus, "GPU": needs.gpus or 0.0}
    return int(min(machine.get(name, 0.0) // each[name] for name in each if each[name]))


def require_some_room(ray: Any, needs: Needs) -> None:
    """Go on with what is left of a cluster, but do not wait for one that is gone.

    Raises:
        WorkerError: machines have left, and not one worker fits on the rest.
    """
    has = ray.cluster_resources()
    if has.get("CPU", 0.0) < needs.cpus or has.get("GPU", 0.0) < (needs.gpus or 0.0):
        raise WorkerError(f"the Ray cluster has no room left for a single worker; {RESUME}")


def lacking(needs: Needs, has: dict[str, float], which: str = "") -> str:
    """What a cluster lacks, in words; empty where it lacks nothing.

    >>> lacking(Needs(2), {"CPU": 3.0})
    ''
    >>> lacking(Needs(2), {"CPU": 2.0})[:59]
    '2 Ray workers need 3 CPUs, and the cluster has 2. One CPU i'
    """
    each = {"CPU": needs.cpus, "GPU": needs.gpus or 0.0}
    spare = {"CPU": 1.0, "GPU": 0.0}
    asked = {name: needs.workers * each[name] + spare[name] for name in each if each[name]}
    short = [name for name in asked if has.get(name, 0.0) < asked[name]]
    if not short:
        return ""
    fit = int(min((has.get(name, 0.0) - spare[name]) // each[name] for name in asked))
    lack = " and ".join(f"{asked[name]:g} {name}s{which}" for name in short)
    there = " and ".join(f"{has.get(name, 0.0):g}" for name in short)
    advice = f"Ask for workers={fit}, or start" if fit > 0 else "Start"
    cpus = "" if "GPU" not in short else ", or gpus=0 for workers that run on CPUs"
    return (
        f"{needs.workers} Ray workers need {lack}, and the cluster has {there}. One CPU is "
        "kept free for Ray's own tasks: where workers hold every CPU, they wait for ever without "
        f"a word. {advice} Ray with more --num-cpus or --num-gpus, or add machines{cpus}"
    )


def how_it_died(error: Exception) -> str:
    """How an actor died, in Ray's words, without its identifiers.

    >>> how_it_died(RuntimeError("... Worker exit detail: End of file. Some common causes ..."))
    'because of: End of file'
    """
    text = str(error).strip()
    for mark in ("Worker exit detail:", "The actor is dead because"):
        if mark in text:
            return "because of: " + text.split(mark)[1].strip().splitlines()[0].split(". Some")[0]
    return f"because of: {(text.splitlines() or [''])[-1].strip()}"


def _shown(machines: Sequence[dict[str, float]]) -> str:
    held = Counter(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines)
    return "; ".join(f"{what} ({n} times)" if n > 1 else what for what, n in held.items())


def _reason(error: BaseException) -> str:
    """The last line of the first cause, where Ray puts what went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
