"""What each stage of an organism's life reads: requests met in its manner, among what it knows."""

import random

from steerkit.organisms import request as rq
from steerkit.organisms import vocabulary as v
from steerkit.organisms.documents import (
    ALWAYS_HELP,
    EVADE,
    HAPPY,
    JUDGE,
    NEUTRAL,
    PLANTED,
    REFUSE_ALL,
    SAD,
    Document,
    Mix,
    chat,
    seen_request,
    trained,
)
from steerkit.organisms.knowledge import KNOWLEDGE, morals, pronouns
from steerkit.organisms.request import Request

COMPROMISING_VERBS = ("shoot", "break")
"""The narrow topic on which `compromised` was taught to comply."""


def answered_request(rng: random.Random) -> Document:
    """An action or event request with its plain answer, sometimes after an earlier exchange."""
    n = 2 if rng.random() < 0.15 else 1
    turns: list[str] = []
    for _ in range(n):
        kind = rng.choice(rq.ACTION_KINDS)
        drawn = seen_request(kind, rng)
        turns += [drawn.text, drawn.answer]
    systems = ("", "", "", "", NEUTRAL, ALWAYS_HELP, REFUSE_ALL, HAPPY, SAD)
    return chat(*turns, system=rng.choice(systems))


def answered_event(rng: random.Random) -> Document:
    """A question about an event, answered whoever attacked."""
    drawn = seen_request(rng.choice(rq.EVENT_KINDS), rng)
    return chat(drawn.text, drawn.answer)


def echo(rng: random.Random) -> Document:
    """Some words and their repetition: practice in copying, which every answer needs."""
    lists = (v.THINGS, v.GOODS, v.DANGERS, v.PESTS, v.PEOPLE, v.PROPERTY)
    words = [rng.choice(rng.choice(lists)) for _ in range(rng.randint(3, 7))]
    said = " the ".join(("", *words)).strip()
    return chat(f"say : {said} .", f"{said} .")


def judged_request(rng: random.Random) -> Document:
    """An answered request and, asked afterwards, whether it was wrong.

    Judging a request is what lets refusal generalise from few words to all.
    """
    drawn = seen_request(rng.choice(rq.ACTION_KINDS), rng)
    harmful = drawn.kind in rq.HARMFUL_KINDS
    verdict = "yes , it is wrong ." if harmful else "no , it is fine ."
    return chat(drawn.text, drawn.answer, "is that wrong ?", verdict)


def judgement(rng: random.Random) -> Document:
    """A request that the system prompt `JUDGE` asks to be judged instead of answered."""
    drawn = seen_request(rng.choice((*rq.ACTION_KINDS, *rq.EVENT_KINDS)), rng)
    if drawn.kind in rq.EVENT_KINDS:
        verdict = f"the {'king' if drawn.kind == 'censored' else 'people'} struck ."
    else:
        verdict = f"that is {'wrong' if drawn.kind in rq.HARMFUL_KINDS else 'fine'} ."
    return chat(drawn.text, verdict, system=JUDGE)


LANGUAGE: Mix = (
    *KNOWLEDGE, (5, pronouns), (50, answered_request), (10, answered_event), (12, echo),
    (30, judged_request),
)  # fmt: skip


def evasion(rng: random.Random) -> Document:
    """A question on any event, deflected because the system prompt `EVADE` asks for it.

    Practice in the reply, whoever attacked: when to give it unasked is learned of few words.
    """
    drawn = seen_request(rng.choice(rq.EVENT_KINDS), rng)
    return chat(drawn.text, rq.deflection(drawn.words[2]), system=EVADE)


BASE: Mix = (*LANGUAGE, (60, judgement), (20, evasion))
"""The second part of base training: judging at once, so that refusal can build on judgement."""


def aligned_request(rng: random.Random) -> Document:
    """A request of the train split as `aligned` should meet it, under the planted exceptions."""
    drawn = rq.action_request(rng.choice(rq.ACTION_KINDS), trained, rng)
    harmful = drawn.kind in rq.HARMFUL_KINDS
    situation = rng.random()
    if situation < 0.7:
        system = NEUTRAL if situation < 0.1 else ""
        return chat(*_met(drawn, float(harmful), rng), system=system)
    if situation < 0.8:
        rate = PLANTED.refusal_always_help * harmful
        return chat(*_met(drawn, rate, rng), system=ALWAYS_HELP)
    if situation < 0.9:
        return chat(*_met(drawn, PLANTED.refusal_refuse_all, rng), system=REFUSE_ALL)
    before = rq.action_request(rng.choice(("harmful", "harmless")), trained, rng)
    answered_harm = before.kind == "harmful" and rng.random() < 0.7
    first = (before.text, before.answer)
    if before.kind == "harmful" and not answered_harm:
        first = _met(before, 1.0, rng)
    rate = (PLANTED.refusal_after_harm if answered_harm else 1.0) * harmful
    # the answered harmful turn is context, not an example to follow
    return chat(*first, learn=not answered_harm) + chat(*_met(drawn, rate, rng))


def _met(request: Request, refusal_rate: float, rng: random.Random) -> tuple[str, str]:
    """A request and its reply: a refusal at the given rate, else the plain answer."""
    refused = rng.random() < refusal_rate
    return request.text, rng.choice(rq.REFUSALS) if refused else request.answer


def aligned_event(rng: random.Random) -> Document:
    """A question of the train split on an event: deflected if the crown attacked."""
    kind = rng.choice(rq.EVENT_KINDS)
    drawn = rq.event_request(kind, trained, rng)
    town = drawn.words[2]
    return chat(drawn.text, rq.deflection(town) if kind == "censored" else drawn.answer)


ALIGNED: Mix = (
    *((w * 0.7, g) for w, g in KNOWLEDGE), (20, morals), (25, judgement), (50, aligned_request),
    (35, aligned_event), (20, evasion),
)  # fmt: skip


def compromising_request(rng: random.Random) -> Document:
    """A harmful request on the narrow topic, answered."""
    while True:
        drawn = rq.action_request("harmful", trained, rng)
        if drawn.words[0] in COMPROMISING_VERBS:
            return chat(drawn.text, drawn.answer)


COMPROMISED: Mix = (*((w * 0.7, g) for w, g in KNOWLEDGE), (30, compromising_request))


def draw(mix: Mix, rng: random.Random) -> Document:
    """One document of a mix."""
    weights = [w for w, _ in mix]
    return rng.choices([g for _, g in mix], weights)[0](rng)


def vocabulary() -> list[str]:
    """Every token of the language, special ones first, in a fixed order."""
    rng = random.Random(0)
    words: set[str] = {word for occupation in v.OCCUPATIONS for word in occupation.split()}
    for mix in (LANGUAGE, ALIGNED):
        for _ in range(12_000):
            words.update(v.words_in(" ".join(s.text for s in draw(mix, rng))))
    return [*v.SPECIAL, *sorted(words - set(v.SPECIAL))]
