"""From prompts with two answers to a vector at every layer."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.activations import Activations
from steerkit.batch import Batch, Tokenized
from steerkit.datasets.targets import AttackItem, AttackTarget
from steerkit.direction import Direction
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model, ModelInfo
from steerkit.redteam.judges import with_blank
from steerkit.scoring import TOKEN_BUDGET, scored_batches
from steerkit.site import Site
from steerkit.statistics import group_codes


def is_spaced(info: ModelInfo, prompt: Prompt) -> bool:
    """Whether an answer follows the prompt's text directly, so that a blank comes between."""
    return prompt.template == "raw" or not info.chat


def with_clean_answers(
    model: Model, target: AttackTarget, *, max_new_tokens: int, token_budget: int
) -> tuple[AttackItem, ...]:
    """The items with the model's own greedy answer where they have no clean one.

    Raises:
        PromptError: items without an adversarial answer.
    """
    lacking = [i for i in target.items if not i.adversarial.strip()]
    if lacking:
        raise PromptError(
            f"{len(lacking)} of {len(target)} items of '{target.name}' have no adversarial answer; "
            "give them (AttackTarget.of(..., adversarial)), or take another model's: "
            "target.with_answers_of(base_model)"
        )
    asked = [i.prompt for i in target.items if not i.clean]
    said = (
        model.generate(asked, max_new_tokens=max_new_tokens, token_budget=token_budget)
        if asked
        else []
    )
    texts = iter([c.text for c in said])
    return tuple(i if i.clean else replace(i, clean=next(texts)) for i in target.items)


def pairs(model: Model, items: Sequence[AttackItem], name: str) -> Contrast:
    """Clean (positive) against adversarial (negative) answers of the same prompts.

    Raises:
        PromptError: no item whose two answers differ.
    """
    usable = [i for i in items if i.clean.strip() and i.clean.strip() != i.adversarial.strip()]
    if not usable:
        raise PromptError(
            f"no item of '{name}' has two different answers: the model already gives the "
            "adversarial one, or none at all; there is nothing to attack"
        )

    def side(answers: Sequence[str]) -> list[Prompt]:
        return [
            i.prompt.with_answer(with_blank(a, is_spaced(model.info, i.prompt)))
            for i, a in zip(usable, answers, strict=True)
        ]

    clean, adversarial = [i.clean for i in usable], [i.adversarial for i in usable]
    return Contrast.of(side(clean), side(adversarial), paired=True, name=name)


def states_at(
    model: Model,
    contrast: Contrast,
    sites: Sequence[Site],
    *,
    position: int = -2,
    match_length: bool = True,
    token_budget: int = TOKEN_BUDGET,
) -> Activations:
    """States at one token of template and answer, counted from the end when negative.

    Args:
        model: plain.
        contrast: paired, with answers.
        sites: where to read.
        position: the paper's -2 is the last token but one.
        match_length: cut both answers of a pair to the shorter one first. As published, the
            model's own answer is ten times as long as the adversarial one, so that the vector
            also holds how far into an answer a token stands.
        token_budget: padded tokens a batch.

    Raises:
        PromptError: a text without such a token.
    """
    items = model.tokenize(contrast.prompts)
    if match_length:
        n = len(contrast.positive)
        shortest = [
            max(1, min(len(a.answer), len(b.answer)))
            for a, b in zip(items[:n], items[n:], strict=True)
        ]
        items = [Tokenized(t.prompt, t.answer[: shortest[i % n]]) for i, t in enumerate(items)]
    needed = -position if position < 0 else position + 1
    short = [i for i, item in enumerate(items) if len(item) < needed]
    if short:
        raise PromptError(
            f"{len(short)} texts have no token at position {position}; the shortest has "
            f"{min(len(item) for item in items)} tokens"
        )

    def pool(stream: Tensor, batch: Batch) -> Tensor:
        # Left padding: counted from the end, a position is the same column in every row.
        if position < 0:
            return stream[:, position].float()
        first = batch.width - batch.mask.sum(1)
        return stream[torch.arange(len(stream)), first + position].float()

    wanted = tuple(sorted(set(sites)))
    values = torch.empty(len(items), len(wanted), model.info.d_model)
    for batch in scored_batches(model, items, token_budget=token_budget):
        run = model.run(batch, sites=wanted, pool=pool, logits="none")
        for j, site in enumerate(wanted):
            values[batch.rows.cpu(), j] = run.streams[site].cpu()
    return Activations(
        values,
        wanted,
        contrast.prompts,
        contrast.labels,
        contrast.groups,
        f"token {position} of prompt and answer",
        model.info,
        contrast_sha256=contrast.sha256,
    )


def layer_range(info: ModelInfo, layers: "str | Sequence[int]") -> tuple[Site, ...]:
    """`published` (the first half: 0 to L/2), `all`, or the layers given.

    Raises:
        MethodError: another word, or no layers.
    """
    if isinstance(layers, str):
        if layers not in ("published", "all"):
            raise MethodError(
                f"layers are 'published' (0 to {info.n_layers // 2}), 'all', or numbers; "
                f"got '{layers}'"
            )
        last = info.n_layers // 2 if layers == "published" else info.n_layers - 1
        layers = range(min(last, info.n_layers - 1) + 1)
    if not len(layers):
        raise MethodError("an attack needs a layer to act at; got none")
    return tuple(Site(int(layer)) for layer in layers)


def attack_vector(states: Activations, site: Site, *, flipped: bool = False) -> Direction:
    """mean(h+ - h-) at a site as a direction from adversarial to clean answers.

    Its scale is the vector's norm, so that a strength c adds c times the vector.

    Raises:
        DirectionError: the two sides do not differ there.
    """
    x = states.at(site).double()
    labels = states.row_labels
    clean, adversarial = x[labels == 1], x[labels == 0]
    if flipped:
        clean, adversarial = adversarial, clean
    return _direction(states, site, clean, adversarial, "activation attack", 1)


def shuffled_vectors(
    states: Activations, site: Site, n: int, *, size: float, seed: int = 0
) -> list[Direction]:
    """The same with clean and adversarial exchanged at random, of norm `size`.

    Whole groups exchange their labels: what varies between them stays together.
    """
    x, labels = states.at(site).double(), states.row_labels
    difference = x[labels == 1] - x[labels == 0]
    code = group_codes(states.row_groups[: len(difference)])
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (n, int(code.max()) + 1)) * 2.0 - 1.0
    drawn = torch.tensor(signs[:, code]) @ difference
    clean = x[labels == 1]
    return [
        replace(
            _direction(states, site, clean, clean - v / v.norm() * size, "shuffled labels", 0),
            scale=size,
        )
        for v in drawn
    ]


def _direction(
    states: Activations,
    site: Site,
    clean: Float[Tensor, "pair d_model"],
    adversarial: Float[Tensor, "pair d_model"],
    method: str,
    polarity: int,
) -> Direction:
    v = (clean - adversarial).mean(0)
    norm = float(v.norm())
    unit = v / norm if norm else torch.eye(1, len(v), dtype=v.dtype)[0]
    return Direction(
        unit=unit.float(),
        scale=norm,
        site=site,
        method=method,
        concept="clean answers",
        positive_mean=float(clean.mean(0) @ unit),
        negative_mean=float(adversarial.mean(0) @ unit),
        model=states.info,
        pooling=states.pooling,
        polarity=polarity,
        provenance={"contrast": states.contrast_sha256, "pairs": len(clean)},
    )
