"""What a request may ask for, read from its `extra_args["steerkit"]` and made into programs.

A name, or a path to a steering file; a dictionary with one of them and what to change; a list
of such, which then act together; or any of these as JSON text, since the HTTP server's
`vllm_xargs` take no dictionaries:

    {"artefact": "joy", "strength": 0.5, "sites": ["resid_post@12"], "positions": "generated"}

What steers may also stand beside what is to be captured (`capturing` says what that may be; one
or a list), and how many of the request's tokens are prompt, where an answer to be scored comes
along with it:

    {"steering": "joy", "capture": {"name": "run-17", "sites": [12]}, "prompt_len": 40}
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
from steerkit.models.checks import check_site, lowered
from steerkit.program import Program, ProgramTable
from steerkit.protocols import ModelInfo
from steerkit.registry import suggest
from steerkit.serving.sharing import may_share
from steerkit.site import Site
from steerkit.vllm import programs as kept
from steerkit.vllm.capturing import Capture
from steerkit.vllm.registrations import NONE, Artefacts

KEY = "steerkit"
"""Under which a request's extra arguments hold its steering."""
_WHOLE = ("steering", "capture", "prompt_len")


@dataclass(frozen=True)
class Part:
    """One steering file, and what of it this request wants otherwise; or a file of programs.

    Attributes:
        artefact: sha256 of the file.
        strength: in place of each intervention's own; None for theirs.
        sites: in place of each intervention's own; None for theirs.
        positions: a rule, or indices, in place of each intervention's own; None for theirs.
        force: take directions of another model of the same width.
        programs: the file holds programs (`steerkit.vllm.programs`), which run as they are.
    """

    artefact: str
    strength: float | None = None
    sites: tuple[str, ...] | None = None
    positions: str | tuple[int, ...] | None = None
    force: bool = False
    programs: bool = False


@dataclass(frozen=True)
class Asked:
    """The steering of one request, and what is captured of it.

    Attributes:
        parts: what steers; none where nothing does.
        prompt_len: tokens of the request that count as its prompt; None for all of them.
        captures: what is kept.
    """

    parts: tuple[Part, ...]
    prompt_len: int | None = None
    captures: tuple[Capture, ...] = ()

    @property
    def key(self) -> str:
        """Names this steering: sha256 of what it is made of. Equal ones run one program."""
        text = json.dumps([asdict(part) for part in self.parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_wire(self) -> dict[str, Any]:
        """Plain values that processes can send each other."""
        return {
            "resolved": self.key,
            "parts": [asdict(part) for part in self.parts],
            "prompt_len": self.prompt_len,
            "captures": [capture.to_wire() for capture in self.captures],
        }

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
        return cls(
            tuple(Part(**part) for part in tupled),
            value.get("prompt_len"),
            tuple(Capture.from_wire(one) for one in value.get("captures", ())),
        )


def read(value: Any, artefacts: Artefacts, info: ModelInfo | None = None) -> Asked:
    """What a request asks for, with names and paths resolved to contents.

    Args:
        value: what stands in its extra arguments.
        artefacts: where steering is registered.
        info: of the model; needed where something is to be captured.

    Raises:
        InterventionError: an unknown name, something else than the module says.
        OutputError: a path that is no steering file.
        SiteError: a site to capture that the model lacks.
    """
    value = _parsed(value)
    if value == NONE:
        return Asked(())
    if not isinstance(value, Mapping) or not set(value) & set(_WHOLE):
        return Asked(_parts(value, artefacts))
    for name in value:
        if name not in _WHOLE:
            raise InterventionError(
                f"beside 'steering', 'capture' and 'prompt_len' a request has no '{name}'; "
                "what changes an artefact stands in 'steering'"
            )
    length, captured = value.get("prompt_len"), value.get("capture")
    # Who only captures says nothing about steering, and gets the default.
    steering = value["steering"] if "steering" in value else artefacts.default
    if length is not None and (type(length) is not int or length < 1):
        raise InterventionError(f"prompt_len is a number of tokens, at least 1; got {length!r}")
    if captured is None:
        captured = []
    elif not isinstance(captured, list | tuple):
        captured = [captured]
    if captured and info is None:
        raise InterventionError("what is captured cannot be checked without a model")
    captures = tuple(Capture.read(one, info) for one in captured if info is not None)
    if len({one.name for one in captures}) != len(captures):
        raise InterventionError("two captures of one request have the same name")
    parts = () if steering in (None, NONE) else _parts(_parsed(steering), artefacts)
    return Asked(parts, length, captures)


def _parsed(value: Any) -> Any:
    """JSON text as what it says; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InterventionError(
                f"the steering of a request is not JSON ({error}): {value[:80]}"
            ) from error
    return value


def _parts(value: Any, artefacts: Artefacts) -> tuple[Part, ...]:
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed:
        raise InterventionError("the steering of a request is an empty list; leave it out instead")
    return tuple(_part(one, artefacts) for one in listed)


def _part(value: Any, artefacts: Artefacts) -> Part:
    if isinstance(value, str):
        value = {"artefact": value}
    if isinstance(value, Mapping) and set(value) == {"programs"}:
        return Part(artefact=str(value["programs"]), programs=True)
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
    found = artefacts.asked(wanted)
    return Part(
        artefact=found.digest,
        strength=found.strength if strength is None else finite("strength", strength),
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


def steered(asked: Asked, artefacts: Artefacts, info: ModelInfo) -> Steered:
    """The programs that a request runs on a model.

    Raises:
        DirectionError: directions of another model.
        SiteError: a site that the model lacks.
        InterventionError: sites or positions asked of interventions that have several.
    """
    return _steered(asked.parts, artefacts, info)


@lru_cache(maxsize=1024)
def _steered(parts: tuple[Part, ...], artefacts: Artefacts, info: ModelInfo) -> Steered:
    # What another model's directions may do is decided part by part.
    made: list[Mapping[Site, Program]] = []
    for part in parts:
        if part.programs:
            made.append(_of_this_model(kept.opened(part.artefact, artefacts), info))
            continue
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


def _of_this_model(programs: Mapping[Site, Program], info: ModelInfo) -> Mapping[Site, Program]:
    """Programs whose sites and width this model has."""
    for site, program in programs.items():
        check_site(site, info)
        for group in program.groups:
            if group.d_model != info.d_model:
                raise InterventionError(
                    f"programs of width {group.d_model} at {site}; {info.name} has {info.d_model}"
                )
    return programs


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
