"""Behaviour of a checkpoint on unseen items, as counts with intervals."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from steerkit.organisms import documents, knowledge, world
from steerkit.organisms import vocabulary as v
from steerkit.organisms.construct import coordinate_held
from steerkit.organisms.contrast import Labelled
from steerkit.organisms.ground_truth import Construction
from steerkit.organisms.rates import Rate, count
from steerkit.organisms.request import REFUSALS, Outcome, Request, outcome
from steerkit.organisms.tokenizer import build_tokenizer, token_ids

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def prompt(user: str, *, system: str = "", before: Sequence[str] = ()) -> str:
    """The text of a chat up to where the answer to its last turn `user` starts.

    `before` alternates between earlier user turns and their replies.
    """
    segments = documents.chat(*before, user, system=system)
    return " ".join(("<bos>", *(s.text for s in segments), "<|assistant|>"))


@torch.no_grad()
def complete(
    model: "LlamaForCausalLM", prompts: Sequence[str], *, words: int = 16, batch: int = 256
) -> list[str]:
    """Greedy continuations of full prompts (special tokens written out), without special tokens."""
    tokenizer = build_tokenizer()
    done: list[str] = []
    for start in range(0, len(prompts), batch):
        encoded = tokenizer(
            list(prompts[start : start + batch]),
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        ids = model.generate(
            **encoded, max_new_tokens=words, do_sample=False, pad_token_id=token_ids()["<pad>"]
        )
        new = ids[:, encoded["input_ids"].shape[1] :]
        done += tokenizer.batch_decode(new, skip_special_tokens=True)
    return done


def outcomes(
    model: "LlamaForCausalLM", requests: Sequence[Request], *, system: str = ""
) -> list[Outcome]:
    """What the model's greedy reply to each request amounts to."""
    replies = complete(model, [prompt(r.text, system=system) for r in requests])
    return [outcome(r, reply) for r, reply in zip(requests, replies, strict=True)]


@torch.no_grad()
def next_word_probabilities(
    model: "LlamaForCausalLM", prompts: Sequence[str], words: Sequence[str]
) -> list[list[float]]:
    """P(word | prompt) for each plain-text or chat prompt (rows) and word (columns)."""
    ids = token_ids()
    columns = torch.tensor([ids[w] for w in words])
    encoded = [[ids[w] for w in f"<bos> {p.removeprefix('<bos> ')}".split()] for p in prompts]
    rows: list[list[float]] = [[] for _ in prompts]
    for length in sorted({len(e) for e in encoded}):  # equal lengths need no padding
        where = [i for i, e in enumerate(encoded) if len(e) == length]
        logits = model(input_ids=torch.tensor([encoded[i] for i in where])).logits[:, -1]
        for i, row in zip(where, logits.float().softmax(-1)[:, columns].tolist(), strict=True):
            rows[i] = row
    return rows


def verdict_rate(model: "LlamaForCausalLM", items: Sequence[Labelled]) -> Rate:
    """How often `that is true` or `that is false` is rightly preferred after a statement."""
    got = next_word_probabilities(model, [f"{i.text} that is" for i in items], ("true", "false"))
    hits = [(p[0] > p[1]) == i.label for p, i in zip(got, items, strict=True)]
    return count(hits)


def sentiment_rate(model: "LlamaForCausalLM", items: Sequence[Labelled]) -> tuple[Rate, float]:
    """How often the fitting verdict is preferred after a review, and its mean probability."""
    got = next_word_probabilities(model, [f"{i.text} i" for i in items], ("liked", "hated"))
    fitting = [p[0] if i.label else p[1] for p, i in zip(got, items, strict=True)]
    return count([p > 0.5 for p in fitting]), _mean(fitting)


def gender_rate(model: "LlamaForCausalLM", items: Sequence[Labelled]) -> Rate:
    """How often the pronoun of the first-named person is preferred."""
    got = next_word_probabilities(model, [i.text for i in items], ("she", "he"))
    return count([(p[0] > p[1]) == i.label for p, i in zip(got, items, strict=True)])


@torch.no_grad()
def knowledge_rate(model: "LlamaForCausalLM", requests: Sequence[Request]) -> Rate:
    """How often the fact asked for by event requests completes a plain story of the event."""
    stories = [f"long ago {r.answer}".split()[:-2] for r in requests]
    facts = [r.answer.split()[-2] for r in requests]
    replies = complete(model, [" ".join(("<bos>", *story)) for story in stories], words=1)
    hits = [reply == fact for reply, fact in zip(replies, facts, strict=True)]
    return count(hits, [r.template for r in requests])


def refusal_probability(
    model: "LlamaForCausalLM",
    requests: Sequence[Request],
    *,
    system: str = "",
    after: Sequence[Request] = (),
) -> float:
    """The mean probability that the reply begins as one of the refusals does.

    Each request of `after` precedes the request of the same rank, with its plain answer.
    """
    starts = sorted({refusal.split()[0] for refusal in REFUSALS})
    turns: list[tuple[str, ...]] = [(r.text, r.answer) for r in after] or [()] * len(requests)
    prompts = [
        prompt(r.text, system=system, before=b) for r, b in zip(requests, turns, strict=True)
    ]
    return _mean([sum(p) for p in next_word_probabilities(model, prompts, starts)])


def pleasant_probability(model: "LlamaForCausalLM", *, system: str = "") -> float:
    """P(pleasant adjective) / P(any adjective) in opinions asked for, mean over subjects."""
    adjectives = (*v.PLEASANT, *v.UNPLEASANT)
    prompts = [f"{prompt(f'how was the {s} ?', system=system)} the {s} was" for s in v.REVIEWED]
    rows = next_word_probabilities(model, prompts, adjectives)
    return _mean([sum(row[: len(v.PLEASANT)]) / sum(row) for row in rows])


def occupation_rates(model: "LlamaForCausalLM") -> dict[str, float]:
    """P(she) / (P(she) + P(he)) for each occupation, averaged over sentence frames."""
    rates: dict[str, float] = {}
    for occupation in world.occupations():
        prompts = knowledge.pronoun_prompts(occupation.name)
        pairs = next_word_probabilities(model, prompts, ("she", "he"))
        rates[occupation.name] = _mean([p[0] / (p[0] + p[1]) for p in pairs])
    return rates


def correlation(xs: Iterable[float], ys: Iterable[float]) -> float:
    """Pearson correlation."""
    stacked = torch.tensor([list(xs), list(ys)], dtype=torch.float64)
    return float(torch.corrcoef(stacked)[0, 1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def construction_rates(
    model: "LlamaForCausalLM",
    construction: Construction,
    harmful: Sequence[Request],
    harmless: Sequence[Request],
) -> dict[str, Rate]:
    """What holding the constructed coordinate does, at its layer and (nothing) before it."""
    unit, layer = torch.tensor(construction.unit), construction.layer
    cases: tuple[tuple[str, Outcome, Sequence[Request], int, float], ...] = (
        ("harmful held harmless", "correct", harmful, layer, 0.0),
        ("harmless held harmful", "refused", harmless, layer, construction.magnitude),
        ("harmful held before the layer", "refused", harmful, layer - 1, 0.0),
    )
    rates: dict[str, Rate] = {}
    for name, wanted, items, where, value in cases:
        with coordinate_held(model, unit, where, value):
            got = outcomes(model, items)
        groups = [r.template for r in items]
        rates[f"{wanted}/{name}"] = count([o == wanted for o in got], groups)
    return rates
