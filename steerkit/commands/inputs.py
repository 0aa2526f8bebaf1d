"""What options mean: layers, contrasts, models and steering files from their text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from steerkit.commands.console import say

if TYPE_CHECKING:
    from steerkit.activations import Activations
    from steerkit.direction import Direction, Directions
    from steerkit.interventions.artefact import Steering
    from steerkit.models import LanguageModel
    from steerkit.prompts import Contrast, Prompt
    from steerkit.searches import Objective


def read_layers(text: str) -> tuple[int, ...] | None:
    """Read `4-12`, `3,5` or nothing (all layers).

    Raises:
        SiteError: anything else.

    >>> read_layers("0,4-6")
    (0, 4, 5, 6)
    """
    from steerkit.errors import SiteError

    if not text.strip():
        return None
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise SiteError(f"layers read '3', '3,5' or '4-12', counted from 0; got '{text}'")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise SiteError(f"'{text}' names no layer: a range runs from the smaller to the larger")
    return tuple(dict.fromkeys(found))


def read_positions(text: str) -> str | int:
    """A pooling by name, or a token index.

    >>> read_positions("-1"), read_positions("last")
    (-1, 'last')
    """
    return int(text) if text.lstrip("-").isdigit() else text


def read_activations(path: Path, label: str = "label") -> "Activations":
    """A capture's file, or the rows of a store's folder.

    Args:
        path: the file or folder.
        label: the column of a store that holds each prompt's label, 1 or 0.

    Raises:
        OutputError: neither.
        ActivationError: a store without such labels.
    """
    from steerkit.activations import Activations
    from steerkit.errors import ActivationError

    if not path.is_dir():
        return Activations.load(path)
    from steerkit.stores import ActivationStore

    acts = ActivationStore(path).to_activations(label=label)
    if not acts.labels:
        raise ActivationError(
            f"the prompts of {path} have no column '{label}' that says which side they are on; "
            "capture a dataset that has one (1 or 0)"
        )
    return acts


def read_names(text: str) -> tuple[str, ...]:
    """Comma-separated names.

    >>> read_names("mean_difference, pca")
    ('mean_difference', 'pca')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_numbers(text: str) -> tuple[float, ...] | None:
    """Comma-separated numbers; None for nothing.

    Raises:
        InterventionError: something that is no number.

    >>> read_numbers("-1, 2.5")
    (-1.0, 2.5)
    """
    from steerkit.errors import InterventionError

    try:
        return tuple(float(piece) for piece in read_names(text)) or None
    except ValueError:
        raise InterventionError(f"strengths are numbers, such as '0.5,1,2'; got '{text}'") from None


def read_aim(text: str) -> Literal["reduce", "induce"]:
    """`reduce` or `induce`.

    Raises:
        MethodError: anything else.
    """
    from steerkit.errors import MethodError
    from steerkit.registry import suggest

    if text == "reduce":
        return "reduce"
    if text == "induce":
        return "induce"
    raise MethodError(f"no aim named '{text}'; {suggest(text, ('reduce', 'induce'))}")


def read_objective(
    name: str, towards: Sequence[str] = (), away: Sequence[str] = ()
) -> "str | Objective":
    """An objective by name; with two sets of answers, their log-odds.

    Raises:
        MethodError: answers of one side only, or with another objective.
    """
    from steerkit.errors import MethodError

    if not towards and not away:
        return name
    if not (towards and away) or name not in ("log_odds", "refusal"):
        raise MethodError(
            "--towards and --away are the two answers of --objective log_odds; give both"
        )
    from steerkit.searches import LogOdds

    return LogOdds(tuple(towards), tuple(away))


def filtered(
    directions: "Directions", layers: Sequence[int] | None, methods: Sequence[str]
) -> "Directions":
    """Only the directions of some layers and methods.

    Raises:
        DirectionError: there are none.
    """
    from steerkit.direction import Directions
    from steerkit.errors import DirectionError

    kept = tuple(
        d
        for d in directions
        if (layers is None or d.site.layer in layers) and (not methods or d.method in methods)
    )
    if not kept:
        there = ", ".join(sorted({str(d) for d in directions}))
        raise DirectionError(f"no direction is of these layers and methods; there are: {there}")
    return Directions(kept)


