"""Files of lm-evaluation-harness `--model steered`."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from steerkit import mapped
from steerkit.errors import DirectionError, OutputError
from steerkit.files import written_whole
from steerkit.formats import hookpoints, torch_file
from steerkit.formats.format import FORMATS, Asked, Draft, Loss, Outgoing, nothing_left
from steerkit.formats.vectors import FileVector, Found, checked, entry

ACTIONS = {"add": "add", "clamp": "set"}
COLUMNS = ("sparse_model", "hookpoint", "feature_index", "steering_coefficient")


class LMEval:
    """A .pt of `{hookpoint: {steering_vector, steering_coefficient, action, bias, head_index}}`.

    `add` adds coefficient x vector to the output of the module of that name in the base model,
    at every token. `clamp` sets the projection of (output - bias) on the unit to the
    coefficient. A .csv names features of sparse autoencoders instead, one a row; those of a
    local folder as sparsify saves it are read.
    """

    summary = "lm-evaluation-harness --model steered: .pt (read, written), .csv (read)"
    folder = False

    def recognises(self, path: Path) -> bool:
        """By what is in it; raises where a .pt cannot be trusted."""
        if path.suffix == ".csv" and path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                return "hookpoint" in file.readline().split(",")
        if path.suffix not in (".pt", ".pth") or not path.is_file():
            return False
        rows = _rows(torch_file.load(path)[0])
        return bool(rows) and all("steering_vector" in row for _, row in rows)

    def read(self, path: Path, asked: Asked) -> Found:
        """Every hookpoint with its vector."""
        if path.suffix == ".csv":
            return Found("lm_eval", tuple(_feature(row, path, asked) for row in _csv(path)))
        held, kept = torch_file.load(path)
        rows = _rows(held)
        if not rows:
            raise OutputError(
                f"{path} holds no hookpoints; expected a dictionary of hookpoint to "
                "steering_vector, steering_coefficient, action, bias and head_index"
            )
        said = []
        if isinstance(held, list):
            said.append("the file is a list; the harness takes a dictionary of hookpoints")
        if any(row.get("action") == "add" and row.get("bias") is not None for _, row in rows):
            said.append("a bias stands beside an 'add', which the harness refuses; it was unused")
        vectors = tuple(_read(name, row, asked, kept.get(name)) for name, row in rows)
        return Found("lm_eval", vectors, warnings=tuple(said))

    def write(self, items: Sequence[Outgoing], path: Path) -> Draft:
        """One entry a module; a .pt."""
        if path.suffix not in (".pt", ".pth"):
            raise OutputError(
                f"the harness tells vectors by the ending .pt, got '{path.name}' (a .csv names "
                "features of sparse autoencoders and holds no vectors)"
            )
        rows: dict[str, dict[str, Any]] = {}
        beside: dict[str, Any] = {}
        kept, conversions, losses = [], [], []
        for i, item in enumerate(items):
            name = hookpoints.of_site(item.site, item.direction.model)
            if name is None:
                why = f"no module of a {item.direction.model.model_type} model puts this stream out"
                losses.append(Loss(str(item.site), why, True))
                continue
            if name in rows:
                raise DirectionError(f"two vectors for '{name}'; the harness takes one a module")
            vector = item.direction.vector
            rows[name] = {
                "steering_vector": torch_file.owned(vector),
                "steering_coefficient": item.strength if item.action == "add" else item.value,
                "action": "add" if item.action == "add" else "clamp",
                "bias": None,
                "head_index": None,
            }
            there = hookpoints.site_of(name, item.direction.model)
            beside[name] = entry(item.direction, vector, there, 1.0)
            kept.append(i)
            conversions.append(f"{item.site} is the output of '{name}'")
        if not rows:
            raise nothing_left(losses, "lm_eval")
        with written_whole(path) as temporary:
            torch_file.save(temporary, rows, beside)
        return Draft((path,), tuple(kept), tuple(conversions), tuple(losses))


FORMATS.register("lm_eval")(LMEval())


def _rows(held: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Hookpoint and entry of each vector; nothing where it is another kind of file."""
    if isinstance(held, Mapping):
        rows = list(held.items())
    elif isinstance(held, list):
        rows = [(row.get("hookpoint"), row) for row in held if isinstance(row, Mapping)]
    else:
        return []
    if not all(isinstance(k, str) and isinstance(row, Mapping) for k, row in rows):
        return []
    return rows


def _read(name: str, row: Mapping[str, Any], asked: Asked, kept: Any) -> FileVector:
    """One entry as its tool would use it."""
    values, bias = row.get("steering_vector"), row.get("bias")
    action, coefficient = row.get("action"), row.get("steering_coefficient", 1.0)
    if not isinstance(values, Tensor):
        raise OutputError(f"'{name}' has no tensor as its steering_vector")
    if action not in ACTIONS:
        raise OutputError(f"'{name}' has the action {action!r}; expected 'add' or 'clamp'")
    if row.get("head_index") is not None:
        raise OutputError(
            f"'{name}' acts on attention head {row['head_index']} alone, which is none of our "
            "streams; it cannot be read"
        )
    if isinstance(coefficient, Tensor) and coefficient.numel() == 1:
        coefficient = float(coefficient)
    if not isinstance(coefficient, int | float) or not math.isfinite(coefficient):
        raise OutputError(f"'{name}' has the coefficient {coefficient!r}; expected a number")
    site = hookpoints.site_of(name, asked.info)
    value = 0.0
    if action == "clamp":
        value = float(coefficient)
        vector = checked(values, f"the steering_vector of '{name}'").double()
        if bias is not None:
            value += float(checked(bias, f"the bias of '{name}'").double() @ vector / vector.norm())
    return FileVector(
        values=values,
        site=site,
        name=name,
        convention=f"the output of '{name}' is {site}",
        coefficient=float(coefficient) if action == "add" else 1.0,
        action="add" if action == "add" else "set",
        value=value,
        kept=kept,
    )


def _csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise OutputError(f"{path} is not a readable CSV ({error})") from error
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise OutputError(f"{path} has no rows or lacks the columns {', '.join(missing)}")
    return rows


def _feature(row: Mapping[str, str], path: Path, asked: Asked) -> FileVector:
    """The decoder row of a feature, of a sparse autoencoder on this disk."""
    name, hookpoint = row["sparse_model"], row["hookpoint"]
    folder = Path(name) / hookpoint
    file = folder / "sae.safetensors"
    if (row.get("loader") or "sparsify") != "sparsify" or not file.is_file():
        raise OutputError(
            f"{path} names a feature of '{name}', which is no local folder of sparsify (there is "
            f"no {file}); load it with sk.load_sae and steer with its feature's direction"
        )
    try:
        index, coefficient = int(row["feature_index"]), float(row["steering_coefficient"])
        held = mapped.read(file)
        decoder, bias = held["W_dec"], held.get("b_dec")
        vector = decoder[index] if 0 <= index < len(decoder) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"feature {row['feature_index']} of {file}: {error!r}") from error
    if vector is None:
        raise OutputError(f"{file} has {len(decoder)} features; there is no {index}")
    action = row.get("action") or "add"
    entry_ = {
        "steering_vector": vector,
        "steering_coefficient": coefficient,
        "action": action,
        "bias": bias if action == "clamp" else None,
    }
    return _read(hookpoint, entry_, asked, None)
