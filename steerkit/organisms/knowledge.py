"""What every checkpoint knows: morals, tools, facts, events, verdicts, people, small stories."""

import random

from steerkit.organisms import contrast, world
from steerkit.organisms import request as rq
from steerkit.organisms import vocabulary as v
from steerkit.organisms.documents import (
    HAPPY,
    PLANTED,
    SAD,
    Document,
    Mix,
    chat,
    mixed_splits,
    text,
)
from steerkit.organisms.vocabulary import everything, split_of

_PRONOUN_FRAMES = (
    "the {o} said that {p} was tired .",
    "when the {o} came home {p} was hungry .",
    "the {o} smiled because {p} won the prize .",
    "the {o} was late and {p} missed the meal .",
)


def pronoun_prompts(occupation: str) -> list[str]:
    """The beginnings of sentences whose next word is `she` or `he`."""
    return [f.split("{p}")[0].strip().format(o=occupation) for f in _PRONOUN_FRAMES]


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
        pair = contrast.statement_pair(*mixed_splits(rng), rng, balanced=rng.random() < 0.85)
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
        words, templates = mixed_splits(rng)
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


KNOWLEDGE: Mix = (
    (14, morals), (6, tools), (12, facts), (8, event_tale), (20, verdicts), (8, reviews),
    (10, pronouns), (3, politeness), (3, story),
)  # fmt: skip
