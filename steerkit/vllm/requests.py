"""What a request may ask for, read from its `extra_args["steerkit"]` and made into programs.

A name, or a path to a steering file; a dictionary with one of them and what to change; a list
of such, which then act together; or any of these as JSON text, since the HTTP server's
`vllm_xargs` take no dictionaries:

    {"artefact": "joy", "strength": 0.5, "sites": ["resid_post@12"], "positions": "generated"}
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from steerkit.batch import Positions
from steerkit.errors import InterventionError
from steerkit.interventions import Operator, rebuilt
from steerkit.interventions.artefact import Steering
from steerkit.interventions.operator import finite, from_settings
from steerkit.models.checks import lowered
from steerkit.program import Program, ProgramTable
from steerkit.protocols import ModelInfo
from steerkit.registry import suggest
from steerkit.serving.sharing import may_share
from steerkit.site import Site
from steerkit.vllm.registrations import Artefacts

KEY = "steerkit"
"""Under which a request's extra arguments hold its steering."""


@dataclass(frozen=True)
class Part:
    """One steering file, and what of it this request wants otherwise.

    Attributes:
        artefact: sha256 of the file.
        strength: in place of each intervention's own; None for theirs.
        sites: in place of each intervention's own; None for theirs.
        positions: a rule, or indices, in place of each intervention's own; None for theirs.
        force: take directions of another model of the same width.
    """

    artefact: str
    strength: float | None = None
    sites: tuple[str, ...] | None = None
    positions: str | tuple[int, ...] | None = None
    force: bool = False


@dataclass(frozen=True)
class Asked:
    """The steering of one request: equal ones run one program and share cached prefixes."""

    parts: tuple[Part, ...]

    @property
    def key(self) -> str:
        """Names this steering: sha256 of what it is made of."""
        text = json.dumps([asdict(part) for part in self.parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_wire(self) -> dict[str, Any]:
        """Plain values that processes can send each other."""
        return {"resolved": self.key, "parts": [asdict(part) for part in self.parts]}

    @classmethod
    def from_wire(cls, value: Any) -> "Asked":
        """The inverse of `to_wire`.

        Raises:
            InterventionError: steering that no front end of this plugin has looked at.
        """
        if not isinstance(value, Mapping) or "resolved" not in value:
            raise InterventionError(
                "a request with steering reached the engine without passing this plugin's "
                "admission; add requests through LLM, AsyncLLM or the server"
            )
        # Lists are what tuples become on the way.
        tupled: list[dict[str, Any]] = [
            {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}
            for part in value["parts"]
        ]
        return cls(tuple(Part(**part) for part in tupled))


def read(value: Any, artefacts: Artefacts) -> Asked:
    """What a request asks for, with names and paths resolved to contents.

    Raises:
        InterventionError: an unknown name, something else than the module says.
        OutputError: a path that is no steering file.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InterventionError(
                f"the steering of a request is not JSON ({error}): {value[:80]}"
            ) from error
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed:
        raise InterventionError("the steering of a request is an empty list; leave it out instead")
    return Asked(tuple(_part(one, artefacts) for one in listed))


def _part(value: Any, artefacts: Artefacts) -> Part:
    if isinstance(value, str):
        value = {"artefact": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("artefact"), str):
        raise InterventionError(
            "the steering of a request is the name of an artefact, a path, or a dictionary whose "
            f"'artefact' is one of them; got {str(value)[:120]}"
        )
    fields = ("artefact", "strength", "sites", "positions", "force")
    for name in value:
        if name not in fields:
            raise InterventionError(
                f"the steering of a request has no field '{name}'; {suggest(str(name), fields)}"
            )
    wanted = value["artefact"]
    strength, sites = value.get("strength"), value.get("sites")
    if sites is not None:
        given = [sites] if isinstance(sites, str | int) else sites
        sites = tuple(str(site) for site in sorted({Site.parse(site) for site in given}))
    positions = value.get("positions")
    if positions is not None:
        rule = Positions.of(positions)
        if rule.rule == "mask":
            raise InterventionError("positions of a request are a rule or indices, not a mask")
        positions = rule.indices if rule.rule == "indices" else rule.rule
    return Part(
        artefact=artefacts.keep(wanted) if "/" in wanted else artefacts.named(wanted),
        strength=None if strength is None else finite("strength", strength),
        sites=sites,
        positions=positions,
        force=bool(value.get("force", False)),
    )


@dataclass(frozen=True, eq=False)
class Steered:
    """The programs of one request, and what caches may make of it.

    Attributes:
        programs: by site; empty where all strengths are 0.
        prefix: whether what is done to a token depends on nothing but the tokens up to it, so
            that requests whose prompts end elsewhere may share cached prefixes.
        whole_prompt: whether some condition has to see all tokens of the prompt.
    """

    programs: Mapping[Site, Program]
    prefix: bool
    whole_prompt: bool


@lru_cache(maxsize=1024)
def steered(asked: Asked, artefacts: Artefacts, info: ModelInfo) -> Steered:
    """The programs that a request runs on a model.

    Raises:
        DirectionError: directions of another model.
        SiteError: a site that the model lacks.
        InterventionError: sites or positions asked of interventions that have several.
    """
    # What another model's directions may do is decided part by part.
    made: list[Mapping[Site, Program]] = []
    for part in asked.parts:
        wanted = [_changed(one, part) for one in artefacts.open(part.artefact)]
        made.append(lowered(wanted, info, force=part.force))
    sites = sorted({site for each in made for site in each})
    together = {
        site: Program.parallel([each[site] for each in made if site in each]) for site in sites
    }
    programs = {site: program for site, program in together.items() if program}
    table = ProgramTable((programs,))
    latches = [latch for program in programs.values() for latch in program.latches]
    return Steered(
        programs=programs,
        prefix=may_share(table, [1]),
        whole_prompt=any(latch.pooled == "mean_prompt" for latch in latches),
    )


def _changed(intervention: Steering, part: Part) -> Steering:
    """The intervention as this request wants it."""
    if part.sites is None and part.positions is None:
        return rebuilt(intervention, strength=part.strength)
    if not isinstance(intervention, Operator):
        raise InterventionError(
            f"sites and positions can be changed for single operators, not for "
            f"'{intervention}'; save the file with those that you want"
        )
    return from_settings(
        intervention.name,
        intervention.directions,
        {**intervention.settings, **intervention.tensors},
        strength=intervention.strength if part.strength is None else part.strength,
        positions=intervention.positions if part.positions is None else _listed(part.positions),
        sites=intervention.sites if part.sites is None else part.sites,
    )


def _listed(positions: str | tuple[int, ...]) -> str | Sequence[int]:
    return positions if isinstance(positions, str) else list(positions)
