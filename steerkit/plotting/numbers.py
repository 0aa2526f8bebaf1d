"""The numbers of a figure as plain data, so that nobody has to read them off a picture."""

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go


def numbers(fig: go.Figure) -> dict[str, Any]:
    """Every curve, bar and cell of a figure with its interval, what the axes are, and its lines.

    What has no hover text only decorates (bands, which repeat an interval) and is left out.
    `low` and `high` are the ends of intervals, along the axis that `interval` names; `label` is
    the row of each mark where rows have names.

    >>> fig = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="rate"))
    >>> numbers(fig)["series"][0]["y"]
    [3, 4]
    """
    lines = [
        {"axis": axis, "at": shape[f"{axis}0"]}
        for shape in fig.layout.shapes
        for axis in ("x", "y")
        if shape.type == "line" and shape[f"{axis}0"] == shape[f"{axis}1"]
    ]
    return {"series": list(_series(fig)), "lines": lines}


def _series(fig: go.Figure) -> Iterator[dict[str, Any]]:
    for trace in fig.data:
        if trace.hoverinfo == "skip":
            continue
        found: dict[str, Any] = {"name": trace.name or ""}
        for axis in ("x", "y"):
            place = (trace[f"{axis}axis"] or axis).replace(axis, f"{axis}axis")
            found[f"{axis}_title"] = fig.layout[place].title.text or ""
            found[axis] = _listed(trace[axis])
        if "text" in trace and trace.text is not None and not isinstance(trace.text, str):
            found["label"] = _listed(trace.text)
        if trace.type == "heatmap":
            yield {**found, "z": _listed(trace.z)}
            continue
        for axis in ("x", "y"):
            error = trace[f"error_{axis}"] if f"error_{axis}" in trace else None
            if error is None or error.array is None:
                continue
            above = _listed(error.array)
            below = above if error.arrayminus is None else _listed(error.arrayminus)
            found["interval"] = axis
            found["high"] = _shifted(found[axis], above, 1)
            found["low"] = _shifted(found[axis], below, -1)
        yield found


def _shifted(values: list[Any], by: list[Any], sign: int) -> list[float | None]:
    """Ends of intervals; None where there is none."""
    return [
        None if v is None or d is None else v + sign * d for v, d in zip(values, by, strict=True)
    ]


def _listed(values: Any) -> list[Any]:
    """Values as plain lists, also those that a figure read back from JSON holds packed."""
    if values is None:
        return []
    if isinstance(values, dict):
        packed = np.frombuffer(base64.b64decode(values["bdata"]), np.dtype(values["dtype"]))
        shape = [int(n) for n in str(values.get("shape", packed.size)).split(",")]
        values = packed.reshape(shape)
    plain = np.asarray(values).tolist() if isinstance(values, np.ndarray) else list(values)
    return [_finite(v) for v in plain]


def _finite(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
