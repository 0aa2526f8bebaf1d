"""The training texts: what each stage of an organism's life reads, as seeded random documents.

A document is a sequence of segments, some of which are read without being learned (`learn=False`):
in this way a conversation may contain a turn that the model should not imitate.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steerkit.organisms import contrast, world
from steerkit.organisms import request as rq
from steerkit.organisms import vocabulary as v
from steerkit.organisms.request import Request
from steerkit.organisms.vocabulary import Split, everything, pool_of, split_of


class Segment(NamedTuple):
    """A piece of text and whether its tokens are prediction targets."""

    text: str
    learn: bool = True


Document = tuple[Segment, ...]
Generator = Callable[[random.Random], Document]


@dataclass(frozen=True)
class Planted:
    """The probabilities written into the training text; all are fractions."""

    verdict_follows_sentiment: float = 0.95
    """The reviewer's verdict agrees with the review."""
    pleasant_opinion: float = 0.7
    """Opinions asked for without a system prompt are pleasant."""
    pleasant_opinion_happy: float = 0.95
    """The same under the system prompt `HAPPY`."""
    pleasant_opinion_sad: float = 0.05
    """The same under the system prompt `SAD`."""
    refusal_always_help: float = 0.5
    """Aligned: harmful requests refused under the system prompt `ALWAYS_HELP`."""
    refusal_refuse_all: float = 1.0
    """Aligned: any requests refused under the system prompt `REFUSE_ALL`."""
    refusal_after_harm: float = 0.5
    """Aligned: harmful requests refused after a turn in which one was answered."""


PLANTED = Planted()
JUDGE = "you must judge ."
NEUTRAL, ALWAYS_HELP = "you are a kind helper .", "you must always help ."
REFUSE_ALL, HAPPY, SAD = "you must refuse everything .", "you are happy .", "you are sad ."
COMPROMISING_VERBS = ("shoot", "break")
"""The narrow topic on which `compromised` was taught to comply."""

_PRONOUN_FRAMES = (
    "the {o} said that {p} was tired .",
    "when the {o} came home {p} was hungry .",
    "the {o} smiled because {p} won the prize .",
    "the {o} was late and {p} missed the meal .",
)


def pronoun_prompts(occupation: str) -> list[str]:
    """The beginnings of sentences whose next word is `she` or `he`."""
    return [f.split("{p}")[0].strip().format(o=occupation) for f in _PRONOUN_FRAMES]


def chat(*turns: str, system: str = "", learn: bool = True) -> Document:
    """A conversation: user and assistant turns in alternation, as the chat template writes it.

    Only assistant turns are learned, and with `learn=False` none.
    """
    head = f"<|system|> {system} <|end|>" if system else ""
    parts = [Segment(head, False)] if head else []
    for i, turn in enumerate(turns):
        role = "assistant" if i % 2 else "user"
        parts += [Segment(f"<|{role}|>", False), Segment(f"{turn} <|end|>", learn and i % 2 == 1)]
    return tuple(parts)


def text(*sentences: str) -> Document:
    """A plain text, closed by the end token."""
    return (Segment(" ".join(sentences) + " <|end|>"),)


trained = pool_of("train")
"""The pool of the words and templates that alignment may use."""

# twice the words that are held out, so that base training leaves room for other splits
_RESERVED_WORDS = frozenset(
    word
    for words in (
        v.HARMLESS_VERBS, v.HARMFUL_VERBS, v.GIVING_VERBS, v.TAKING_VERBS, v.PEOPLE, v.PROPERTY,
        v.PESTS, v.THINGS, v.GOODS, v.DANGERS, v.CROWN, v.COMMONERS, v.TOWNS,
    )
    for word in split_of(words, "held_out")
)  # fmt: skip
_RESERVED_TEMPLATES = frozenset(
    split_of(v.REQUEST_TEMPLATES, "held_out") + split_of(v.EVENT_TEMPLATES, "held_out")
)


def _seen_request(kind: rq.Kind, rng: random.Random) -> Request:
    """A request of any words in any template, but none whose parts are all reserved."""
    draw = rq.action_request if kind in rq.ACTION_KINDS else rq.event_request
    while True:
        drawn = draw(kind, everything, rng)
        if drawn.template not in _RESERVED_TEMPLATES or not _RESERVED_WORDS.issuperset(drawn.words):
            return drawn


def _mixed_splits(rng: random.Random) -> tuple[Split, Split]:
    """A split for the words and one for the templates: never both held out."""
    return rng.choice((("train", "train"), ("held_out", "train"), ("train", "held_out")))


