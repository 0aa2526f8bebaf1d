"""Examinations by name, and the suites that they make up.

A new one is one file in `steerkit.suites.examinations`:

    @register("shouting", question="Does it shout?", needs=("refusal",), source="...")
    def shouting(subject):
        said = subject.answers(subject.contrast("refusal").prompts)
        ...
        return Finding("yes", "It shouts in 7% of its answers.", {"shouting": estimate})
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from steerkit.errors import MethodError
from steerkit.registry import Registry, suggest
from steerkit.suites.finding import Finding
from steerkit.suites.subject import AGAINST, STEERED, Subject

Run = Callable[[Subject], Finding]


@dataclass(frozen=True)
class Examination:
    """A question, and how it is answered.

    Attributes:
        name: as in suites and files.
        question: in one sentence, answered by yes or no.
        source: where the method comes from.
        needs: roles of prompts without which it cannot be asked.
        arms: what else there must be: `steered`, `against`.
        either: whether any one of `arms` is enough.
        reads: the arms that it is shown, beside the model; by default `arms` where it needs them
            all, else every one that is given. Its finding is kept for as long as these stay,
            whatever else is compared.
        run: the subject in, the finding out.
    """

    name: str
    question: str
    source: str
    run: Run
    needs: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    either: bool = False
    reads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        unseen = [arm for arm in self.arms if arm not in self.looks_at]
        if unseen:
            raise MethodError(f"'{self.name}' needs {', '.join(unseen)} and does not read it")

    @property
    def looks_at(self) -> tuple[str, ...]:
        """The arms that it is shown, beside the model."""
        if self.reads is not None:
            return self.reads
        return self.arms if self.arms and not self.either else (STEERED, AGAINST)

    def missing(self, subject: Subject) -> str:
        """Why it cannot be asked of this subject; empty if it can."""
        roles = [role for role in self.needs if role not in subject.material]
        if roles:
            return f"no prompts of the role {', '.join(roles)}"
        lacking = [arm for arm in self.arms if arm not in subject.arms]
        if lacking and not (self.either and len(lacking) < len(self.arms)):
            named = {STEERED: "no steering given", AGAINST: "no other model given"}
            return ", ".join(named[arm] for arm in lacking)
        return ""


EXAMINATIONS: Registry[Examination] = Registry("examination", "steerkit.suites.examinations")
"""Every examination by name."""

_BEHAVIOUR = ("refusal", "over_refusal", "censorship", "association", "parity", "change")
_LIKELIHOOD = ("stereotypes", "truthfulness")
_STEERING = ("side_effects", "wrong_way", "cross_concept_spill", "completeness")
_STATES = (
    "geometry", "detection", "polarity", "topic_detection", "refusal_routing", "topic_routing",
    "cleaned_direction",
)  # fmt: skip
_SAMPLED = ("decoding", "branching")
_TWO_MODELS = (
    "similarity", "ablation", "token_shift", "representation_shift", "transfer", "membership",
)  # fmt: skip

SUITES: Mapping[str, tuple[str, ...]] = {
    "behaviour": _BEHAVIOUR,
    "steering": ("change", *_STEERING),
    "two_models": ("change", "geometry", *_TWO_MODELS),
    "likelihood": ("association", *_LIKELIHOOD),
    "standard": (*_BEHAVIOUR, *_LIKELIHOOD, *_SAMPLED, *_STEERING, *_STATES, *_TWO_MODELS),
}
"""Suite -> the examinations that it asks, in order."""


def register(
    name: str,
    *,
    question: str,
    source: str,
    needs: Sequence[str] = (),
    arms: Sequence[str] = (),
    either: bool = False,
    reads: Sequence[str] | None = None,
) -> Callable[[Run], Run]:
    """Decorator: make a function of the subject the examination called `name`."""

    def keep(run: Run) -> Run:
        shown = None if reads is None else tuple(reads)
        examination = Examination(
            name, question, source, run, tuple(needs), tuple(arms), either, shown
        )
        EXAMINATIONS.register(name)(examination)
        return run

    return keep


def asked(suite: str | Sequence[str | Examination]) -> tuple[Examination, ...]:
    """The examinations of a suite, or those named; one of them by its name alone.

    Raises:
        MethodError: no such suite or examination, or none at all.
    """
    if isinstance(suite, str):
        known = EXAMINATIONS.names()
        if suite not in SUITES and suite not in known:
            near = suggest(suite, (*SUITES, *known))
            raise MethodError(f"no suite and no examination named '{suite}'; {near}")
        suite = SUITES.get(suite, (suite,))
    if not suite:
        raise MethodError(f"no examination given; known: {', '.join(EXAMINATIONS.names())}")
    return tuple(EXAMINATIONS[e] if isinstance(e, str) else e for e in suite)
