"""The public verb `audit`: of steering against prompting, or a suite of questions of a model."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from steerkit.audits import audit as audit_steering
from steerkit.audits.arms import BASELINES, Aim, PromptTransform
from steerkit.audits.checks import ItemCheck
from steerkit.audits.evidence import Item, includes
from steerkit.audits.report import Report
from steerkit.audits.section import Section
from steerkit.errors import MethodError
from steerkit.prompts import Contrast
from steerkit.protocols import Completion, Intervention, Model
from steerkit.refusals import is_refusal
from steerkit.suites.material import Material
from steerkit.suites.registry import Examination
from steerkit.suites.result import SuiteReport
from steerkit.suites.verb import examine

if TYPE_CHECKING:
    from steerkit.direction import Direction


@overload
def audit(
    model: Model,
    *,
    suite: str | Sequence[str | Examination],
    material: Material | str | Path | None = None,
    steering: Model | Intervention | Sequence[Intervention] | str | Path | None = None,
    against: Model | None = None,
    matcher: Callable[[str], float] = is_refusal,
    right: Callable[[str, str], float] = includes,
    max_new_tokens: int = 32,
    token_budget: int = 4096,
    seed: int = 0,
    out: str | Path | None = None,
    title: str | None = None,
    progress: bool = True,
) -> SuiteReport: ...
@overload
def audit(
    plain: Model,
    steered: Model,
    held_out: Contrast,
    *,
    answers: Sequence[str | None] | None = None,
    checks: Sequence[str | ItemCheck] | None = None,
    target: str = "refusal",
    aim: Aim = "less",
    baselines: Sequence[str] = BASELINES,
    system_prompt: str | None = None,
    shots: Sequence[tuple[str, str]] | None = None,
    train: Contrast | None = None,
    arms: Mapping[str, Model | PromptTransform] | None = None,
    said: Mapping[str, Sequence[Completion]] | None = None,
    directions: "Direction | Sequence[Direction] | None" = None,
    sweep: Any = None,
    texts: Sequence[str] = (),
    judge: Callable[[Item], float] | None = None,
    matcher: Callable[[str], float] = is_refusal,
    scorer: Callable[[str, str], float] = includes,
    max_new_tokens: int = 48,
    n_resamples: int = 2000,
    token_budget: int = 4096,
    seed: int = 0,
    out: str | Path | None = None,
    title: str | None = None,
    sections: Sequence[Section] = (),
    progress: bool = True,
) -> Report: ...
def audit(  # type: ignore[misc]  # `plain`, by name, is found among the options
    model: Any = None,
    steered: Any = None,
    held_out: Any = None,
    *,
    suite: Any = None,
    **options: Any,
) -> Report | SuiteReport:
    """Audit a model by a suite of questions, or steering against prompting.

        audit(model, suite="standard", steering=..., against=..., material=...)
        audit(model, steered, held_out, target="refusal", ...)

    A suite asks named questions of a model, of the model steered and of another model where
    they are given, and answers each with yes, no or inconclusive. An audit of steering compares
    one steered model with the plain one and with prompting, on held-out prompts, check by check.

    Args:
        model: the model that is audited, plain (`plain` is the same).
        steered: the view to audit, without a suite.
        held_out: what an audit of steering asks: prompts that neither fitting nor search saw.
        suite: `behaviour`, `steering`, `two_models`, `standard`, or names of examinations.
        options: of a suite those of `steerkit.suites.examine`, of steering those of
            `steerkit.audits.audit`.

    Returns:
        A `SuiteReport` of a suite, a `Report` of steering.

    Raises:
        MethodError: both or neither was asked for, something is missing, or an option belongs
            to the other; and what the two raise.
    """
    if "plain" in options:
        if model is not None:
            raise MethodError("`plain` and `model` are the same argument; give one of them")
        model = options.pop("plain")
    if model is None:
        raise MethodError(f"there is no model to audit; {_CALLS}")
    if isinstance(steered, str):
        raise MethodError(f"a suite is given by name: audit(model, suite={steered!r})")
    if suite is None:
        if steered is None and held_out is None:
            raise MethodError(f"nothing says what to ask; {_CALLS}")
        if steered is None or held_out is None:
            lacks = "the steered model" if steered is None else "held-out prompts (a Contrast)"
            raise MethodError(f"an audit of steering lacks {lacks}; {_CALLS}")
        _check(options, audit_steering, examine, "a suite")
        return audit_steering(model, steered, held_out, **options)
    if steered is not None or held_out is not None:
        given = "steered" if steered is not None else "held_out"
        raise MethodError(
            f"a suite takes no `{given}`: it is given what steers the model as steering= and its "
            "prompts as material=; or leave out suite= to audit the steering alone"
        )
    _check(options, examine, audit_steering, "an audit of steering")
    return examine(model, suite, **options)


_CALLS = "audit(model, suite='standard') asks questions, audit(model, steered, held_out) compares"


def _check(
    options: Mapping[str, Any], taken: Callable[..., Any], other: Callable[..., Any], whose: str
) -> None:
    """Refuse options that only the other kind of audit takes; unknown ones are Python's to refuse.

    Raises:
        MethodError: there are some.
    """
    ours, theirs = (inspect.signature(verb).parameters for verb in (taken, other))
    wrong = [name for name in options if name in theirs and name not in ours]
    if wrong:
        known = ", ".join(name for name, p in ours.items() if p.kind is p.KEYWORD_ONLY)
        raise MethodError(f"{', '.join(wrong)} belongs to {whose}; here there are: {known}")