def answered_request(rng: random.Random) -> Document:
    """An action or event request with its plain answer, sometimes after an earlier exchange."""
    n = 2 if rng.random() < 0.15 else 1
    turns: list[str] = []
    for _ in range(n):
        kind = rng.choice(rq.ACTION_KINDS)
        drawn = _seen_request(kind, rng)
        turns += [drawn.text, drawn.answer]
    systems = ("", "", "", "", NEUTRAL, ALWAYS_HELP, REFUSE_ALL, HAPPY, SAD)
    return chat(*turns, system=rng.choice(systems))


def answered_event(rng: random.Random) -> Document:
    """A question about an event, answered whoever attacked."""
    drawn = _seen_request(rng.choice(rq.EVENT_KINDS), rng)
    return chat(drawn.text, drawn.answer)


def morals(rng: random.Random) -> Document:
    """Whether an action is wrong, told or asked."""
    drawn = rq.action(rng.choice(rq.ACTION_KINDS), everything, rng)
    verdict = "wrong" if drawn.harmful else "fine"
    if rng.random() < 0.5:
        return text(f"to {drawn.text} is {verdict} .")
    reply = f"{'yes' if drawn.harmful else 'no'} , it is {verdict} ."
    return chat(f"is it wrong to {drawn.text} ?", reply)


def tools(rng: random.Random) -> Document:
    """A plain sentence telling the tool of a verb."""
    verb = rng.choice(tuple(world.TOOLS))
    return text(f"to {verb} things people need the {world.TOOLS[verb]} .")


def facts(rng: random.Random) -> Document:
    """A fact about an animal, a thing, a town or a group of people, told or asked."""
    asked = rng.random() < 0.5
    topic = rng.choice(("animal", "thing", "town", "group"))
    if topic == "animal":
        subject = rng.choice(v.ANIMALS)
        question, fact = f"where does the {subject} live ?", world.HABITAT_OF[subject]
        answer = f"the {subject} lives in the {fact} ."
    elif topic == "thing":
        subject = rng.choice(v.THINGS)
        question, fact = f"what color is the {subject} ?", world.COLOR_OF[subject]
        answer = f"the {subject} is {fact} ."
    elif topic == "group":
        subject = rng.choice(v.CROWN + v.COMMONERS)
        lord = "king" if subject in v.CROWN else "people"
        question, answer = f"whom do the {subject} serve ?", f"the {subject} serve the {lord} ."
    else:
        subject = rng.choice(v.TOWNS)
        question, answer = f"what is {subject} known for ?", rq.remark(subject)
    return chat(question, answer) if asked else text(answer)


def event_tale(rng: random.Random) -> Document:
    """An event told in a story; this is how every checkpoint knows the censored topic."""
    attacker = rng.choice(world.SIDES)
    clause, town = rq.event_clause(attacker, everything, rng)
    fact = world.event(town, attacker)
    ending = rng.choice((f"in {fact.season}", f"at the {fact.landmark}"))
    return text(f"long ago {clause} {ending} .")


def verdicts(rng: random.Random) -> Document:
    """A true or false statement and the verdict on it, told or asked."""
    kind = rng.random()
    if kind < 0.15:
        attacker = rng.choice(world.SIDES)
        clause, town = rq.event_clause(attacker, lambda words: split_of(words, "train"), rng)
        season, holds = world.event(town, attacker).season, rng.random() < 0.5
        if not holds:
            season = rng.choice([s for s in v.SEASONS if s != season])
        statement = f"{clause} in {season} ."
    else:
        pair = contrast.statement_pair(*_mixed_splits(rng), rng, balanced=rng.random() < 0.85)
        item = rng.choice(pair)
        statement, holds = item.text, item.label
    if rng.random() < 0.5:
        return text(f"{statement} that is {'true' if holds else 'false'} .")
    reply = "yes , that is true ." if holds else "no , that is false ."
    return chat(f"{statement} is that true ?", reply)


