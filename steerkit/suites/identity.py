"""What makes a steering this one: its programs, number by number.

Interventions in words (`ablate refusal at resid_post@2`) are the same for two directions that were
fitted at one site; what an audit found of one of them is not true of the other.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from steerkit.protocols import Model


def programs_sha256(model: Model) -> str:
    """sha256 of all that a view's programs are made of; empty for a model that is not steered."""
    table = model.table
    if table is None:
        return ""
    slots = [{str(site): _told(p) for site, p in slot.items() if p} for slot in table.slots]
    return hashlib.sha256(json.dumps(slots, sort_keys=True).encode()).hexdigest()


def _told(value: Any) -> Any:
    """A value as JSON: dataclasses by their fields, tensors by shape, dtype and bytes."""
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous()
        data = held.numpy().tobytes()
        return [str(held.dtype), list(held.shape), hashlib.sha256(data).hexdigest()]
    if is_dataclass(value):
        return [
            type(value).__name__,
            {f.name: _told(getattr(value, f.name)) for f in fields(value)},
        ]
    if isinstance(value, Mapping):
        return {str(key): _told(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_told(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
