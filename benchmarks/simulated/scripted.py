"""Models of which all is written down: what they answer, where their states lie, what moves them.

A check is asked of them by the thousand, and the truth is known. Shared by the rows beside it.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from steerkit.activations import Activations
from steerkit.prompts import Contrast, Prompt, groups_of
from steerkit.protocols import Completion, ModelInfo
from steerkit.site import Site
from steerkit.statistics import Estimate
from steerkit.suites import Material
from steerkit.suites.equal_kl import EqualKL
from steerkit.suites.subject import Subject

REFUSED, RIGHT, WRONG, BROKEN = "refused", "right", "wrong", ""
"""All that anybody says here; what is right is always the same."""
SAYS = np.array([REFUSED, RIGHT, WRONG, BROKEN])
NOTHING: Any = SimpleNamespace(prompts=(), groups=())


class Scripted:
    """A model: what it says to each prompt, and its states at the last token.

    Args:
        said: text of a prompt -> its answer; one not named is answered rightly.
        states: texts, and of each the states `[prompt layer d_model]`.
        name: told apart by.
        layers: depth, where there are no states.
        more: whatever a check's own replacement reads off a model.
    """

    table = None

    def __init__(
        self,
        said: Mapping[str, str] | None = None,
        states: tuple[Sequence[str], Tensor] | None = None,
        *,
        name: str = "scripted",
        layers: int = 1,
        **more: Any,
    ) -> None:
        self.said, self._states = said or {}, states
        depth, width = (layers, 2) if states is None else states[1].shape[1:]
        self.info = ModelInfo(
            name, "scripted", depth, width, 8, 64, ("resid_post",), "float32", "cpu", name
        )
        self._row = {} if states is None else {text: i for i, text in enumerate(states[0])}
        self.__dict__ |= more

    def generate(self, prompts: Sequence[Prompt], **_: Any) -> list[Completion]:
        return [Completion(p, self.said.get(p.text, RIGHT), (), ()) for p in prompts]

    def states(self, prompts: Sequence[Prompt]) -> Tensor:
        assert self._states is not None
        return self._states[1][[self._row[p.text] for p in prompts]]


def captured(
    model: Scripted,
    given: Contrast | Sequence[Prompt],
    *,
    sites: Sequence[Any] | None = None,
    layers: Sequence[int] | None = None,
    **_: Any,
) -> Activations:
    """`capture`, of states that are written down."""
    contrast = given if isinstance(given, Contrast) else None
    prompts = tuple(given.prompts if isinstance(given, Contrast) else given)
    wanted = range(model.info.n_layers) if sites is None and layers is None else sites or layers
    places = tuple(sorted(Site.parse(s) for s in wanted or ()))
    return Activations(
        model.states(prompts)[:, [s.layer for s in places]].float(),
        places,
        prompts,
        labels=contrast.labels if contrast else (),
        groups=contrast.groups if contrast else groups_of(prompts),
        pooling="last",
        info=model.info,
        provenance={"concept": contrast.name if contrast else ""},
    )


def asked(role: str, n: int, per: int = 4) -> list[list[Prompt]]:
    """`n` prompts a side, `per` of a template, which holds one side."""
    return [
        [
            Prompt(f"{role} {side} {i}", answer=RIGHT, group=f"{role} {side} {i // per}")
            for i in range(n)
        ]
        for side in ("positive", "negative")
    ]


def contrast(role: str, n: int, per: int = 4) -> Contrast:
    """`asked`, as a contrast."""
    return Contrast.of(*asked(role, n, per), name=role)


def texts(prompts: Sequence[Prompt]) -> list[str]:
    """What the prompts say."""
    return [p.text for p in prompts]


def subject(
    contrasts: Mapping[str, Contrast],
    prompts: Mapping[str, Sequence[Prompt]] | None = None,
    *,
    seed: int = 0,
    **arms: Any,
) -> Subject:
    """A subject whose judges know what is said."""
    material = Material(dict(contrasts), {k: tuple(v) for k, v in (prompts or {}).items()})
    return Subject(
        material=material,
        matcher=lambda text: float(text == REFUSED),
        right=lambda text, wanted: float(text == wanted),
        seed=seed,
        **{"model": Scripted(), **arms},
    )


def clustered(rng: np.random.Generator, rate: float, n: int, per: int = 4) -> np.ndarray:
    """How likely each of `n` prompts does something: `rate` on average, templates differ.

    Their rates are beta-distributed with an intraclass correlation of one in eleven.
    """
    if rate in (0.0, 1.0):
        return np.full(n, rate)
    return rng.beta(10 * rate, 10 * (1 - rate), -(-n // per)).repeat(per)[:n]


def happens(rng: np.random.Generator, rate: float, n: int, per: int = 4) -> np.ndarray:
    """Whether each of `n` prompts does it, `[prompt]`."""
    return rng.random(n) < clustered(rng, rate, n, per)


def said(prompts: Sequence[Prompt], answers: Sequence[str] | np.ndarray, **more: Any) -> Scripted:
    """A model that gives each of these prompts one of these answers."""
    return Scripted(dict(zip(texts(prompts), map(str, answers), strict=True)), **more)


def spending(controls: Sequence[Any] = ()) -> EqualKL:
    """Random directions of equal KL, of which only the views matter."""
    spent = Estimate(0.1, 0.1, 0.1, 1, "nats/token")
    each = (spent,) * len(controls)
    return EqualKL(0.1, NOTHING, NOTHING, spent, spent, tuple(controls), each, why="scripted")


def undrawn(*_: Any, **__: Any) -> None:
    """In the place of a figure that nobody looks at."""
