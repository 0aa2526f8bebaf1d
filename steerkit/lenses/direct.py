"""Direct logit attribution: which component wrote what the unembedding reads.

The last state is the sum of the embedding and of every block's contributions, and the final
norm with its scale held at this token is linear, so a difference of logits is a sum over
components (Elhage et al. 2021, A Mathematical Framework for Transformer Circuits). It counts
what a component writes itself, not what later ones make of it; patching counts both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit import __version__
from steerkit.direction import Direction
from steerkit.errors import MethodError, ModelError, PromptError
from steerkit.lenses.direct_result import LogitAttribution
from steerkit.lenses.maps import Head
from steerkit.lenses.metrics import Answers, Text, first_tokens
from steerkit.lenses.pairs import Pairs, groups_of, read_places, read_positions, shown, tokenized
from steerkit.models import LanguageModel
from steerkit.models.heads import HeadPoint, Heads, find_heads
from steerkit.models.patching import Place, visited
from steerkit.models.tail import Tail, find_tail, frozen
from steerkit.site import Site

PROMOTED = 10
"""Tokens that a direction reads towards and away, each."""
EMBEDDING = Site(0, "resid_pre")


def direct_logit_attribution(
    model: LanguageModel,
    prompts: Sequence[Text],
    answers: Answers | None = None,
    *,
    direction: Direction | None = None,
    heads: bool = False,
    position: int = -1,
    groups: Sequence[str] | None = None,
    token_budget: int = 4096,
) -> LogitAttribution:
    """Decompose a difference of two answers' logits, or a direction's projection.

    Of answers: logit(first) - logit(second) of their first tokens, which is their log-odds,
    before a softcap where the model has one. Of a direction: the projection of its site's
    stream on the unit vector, from the components that come before that site, and the tokens
    that the direction promotes through the unembedding.

    Args:
        model: plain or steered; what a view's interventions add is a component of its own.
        prompts: what is run, without the answers that they carry.
        answers: two answers for all prompts, or two for each.
        direction: instead of answers.
        heads: split each attention contribution into heads and the projection's bias.
        position: from the end; -1 is the last prompt token, which predicts the answer.
        groups: what intervals resample; by default the prompts' groups, else each prompt.
        token_budget: padded tokens a forward pass.

    Raises:
        MethodError: neither answers nor a direction, or both.
        PromptError: answers or groups that do not fit the prompts.
        SiteError: heads that cannot be told apart.
        ModelError: a model whose components do not add up to its logits.
    """
    if (answers is None) == (direction is None):
        raise MethodError(
            "direct_logit_attribution decomposes either answers=(first, second) or a "
            "direction=; give one of the two"
        )
    read_places(model, None, None)
    items = tokenized(model, prompts)
    own = tuple(groups) if groups is not None else groups_of(prompts)
    if len(own) != len(items):
        raise PromptError(f"one group a prompt: {len(items)} prompts, got {len(own)} groups")
    both = Pairs(items, items, own, ())
    read_positions(both, [position])
    if short := [i for i, item in enumerate(items) if len(item) < -position]:
        raise PromptError(f"prompts {short[:5]} have no position {position}; they are shorter")
    points = find_heads(model.engine) if heads else ()
    end = Site(model.info.n_layers - 1) if direction is None else direction.site
    places = _places(model, end, points)
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    if direction is None:
        assert answers is not None
        tail, tokens = _decomposable(model), first_tokens(model, prompts, answers)
        kind, unit = "logit difference", "nats, before the softcap" if tail.cap else "nats"
    else:
        direction.check(model.info)
        kind, unit, words = "projection", "activation units", promoted(model, direction)

    def reading(x: Tensor, rows: Tensor) -> _Reading:
        if direction is None:
            return _answers(tail, tokens[rows], x)
        return _projection(direction.unit, x)

    names = _names(places, points, ends=direction is None, steered=model.table is not None)
    values, total = np.zeros((len(items), len(names))), np.zeros(len(items))
    kept = tuple(dict.fromkeys((*places, *_beside(places), end)))
    for group in both.batches(model, model.info.d_model * (len(kept) + 1), token_budget):
        seen = visited(model, both.batch(model, "clean", group), keep=kept, heads=points)
        here = {place: stream[:, position] for place, stream in seen.streams.items()}
        with torch.no_grad():
            read = reading(here[end], torch.tensor(list(group)))
            found = [read.of(part) for place in places for part in _parts(place, points, here)]
        if direction is None:
            found.append(read.constant[:, None])
        if model.table is not None:
            found.append((read.total - torch.cat(found, 1).sum(1))[:, None])
        values[group] = torch.cat(found, 1).cpu().numpy()
        total[group] = read.total.cpu().numpy()
    result = LogitAttribution(
        kind=kind,
        unit=unit,
        components=names,
        values=values,
        total=total,
        groups=own,
        promoted=words,
        provenance={
            "model": model.info.to_json(),
            "steering": list(model.steering),
            "position": position,
            "steerkit": __version__,
        },
    )
    if result.error > (1e-3 if model.info.dtype in ("float32", "float64") else 0.1):
        raise ModelError(
            f"the contributions miss the {kind} of {model.info.name} by {result.error:.2g} of "
            "their size: something between its blocks is not a sum of attention and MLP, so it "
            "cannot be decomposed"
        )
    return result


def promoted(model: LanguageModel, direction: Direction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens whose logits a direction raises most, and those it lowers most, strongest first."""
    read = model.read_out(direction.unit[None])[0]
    n = min(PROMOTED, len(read))
    towards, away = read.topk(n).indices, (-read).topk(n).indices
    return (
        tuple(shown(model, int(t)) for t in towards),
        tuple(shown(model, int(t)) for t in away),
    )


