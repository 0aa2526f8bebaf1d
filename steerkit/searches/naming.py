"""From the name of an objective to the objective itself."""

from collections import Counter
from collections.abc import Sequence

from steerkit.audits.checks import registry as checks
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.prompts import Contrast
from steerkit.protocols import Model
from steerkit.refusals import is_refusal
from steerkit.registry import suggest
from steerkit.searches.judged import LabelAccuracy, of_check
from steerkit.searches.objectives import LogOdds, Objective, Projection, Refusal, Unanswered

NAMES = ("refusal", "unanswered", "log_odds", "label_accuracy", "projection")
MOST_LABELS = 26
"""Distinct answers beyond which they are taken for free text."""


def make_objective(
    objective: "str | Objective",
    model: Model,
    directions: Sequence[Direction],
    contrast: Contrast,
    *,
    max_new_tokens: int,
    token_budget: int,
) -> Objective:
    """The objective of a name, or the object given.

    `unanswered` needs prompts with an `answer`. `log_odds` by name compares the plain
    model's commonest refusal of the positive prompts with each prompt's own `answer`;
    `label_accuracy` takes the prompts' distinct answers as labels; `projection` reads the
    deepest direction. A check of the audit that reads answers goes by its name.

    Raises:
        MethodError: an unknown name, or prompts that lack what the name needs.
    """
    if not isinstance(objective, str):
        return objective
    positive, prompts = contrast.positive, contrast.prompts
    if objective not in NAMES and objective in checks:
        check = checks[objective]
        return of_check(check, max_new_tokens=max_new_tokens, token_budget=token_budget)
    if objective not in NAMES:
        named = suggest(objective, (*NAMES, *checks))
        raise MethodError(f"no objective named '{objective}'; {named}")
    if objective == "refusal":
        return Refusal(max_new_tokens, token_budget=token_budget)
    if objective == "projection":
        return Projection(max(directions, key=lambda d: d.site.order), token_budget)
    missing = [p for p in prompts if not p.answer]
    if missing:
        instead = "" if objective == "unanswered" else ", or pass LogOdds(positive=, negative=)"
        raise MethodError(
            f"the objective '{objective}' compares with each prompt's own answer, but "
            f"{len(missing)} of {len(prompts)} prompts have none, such as "
            f"{missing[0].text[:40]!r}; give prompts an `answer`{instead}"
        )
    if objective == "label_accuracy":
        labels = tuple(sorted({p.answer for p in prompts}))
        if len(labels) > MOST_LABELS:
            raise MethodError(
                f"the prompts have {len(labels)} distinct answers, too many for labels; use "
                "'unanswered', or pass LabelAccuracy(labels=...)"
            )
        return LabelAccuracy(labels, token_budget)
    if objective == "unanswered":
        return Unanswered(max_new_tokens, token_budget)
    said = [c.text for c in model.generate(positive, max_new_tokens=max_new_tokens)]
    refusals = Counter(text for text in said if is_refusal(text))
    if not refusals:
        raise MethodError(
            "the objective 'log_odds' needs a refusal to look for, but the model refused none "
            f"of {len(positive)} positive prompts; pass LogOdds(positive=..., negative=...)"
        )
    return LogOdds(
        (refusals.most_common(1)[0][0],),
        own={p.text: (p.answer,) for p in prompts},
        token_budget=token_budget,
    )
