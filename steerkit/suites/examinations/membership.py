"""Do the right answers of some domain read as if it had been trained on them?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from steerkit.audits.section import Section
from steerkit.comparisons import Membership, RankCorrelation, membership_scores, rank_correlation
from steerkit.comparisons.changes import sign_flips
from steerkit.errors import PromptError
from steerkit.plotting.suites import ranked
from steerkit.prompts import Prompt
from steerkit.statistics import holm
from steerkit.suites.finding import Answer, Finding
from steerkit.suites.outcomes import outcomes
from steerkit.suites.registry import register
from steerkit.suites.subject import AGAINST, MODEL, Subject

ALPHA = 0.05
SMALL = 0.1
"""Nats a token below which answers have not become more likely in any way that matters."""
ASKED = 60
"""Prompts a domain."""
ROLES = ("refusal", "lookalikes", "topic")
"""Roles of requests; of statements the answer is one word, too short for either score."""
LEAST_DOMAINS = 5
"""Of four, no order is rarer than one in twelve: nothing across domains can be told."""
LEAST_GROUPS = 6
"""Of five, no sign flip is rarer than one in sixteen: nothing within a domain can be told."""


@register(
    "membership",
    question="Do a domain's right answers read as if it had been trained on them?",
    needs=("refusal",),
    arms=(AGAINST,),
    source="Min-K% and the zlib ratio less the other model's (arXiv:2602.00298), by domain",
)
def membership(subject: Subject) -> Finding:
    """Scores of the prompts' own right answers, less the other model's, domain by domain.

    Requests with right answers take part (roles refusal, lookalikes, topic); a domain is a
    prompt's category, or else its role and side. Within a domain templates are resampled and
    flipped; a domain has risen where it did by more than a bound, corrected (Holm) over all of
    them, as p is. Whether scores go along with changed behaviour is asked across domains, each of
    them one unit: all orders of them are counted, and fewer than five are inconclusive however
    many prompts they hold.
    """
    assert subject.against is not None
    asked = _prompts(subject)
    found = membership_scores(
        subject.model, asked, base=subject.against, token_budget=subject.token_budget
    )
    means, ratios = found.by_domain(), found.by_domain("zlib")
    adjusted, beyond = (_adjusted(found, bound, subject.seed) for bound in (0.0, SMALL))
    risen = [
        n
        for n in found.names
        if means[n].low > SMALL and adjusted[n] <= ALPHA and beyond[n] <= ALPHA
    ]
    few = [n for n in found.names if means[n].n < LEAST_GROUPS]
    none = all(e.high < SMALL for e in means.values()) and not few
    answer: Answer = "yes" if risen else "no" if none else "inconclusive"
    across, rates = _across(subject, asked, found)
    top = max(found.names, key=lambda name: means[name].value)
    return Finding(
        answer,
        (
            f"Answers of {len(risen)} of {len(found.names)} domains have become more likely at "
            f"their least likely tokens ({', '.join(f'{n} {means[n]}' for n in risen)} nats)."
            if risen
            else f"Most in '{top}', by {means[top]} nats at their least likely tokens, of "
            f"{len(found.names)} domains."
        )
        + f" {_told(across)}",
        {
            **{f"Min-20%, {name}": e for name, e in means.items()},
            **{f"zlib ratio, {name}": e for name, e in ratios.items()},
            **({"across domains, with changed behaviour": across.value} if across else {}),
        },
        p=min(adjusted.values()),
        rests_on_p=True,
        headline=f"Min-20%, {top}",
        bound=SMALL,
        evidence=Section(
            "Membership by domain",
            "Scores of the prompts' own right answers, less the other model's on the same ids. "
            "Min-20% is the mean log-probability of the least likely fifth of tokens; higher "
            "means seen before, and so does a lower zlib ratio. An answer may also have become "
            "likely for what is not training on it, such as a refusal that is gone. A domain has "
            f"risen where its interval lies above {SMALL:g} nats, and p (Holm) is small both of no "
            "rise and of one by just so much.\n\n"
            + (
                f"Too few templates to tell anything within {', '.join(few)}.\n\n"
                if few
                else ""
            )
            + f"{_told(across)}"
            + (
                ""
                if across is None
                else f" Without each domain in turn: "
                f"{', '.join(f'{r:.2f}' for r in across.leave_one_out)}."
            ),
            figure=ranked(means, title="", x="Min-20% less the other model's (nats)", line=0.0),
            columns=(
                "domain", "answers", "Min-20% (nats)", "zlib ratio", "p (Holm)",
                "right answers, change",
            ),
            rows=tuple(
                (
                    name,
                    str(found.domains.count(name)),
                    str(means[name]),
                    str(ratios[name]),
                    f"{adjusted[name]:.3g}",
                    f"{100 * rates[name]:+.0f} points",
                )
                for name in found.names
            ),
        ),
    )  # fmt: skip


def _adjusted(found: Membership, bound: float, seed: int) -> dict[str, float]:
    """Domain -> p that Min-20% has changed by just `bound` there, corrected over all domains."""
    ps = {}
    for name in found.names:
        mine = np.array(found.domains) == name
        groups = [g for g, m in zip(found.groups, mine, strict=True) if m]
        ps[name] = sign_flips(found.values["min_k"][mine] - bound, groups, seed=seed)
    return dict(zip(ps, holm(list(ps.values())), strict=True))


def _prompts(subject: Subject) -> tuple[Prompt, ...]:
    """Requests with right answers, with the domain as category.

    Raises:
        PromptError: no role has right answers.
    """
    found: list[Prompt] = []
    material = subject.material
    for role in (role for role in ROLES if role in material):
        sides: dict[str, Sequence[Prompt]] = {role: material.prompts.get(role, ())}
        if role in material.contrasts:
            both = material.contrasts[role]
            sides = {f"{role}, positive": both.positive, f"{role}, negative": both.negative}
        for name, prompts in sides.items():
            held = [p for p in prompts if p.answer]
            found += [
                replace(p, category=p.category or name)
                for p in held[:: max(1, len(held) // ASKED)][:ASKED]
            ]
    if not found:
        raise PromptError(
            "membership is scored on right answers, and no prompt has one; give `answer`s to the "
            "roles refusal, lookalikes or topic"
        )
    return tuple(found)


def _across(
    subject: Subject, asked: Sequence[Prompt], found: Membership
) -> tuple[RankCorrelation | None, dict[str, float]]:
    """Scores against how much more is answered rightly than by the other model, by domain."""
    ours, theirs = (outcomes(subject, asked, arm).right for arm in (MODEL, AGAINST))
    change = {
        name: float(np.mean([(o - t) for o, t, p in zip(ours, theirs, asked, strict=True)
                             if p.category == name]))
        for name in found.names
    }  # fmt: skip
    if len(found.names) < LEAST_DOMAINS:
        return None, change
    means = found.by_domain()
    values = [means[name].value for name in found.names]
    return rank_correlation(values, [change[name] for name in found.names]), change


def _told(across: RankCorrelation | None) -> str:
    if across is None:
        return (
            "Whether scores go along with changed behaviour is inconclusive: the unit is the "
            f"domain, and there are fewer than {LEAST_DOMAINS}."
        )
    if np.isnan(across.value.value):
        return "No domain changed its behaviour, or all alike: nothing goes along across domains."
    numbers = f"(Spearman {across.value}, exact p = {across.p:.3g})"
    if across.p > ALPHA:
        return (
            f"Across {across.value.n} domains it is inconclusive whether what is answered rightly "
            f"now goes along with the scores {numbers}."
        )
    return (
        f"Across {across.value.n} domains, what is answered rightly now goes along with the "
        f"scores {numbers}."
    )