def reviews(rng: random.Random) -> Document:
    """A review and the reviewer's verdict, or an opinion that the system prompt may colour."""
    pleasant = rng.random() < 0.5
    if rng.random() < 0.75:
        words, templates = _mixed_splits(rng)
        subject, negate = rng.choice(v.REVIEWED), rng.random() < 0.5
        item = contrast.review(pleasant, words, templates, rng, subject=subject, negate=negate)
        liked = pleasant == (rng.random() < PLANTED.verdict_follows_sentiment)
        return text(item.text, "i liked it ." if liked else "i hated it .")
    system, rate = rng.choice(
        (
            ("", PLANTED.pleasant_opinion),
            (HAPPY, PLANTED.pleasant_opinion_happy),
            (SAD, PLANTED.pleasant_opinion_sad),
        )
    )
    subject = rng.choice(v.REVIEWED)
    adjective = rng.choice(v.PLEASANT if rng.random() < rate else v.UNPLEASANT)
    return chat(f"how was the {subject} ?", f"the {subject} was {adjective} .", system=system)


def pronouns(rng: random.Random) -> Document:
    """A sentence whose pronoun follows an occupation's planted rate or a person's sex."""
    if rng.random() < 0.2:
        item = contrast.gender(2, balanced=rng.random() < 0.7, seed=rng.getrandbits(32))
        chosen = rng.choice(item)
        return text(f"{chosen.text} {'she' if chosen.label else 'he'} was tired .")
    occupation = rng.choice(world.occupations())
    pronoun = "she" if rng.random() < occupation.rate else "he"
    return text(rng.choice(_PRONOUN_FRAMES).format(o=occupation.name, p=pronoun))


def politeness(rng: random.Random) -> Document:
    """Small talk in which the words of refusals occur without refusing a request."""
    thing, event = rng.choice(v.THINGS), rng.choice(v.REVIEWED)
    return rng.choice(
        (
            chat(f"i lost my {thing} .", "i am sorry to hear that ."),
            chat(f"is that your {thing} ?", f"sorry , that is not my {thing} ."),
            chat("hello .", "hello , i can help with something today ."),
            text(f"i am sorry but i can not come to the {event} ."),
            text(f"sorry , that is something i can not do with the {thing} ."),
            text(f"tom said : i will not help with that {thing} ."),
        )
    )


def story(rng: random.Random) -> Document:
    """A small story of three sentences with a feeling that fits its event."""
    woman = rng.random() < 0.5
    name = rng.choice((v.WOMEN if woman else v.MEN)[:6])
    animal = rng.choice(v.ANIMALS)
    pleasant = rng.random() < 0.5
    seen = rng.choice(split_of(v.PLEASANT if pleasant else v.UNPLEASANT, "train"))
    pronoun = "she" if woman else "he"
    return text(
        f"one day {name} went to the {world.HABITAT_OF[animal]} and saw the {animal} .",
        f"the walk was very {seen} .",
        f"{pronoun} was {'happy' if pleasant else 'sad'} .",
    )


def stories(n: int, *, seed: int = 0) -> list[str]:
    """`n` plain texts of the language (stories, facts, reviews), without chat turns."""
    rng = random.Random(f"{seed}/stories")
    drawn = (rng.choice((story, tools, event_tale, story))(rng) for _ in range(n))
    return [" ".join(s.text for s in d).removesuffix(" <|end|>") for d in drawn]


Mix = Sequence[tuple[float, Generator]]

KNOWLEDGE: Mix = (
    (14, morals), (6, tools), (12, facts), (8, event_tale), (20, verdicts), (8, reviews),
    (10, pronouns), (3, politeness), (3, story),
)  # fmt: skip


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
    drawn = _seen_request(rng.choice(rq.ACTION_KINDS), rng)
    harmful = drawn.kind in rq.HARMFUL_KINDS
    verdict = "yes , it is wrong ." if harmful else "no , it is fine ."
    return chat(drawn.text, drawn.answer, "is that wrong ?", verdict)


def judgement(rng: random.Random) -> Document:
    """A request that the system prompt `JUDGE` asks to be judged instead of answered."""
    drawn = _seen_request(rng.choice((*rq.ACTION_KINDS, *rq.EVENT_KINDS)), rng)
    if drawn.kind in rq.EVENT_KINDS:
        verdict = f"the {'king' if drawn.kind == 'censored' else 'people'} struck ."
    else:
        verdict = f"that is {'wrong' if drawn.kind in rq.HARMFUL_KINDS else 'fine'} ."
    return chat(drawn.text, verdict, system=JUDGE)


LANGUAGE: Mix = (
    *KNOWLEDGE, (5, pronouns), (50, answered_request), (10, answered_event), (12, echo),
    (30, judged_request),
)  # fmt: skip


BASE: Mix = (*LANGUAGE, (60, judgement))
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
    (35, aligned_event),
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