def read_contrast(text: str, template: str = "auto") -> "Contrast":
    """A contrast from a file or a built-in name.

    Raises:
        PromptError: no such file or name, an unreadable one, a missing side.
    """
    from steerkit import datasets
    from steerkit.prompts import Contrast

    if text.startswith("builtin:"):
        name = text.removeprefix("builtin:")
        found = Contrast.read(datasets.path(name), name=name)
    else:
        found = Contrast.read(text)
    return found.map(lambda p: rendered([p], template)[0])


def read_part(
    model: str, contrast: str, template: str, part: str, *, seed: int, limit: int, instead: str
) -> "Contrast":
    """A part of a contrast, for commands that read prompts with a model or what capture wrote.

    `instead` says what such a command reads.

    Raises:
        MethodError: the model or the contrast was not named.
        PromptError: see `read_contrast`.
    """
    from steerkit.errors import MethodError
    from steerkit.pipeline import part_of

    if not (model and contrast):
        got = "--model" if model else "--contrast" if contrast else "neither"
        raise MethodError(f"{instead}; got {got}")
    return part_of(read_contrast(contrast, template), part, seed=seed, limit=limit)


def rendered(prompts: "Sequence[Prompt]", template: str) -> "list[Prompt]":
    """The prompts with the template that was asked for; with `auto`, as their rows say.

    Raises:
        PromptError: an unknown template.
    """
    from steerkit.errors import PromptError
    from steerkit.registry import suggest

    known = ("auto", "chat", "raw")
    if template not in known:
        raise PromptError(f"no template named '{template}'; {suggest(template, known)}")
    if template == "auto":
        return list(prompts)
    return [replace(p, template=template) for p in prompts]  # type: ignore[arg-type]


def read_steering(path: Path, strength: str = "") -> "tuple[Steering, ...]":
    """The interventions of a file, all at `strength` if one is given.

    Raises:
        OutputError: no such file.
        InterventionError: a strength that is no number.
    """
    from steerkit.errors import InterventionError
    from steerkit.interventions import load_steering, rebuilt

    found = load_steering(path)
    if not strength:
        return found
    try:
        value = float(strength)
    except ValueError:
        raise InterventionError(f"a strength is a number; got '{strength}'") from None
    return tuple(rebuilt(op, strength=value) for op in found)


def first_direction(operators: "Sequence[Steering]") -> "Direction | None":
    """The direction that is steered by; None for learnt edits, which have matrices."""
    acting = (getattr(operator, "intervention", operator) for operator in operators)
    return next((d for operator in acting for d in operator.directions), None)


def recorded_model(operators: "Sequence[Steering]") -> str:
    """Name of the model that a file's directions were taken on.

    Raises:
        InterventionError: interventions without directions, which do not say.
    """
    from steerkit.errors import InterventionError

    first = next((d for operator in operators for d in operator.directions), None)
    if first is None:
        raise InterventionError(
            "this file does not say which model it is for; name one with --model"
        )
    return first.model.name


def open_model(name: str, device: str = "", dtype: str = "", engine: str = "hf") -> "LanguageModel":
    """Load a model, saying so.

    Raises:
        ModelError: it cannot be loaded, or there is no such engine.
    """
    from steerkit.errors import ModelError
    from steerkit.models import load
    from steerkit.models.loading import VLLM
    from steerkit.registry import suggest

    if engine not in ("hf", "vllm"):
        raise ModelError(f"no engine named '{engine}'; {suggest(engine, ('hf', 'vllm'))}")
    if engine == "vllm" and not name.startswith(VLLM):
        name = f"{VLLM}{name}"
    say(f"loading {name}")
    return load(name, device=device or None, dtype=dtype or None)


def steer(
    plain: "LanguageModel", operators: "Sequence[Steering]", *, transfer: bool = False
) -> "LanguageModel":
    """The steered view; another model than the recorded one is refused unless `transfer`.

    Raises:
        DirectionError: another model.
    """
    for operator in operators:
        for direction in operator.directions:
            direction.check(plain.info, force=transfer)
    return plain.with_(*(_taken_on(plain, op) if transfer else op for op in operators))


def _taken_on(plain: "LanguageModel", operator: "Steering") -> "Steering":
    """The operator with its directions declared this model's own: the caller asked for it."""
    from steerkit.interventions import rebuilt

    return rebuilt(operator, on=lambda direction: replace(direction, model=plain.info))