@dataclass(frozen=True)
class _Reading:
    """What is linear in the last states of some rows, in float64."""

    measure: Callable[[Float[Tensor, "row part d_model"]], Float[Tensor, "row part"]]
    constant: Float[Tensor, "row"]
    total: Float[Tensor, "row"]

    def of(self, part: Tensor) -> Float[Tensor, "row part"]:
        """The values of a contribution, `[row d_model]` or `[row part d_model]`."""
        return self.measure(part[:, None] if part.ndim == 2 else part)


def _answers(tail: Tail, tokens: Int[Tensor, "row 2"], x: Float[Tensor, "row d_model"]) -> _Reading:
    """The difference of two logits of each row, with the final norm's scale held."""
    weights, biases = tail.rows(tokens.flatten())
    reads = (weights[0::2] - weights[1::2]) * tail.scale
    at, made = tail.normed(x)
    norm = frozen(tail.norm, at, made)

    def measure(parts: Tensor) -> Tensor:
        straight = norm.linear(parts.flatten(0, 1)).unflatten(0, parts.shape[:2])
        return (straight * norm.inverse[:, None] * reads[:, None]).sum(-1)

    constant = reads @ norm.constant + (biases[0::2] - biases[1::2]) * tail.scale
    both = tail.raw(x).double().gather(1, tokens.to(x.device))
    return _Reading(measure, constant, both[:, 0] - both[:, 1])


def _projection(unit: Float[Tensor, "d_model"], x: Float[Tensor, "row d_model"]) -> _Reading:
    along = unit.to(x.device, torch.float64)
    total = x.double() @ along
    return _Reading(lambda parts: parts.double() @ along, torch.zeros_like(total), total)


def _decomposable(model: LanguageModel) -> Tail:
    tail = find_tail(model.engine)
    if not tail.direct:
        raise ModelError(
            f"what follows the last block of {model.info.name} is not a norm, an unembedding, a "
            "scale and a softcap, so its logits cannot be decomposed; use a direction= instead"
        )
    return tail


def _places(model: LanguageModel, end: Site, points: Sequence[HeadPoint]) -> tuple[Place, ...]:
    """The components that are summed up in a site, in forward order.

    A block that does not expose its contributions is one component, named by its resid_post.
    """
    if end.stream in ("attn_out", "mlp_out"):
        return (Heads(end.layer) if points and end.stream == "attn_out" else end,)
    if "mlp_out" not in model.info.streams:
        whole = (Site(layer) for layer in range(end.layer + 1))
        return (EMBEDDING, *(block for block in whole if block.order <= end.order))
    every: list[Place] = []
    for layer in range(end.layer + 1):
        every.append(Heads(layer) if points else Site(layer, "attn_out"))
        every.append(Site(layer, "mlp_out"))
    return (EMBEDDING, *(place for place in every if place.order < end.order))


def _beside(places: Sequence[Place]) -> list[Site]:
    """What else is read: what heads add up to, and where a block begins."""
    return [
        Site(place.layer, "attn_out" if isinstance(place, Heads) else "resid_pre")
        for place in places
        if isinstance(place, Heads) or place.stream == "resid_post"
    ]


def _names(
    places: Sequence[Place], points: Sequence[HeadPoint], *, ends: bool, steered: bool
) -> tuple[str, ...]:
    names: list[str] = []
    for place in places:
        if isinstance(place, Heads):
            names += [str(Head(place.layer, head)) for head in range(points[place.layer].n_heads)]
            names.append(f"attn_bias@{place.layer}")
        else:
            block = f"block@{place.layer}" if place.stream == "resid_post" else str(place)
            names.append("embedding" if place == EMBEDDING else block)
    return (*names, *(["bias"] if ends else []), *(["interventions"] if steered else []))


def _parts(place: Place, points: Sequence[HeadPoint], here: Mapping[Place, Tensor]) -> list[Tensor]:
    """What a place adds to the stream: one vector a row, or one a head and what is left."""
    if isinstance(place, Site):
        whole = here[place]
        begins = place.stream == "resid_post"
        return [whole - here[Site(place.layer, "resid_pre")] if begins else whole]
    point, whole = points[place.layer], here[Site(place.layer, "attn_out")].double()
    each = point.into(here[place])
    if point.norm is not None:
        # A post-norm, with the scale that it has at this token.
        held = frozen(
            point.norm, each.sum(1) + point.constant, (whole / point.scale).to(each.dtype)
        )
        each = held.linear(each.flatten(0, 1)).unflatten(0, each.shape[:2])
        each = each * held.inverse[:, None]
    each = each.double() * point.scale
    return [each, whole - each.sum(1)]
