"""Programs as files, for views whose interventions no steering file names.

What a view runs are programs, whatever interventions they came from and however views were
stacked. A file holds those of one slot, number by number, so that another process runs exactly
them; it is named by the hash of its bytes and lies beside the steering files.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from steerkit.batch import Positions
from steerkit.errors import OutputError
from steerkit.files import FORMAT_VERSION, read_tensors, sha256_of, written_whole
from steerkit.program import Gate, Group, Latch, Opcode, Program
from steerkit.site import Site
from steerkit.vllm.registrations import Artefacts

KIND = "programs"
_HASH = re.compile(r"[0-9a-f]{64}")
_TENSORS = ("read", "offset", "write", "params")


def to_bytes(programs: Mapping[Site, Program], *, owner: str = "") -> bytes:
    """A file's content: equal programs of one owner give equal bytes."""
    from safetensors.torch import save

    writing = _Writing()
    sites = [
        {
            "site": str(site),
            "latches": [
                {
                    "name": latch.name,
                    "pooled": latch.pooled,
                    "condition": writing.gate(latch.condition),
                }
                for latch in programs[site].latches
            ],
            "groups": [writing.group(group) for group in programs[site].groups],
        }
        for site in sorted(programs)
    ]
    header = {"kind": KIND, "format_version": FORMAT_VERSION, "sites": sites, "owner": owner}
    header["gates"] = writing.gates
    return save(writing.tensors, {"steerkit": json.dumps(header, sort_keys=True)})


class _Writing:
    """Tensors and gates of a file; what is one object in memory stands there once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.gates: list[dict[str, Any]] = []
        self._names: dict[int, str] = {}
        self._numbers: dict[int, int] = {}

    def tensor(self, value: Tensor) -> str:
        if id(value) not in self._names:
            self._names[id(value)] = name = f"{len(self._names):05d}"
            # Views of one storage, such as a row that is read and written, are no two tensors.
            self.tensors[name] = value.detach().cpu().contiguous().clone()
        return self._names[id(value)]

    def gate(self, gate: Gate | None) -> int | None:
        if gate is None:
            return None
        if id(gate) not in self._numbers:
            self._numbers[id(gate)] = len(self.gates)
            self.gates.append({**gate.__dict__, "read": self.tensor(gate.read)})
        return self._numbers[id(gate)]

    def group(self, group: Group) -> dict[str, Any]:
        return {
            "opcodes": [int(opcode) for opcode in group.opcodes],
            "positions": [
                {
                    "rule": rule.rule,
                    "indices": list(rule.indices),
                    "mask": None if rule.mask is None else self.tensor(rule.mask),
                }
                for rule in group.positions
            ],
            "gates": [self.gate(gate) for gate in group.gates],
            **{name: self.tensor(getattr(group, name)) for name in _TENSORS},
        }


def from_file(path: Path) -> dict[Site, Program]:
    """The programs of a file, with every number as it was.

    Raises:
        OutputError: no complete file of programs.
    """
    tensors, header = read_tensors(path, KIND)
    gates = [Gate(**{**gate, "read": tensors[gate["read"]]}) for gate in header["gates"]]
    rules: dict[str, Positions] = {}

    def rule(data: dict[str, Any]) -> Positions:
        # Rules with a mask are the same only if the mask is the same object.
        key = json.dumps(data, sort_keys=True)
        if key not in rules:
            mask = data["mask"]
            rules[key] = Positions(
                data["rule"], tuple(data["indices"]), None if mask is None else tensors[mask]
            )
        return rules[key]

    def group(data: dict[str, Any]) -> Group:
        return Group(
            opcodes=tuple(Opcode(code) for code in data["opcodes"]),
            positions=tuple(rule(one) for one in data["positions"]),
            gates=tuple(None if number is None else gates[number] for number in data["gates"]),
            **{name: tensors[data[name]] for name in _TENSORS},
        )

    return {
        Site.parse(data["site"]): Program(
            tuple(group(one) for one in data["groups"]),
            tuple(
                Latch(one["name"], gates[one["condition"]], one["pooled"])
                for one in data["latches"]
            ),
        )
        for data in header["sites"]
    }


def keep(programs: Mapping[Site, Program], artefacts: Artefacts, *, owner: str = "") -> str:
    """Put programs where requests can name them; gives the hash that does.

    Whoever means to `forget` them again gives a name of its own, so that nobody else's go.
    """
    content = to_bytes(programs, owner=owner)
    digest = hashlib.sha256(content).hexdigest()
    path = path_of(digest, artefacts)
    if not path.exists():
        # Whoever opens it checks the hash: it need not survive a power cut.
        with written_whole(path, durable=False) as temporary:
            temporary.write_bytes(content)
    return digest


def forget(digest: str, artefacts: Artefacts) -> None:
    """Take kept programs away, once no request that names them is under way."""
    path_of(digest, artefacts).unlink(missing_ok=True)


def path_of(digest: str, artefacts: Artefacts) -> Path:
    """Where the programs of a hash lie.

    Raises:
        OutputError: something that is no hash.
    """
    if not _HASH.fullmatch(digest):
        raise OutputError(f"'{digest[:80]}' is not the hash of a file of programs")
    return artefacts.folder / "programs" / f"{digest}.safetensors"


def opened(digest: str, artefacts: Artefacts) -> Mapping[Site, Program]:
    """The programs of a hash.

    Raises:
        OutputError: they are gone, or not what they were.
    """
    return _opened(path_of(digest, artefacts), digest)


@lru_cache(maxsize=64)
def _opened(path: Path, digest: str) -> Mapping[Site, Program]:
    if sha256_of(path) != digest:
        raise OutputError(f"{path} is not the file of programs that was kept there")
    return from_file(path)
