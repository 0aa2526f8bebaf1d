"""Files of captured tokens: a line of JSON, then records of one size, in the order they ran.

    header, offset = one line of JSON, its length in bytes
    np.fromfile(path, dtype=[("position", "<i8"), ("streams", "<f4", (n_sites, d_model)),
                             ("logits", "<f4", (d_vocab,))], offset=offset)

Streams and logits stand there where they were asked for. A front end makes the file with its
header, and so claims the name; the engine appends records before it samples the pass's tokens,
so that an answer never comes back before what was captured on its way. A request that was
interrupted may run tokens twice: the last record of a position holds.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.errors import InterventionError, OutputError, SteerkitError
from steerkit.files import FORMAT_VERSION
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.vllm.capturing import Capture
from steerkit.vllm.registrations import Artefacts, artefacts

KIND = "capture"
MEAN = -1
"""Position of a record that is a mean."""


@dataclass(frozen=True, eq=False)
class Captured:
    """What one capture of one request kept.

    Attributes:
        name: of the capture.
        sites: in forward order.
        positions: absolute, ascending; -1 for a mean over the prompt.
        values: streams, float32.
        logits: the model's own, where they were asked for.
        steering: names what steered the request; empty where nothing did.
        model: fingerprint of the model.
        before: whether streams were read before the request's own steering at each site.
    """

    name: str
    sites: tuple[Site, ...]
    positions: Int[Tensor, "token"]
    values: Float[Tensor, "token site d_model"]
    logits: Float[Tensor, "token d_vocab"] | None
    steering: str
    model: str
    before: bool

    def at(self, site: Site | str | int) -> Float[Tensor, "token d_model"]:
        """The stream of one site."""
        return self.values[:, self.sites.index(Site.parse(site))]

    def summary(self) -> str:
        """Sizes in words."""
        what = f"{len(self.sites)} sites" + ("" if self.logits is None else " and logits")
        how = f"steered ({self.steering[:12]})" if self.steering else "unsteered"
        return f"capture '{self.name}': {len(self.positions)} tokens of {what}, {how}"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "name": self.name,
            "sites": [str(site) for site in self.sites],
            "positions": self.positions.tolist(),
            "values": self.values.tolist(),
            "logits": None if self.logits is None else self.logits.tolist(),
            "steering": self.steering,
            "model": self.model,
            "before": self.before,
        }

    def __repr__(self) -> str:
        return f"Captured({self.summary()})"


def record_type(n_sites: int, d_model: int, d_vocab: int) -> np.dtype[Any]:
    """One record; sizes of 0 leave a field out."""
    fields: list[Any] = [("position", "<i8")]
    if n_sites:
        fields.append(("streams", "<f4", (n_sites, d_model)))
    if d_vocab:
        fields.append(("logits", "<f4", (d_vocab,)))
    return np.dtype(fields)


def claim(captures: Sequence[Capture], info: ModelInfo, steering: str, place: Artefacts) -> None:
    """Make the files of the captures of a request that is about to run, all or none.

    Raises:
        InterventionError: a name is taken.
        OutputError: one cannot be written.
    """
    for number, capture in enumerate(captures):
        try:
            _claim(capture, info, steering, place)
        except SteerkitError:
            for made in captures[:number]:
                discard(made.name, place)
            raise


def _claim(capture: Capture, info: ModelInfo, steering: str, place: Artefacts) -> None:
    header = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        **capture.to_wire(),
        "d_model": info.d_model,
        "d_vocab": info.d_vocab if capture.logits else 0,
        "model": info.fingerprint,
        "steering": steering,
    }
    path = path_of(capture.name, place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(json.dumps(header, sort_keys=True).encode() + b"\n")
    except FileExistsError:
        raise InterventionError(
            f"a capture named '{capture.name}' is here already; give every request a name of its "
            "own, or read that one first (steerkit.vllm.captured)"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def append(
    name: str,
    place: Artefacts,
    positions: Sequence[int],
    streams: Float[Tensor, "token site d_model"] | None,
    logits: Float[Tensor, "token d_vocab"] | None,
) -> None:
    """Add records to a claimed file; one that was taken away meanwhile stays away."""
    made = np.empty(
        len(positions),
        record_type(
            0 if streams is None else streams.shape[1],
            0 if streams is None else streams.shape[2],
            0 if logits is None else logits.shape[1],
        ),
    )
    made["position"] = positions
    if streams is not None:
        made["streams"] = streams.numpy(force=True)
    if logits is not None:
        made["logits"] = logits.numpy(force=True)
    try:
        file = os.open(path_of(name, place), os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:
        return
    with os.fdopen(file, "wb") as out:
        out.write(made.tobytes())


def captured(name: str, *, keep: bool = False, place: Artefacts | None = None) -> Captured:
    """What the capture of a finished request kept; its file is deleted.

    Args:
        name: as the request gave it.
        keep: leave the file where it is.
        place: the artefacts of the engine, for one of another process; by default this one's,
            which `STEERKIT_VLLM_FOLDER` names.

    Raises:
        OutputError: no such capture, or one that is damaged.
    """
    path = path_of(name, artefacts() if place is None else place)
    try:
        with path.open("rb") as file:
            line = file.readline()
        header = json.loads(line)
        sites = tuple(Site.parse(site) for site in header["sites"])
        kind = record_type(len(sites), header["d_model"], header["d_vocab"])
        records = np.fromfile(path, kind, offset=len(line))
    except FileNotFoundError:
        raise OutputError(
            f"no capture named '{name}' in {path.parent}: was it read before, or does the engine "
            "keep its artefacts elsewhere (STEERKIT_VLLM_FOLDER)?"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{path} is not a readable capture ({error})") from error
    if (path.stat().st_size - len(line)) % kind.itemsize:
        raise OutputError(f"{path} ends within a record: the engine stopped while it wrote")
    last = {int(position): i for i, position in enumerate(records["position"])}
    positions = sorted(last)
    records = records[[last[position] for position in positions]]
    found = Captured(
        name=name,
        sites=sites,
        positions=torch.tensor(positions, dtype=torch.long),
        values=torch.from_numpy(records["streams"].copy())
        if sites
        else torch.empty(len(positions), 0, header["d_model"]),
        logits=torch.from_numpy(records["logits"].copy()) if header["d_vocab"] else None,
        steering=header["steering"],
        model=header["model"],
        before=header["before"],
    )
    if not keep:
        path.unlink(missing_ok=True)
    return found


def inline(captures: Sequence[Capture], place: Artefacts) -> dict[str, Any]:
    """Those captures of a finished request that come back with its answer, as plain values."""
    found: dict[str, Any] = {}
    for capture in captures:
        if capture.inline:
            try:
                found[capture.name] = captured(capture.name, place=place).to_json()
            except OutputError as error:
                # Answers of others are on their way too: this one says what is wrong.
                found[capture.name] = {"error": str(error)}
    return found


def discard(name: str, place: Artefacts) -> None:
    """Delete a capture that nobody will read."""
    path_of(name, place).unlink(missing_ok=True)


def path_of(name: str, place: Artefacts) -> Path:
    """Where a capture lies."""
    return place.folder / "captures" / f"{name}.records"
