"""The logit lens: what the model would say if it stopped at a layer.

The final norm and the unembedding are applied to the state at each site (nostalgebraist 2020).
At the last resid_post this is the model's own prediction. Early states lie in other bases than
the last, so what the lens shows there is a lower bound on what a layer knows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerkit import __version__
from steerkit.batch import Batch, Tokenized
from steerkit.errors import ActivationError, PromptError
from steerkit.lenses.lens_result import LogitLens
from steerkit.lenses.metrics import Text, first_token
from steerkit.lenses.pairs import Pairs, Where, groups_of, read_places, read_positions, shown
from steerkit.lenses.pairs import tokenized as as_tokens
from steerkit.models import LanguageModel
from steerkit.models.patching import visited
from steerkit.models.tail import Tail, find_tail
from steerkit.prompts import Prompt
from steerkit.scoring import divergence
from steerkit.site import Site


def logit_lens(
    model: LanguageModel,
    prompts: Sequence[Text],
    *,
    tokens: Sequence[str | int] | Sequence[Sequence[str | int]] = (),
    streams: Sequence[str] | str = "resid_post",
    layers: Sequence[int] | None = None,
    positions: Where | Sequence[int] = "each",
    top: int = 5,
    groups: Sequence[str] | None = None,
    token_budget: int = 4096,
    progress: bool = True,
) -> LogitLens:
    """Read the state at every site through the model's own final norm and unembedding.

    Args:
        model: plain or steered; states are read after its interventions.
        prompts: what is run; answers that they carry are not.
        tokens: answers whose first token is followed: probability, logit and rank at each
            site. The same for all prompts, or as many of each prompt's own.
        streams: any of the five. Of attn_out and mlp_out it is the contribution alone.
        layers: all by default.
        positions: `each`, or numbers from the end, -1 the last prompt token.
        top: how many of the likeliest tokens to keep.
        groups: what intervals resample; by default the prompts' groups, else each prompt.
        token_budget: padded tokens a forward pass.
        progress: show a bar.

    Raises:
        PromptError: no prompts, a prompt longer than the context, or tokens that do not fit.
        SiteError: a stream or layer that the model does not have.
        ActivationError: logits that are not numbers.
    """
    from tqdm.auto import tqdm

    places, _ = read_places(model, streams, layers)
    sites = tuple(place for place in places if isinstance(place, Site))
    items = as_tokens(model, prompts)
    own = tuple(groups) if groups is not None else groups_of(prompts)
    if len(own) != len(items):
        raise PromptError(f"one group a prompt: {len(items)} prompts, got {len(own)} groups")
    both = Pairs(items, items, own, tuple((p, p) for p in map(_text, prompts)))
    columns = read_positions(both, positions)
    if not columns or top < 1 or len(sites) < len(places):
        raise PromptError(
            "the logit lens reads streams one position at a time and keeps at least one token: "
            "give positions 'each' or numbers, and top >= 1"
        )
    followed = _followed(model, prompts, tokens)
    tail = find_tail(model.engine)
    n, s, p, m = len(items), len(sites), len(columns), followed.shape[1]
    k = min(top, model.info.d_vocab)
    found = {
        "entropy": np.full((n, s, p), np.nan),
        "kl": np.full((n, s, p), np.nan),
        "top_tokens": np.full((n, s, p, k), -1, dtype=np.int64),
        "top_probs": np.full((n, s, p, k), np.nan),
        "logits": np.full((n, s, p, m), np.nan),
        "probs": np.full((n, s, p, m), np.nan),
        "ranks": np.full((n, s, p, m), np.nan),
    }
    last = Site(model.info.n_layers - 1)
    width = model.info.d_model * (s + 1)
    with tqdm(total=n, disable=not progress, desc="logit lens") as bar:
        for group in both.batches(model, width, token_budget):
            batch = both.batch(model, "clean", group)
            streams_ = visited(model, batch, keep=dict.fromkeys((*sites, last))).streams
            cells = _cells(batch, columns)
            rows, at = cells.T
            for first in range(0, len(cells), tail.at_once):
                some = slice(first, first + tail.at_once)
                row, column = rows[some], at[some]
                index = (row, batch.width + torch.tensor(columns)[column])
                final = _log_probs(tail, streams_[last], index, last)[1]
                which = (np.array(group)[row.numpy()], column.numpy())
                for j, site in enumerate(sites):
                    logits, log_probs = _log_probs(tail, streams_[site], index, site)
                    read = _read(logits, log_probs, final, followed[which[0]], k)
                    for name, values in read.items():
                        found[name][which[0], j, which[1]] = values.cpu().numpy()
            bar.update(len(group))
    words = {int(t): shown(model, int(t)) for t in np.unique(found["top_tokens"]) if t >= 0}
    words |= {int(t): shown(model, int(t)) for t in followed.unique()}
    return LogitLens(
        sites=sites,
        positions=columns,
        prompts=tuple(
            tuple(shown(model, t) for t in item.prompt[max(0, len(item) + columns[0]) :])
            for item in items
        ),
        tokens=followed.numpy(),
        words=words,
        groups=own,
        provenance={
            "model": model.info.to_json(),
            "steering": list(model.steering),
            "steerkit": __version__,
            "direct": tail.direct,
        },
        **found,
    )


def _log_probs(
    tail: Tail, stream: Tensor, index: tuple[Tensor, Tensor], site: Site
) -> tuple[Tensor, Tensor]:
    """Logits and log-probabilities of some states, `[state d_vocab]`."""
    logits = tail.logits(stream[tuple(i.to(stream.device) for i in index)])
    if not logits.isfinite().all():
        raise ActivationError(
            f"the logit lens at {site} gives values that are not finite; load the model with "
            "dtype='float32'"
        )
    return logits, logits.log_softmax(-1)


def _read(
    logits: Tensor, log_probs: Tensor, final: Tensor, followed: Tensor, k: int
) -> dict[str, Tensor]:
    """What is kept of some predictions."""
    probs = log_probs.exp()
    likely = log_probs.topk(k, dim=-1)
    own = followed.to(logits.device)
    mine = logits.gather(1, own)
    return {
        "entropy": -(torch.xlogy(probs, probs)).sum(-1, dtype=torch.float64),
        "kl": divergence(final, log_probs),
        "top_tokens": likely.indices,
        "top_probs": likely.values.exp(),
        "logits": mine,
        "probs": probs.gather(1, own),
        "ranks": (logits[:, None] > mine[..., None]).sum(-1) + 1.0,
    }


def _cells(batch: Batch, columns: Sequence[int]) -> Tensor:
    """(row, column of the result) of every position that its prompt has, `[cell 2]`."""
    lengths = batch.mask.sum(1).tolist()
    return torch.tensor(
        [(r, j) for r, n in enumerate(lengths) for j, column in enumerate(columns) if -column <= n]
    )


def _followed(
    model: LanguageModel,
    prompts: Sequence[Text],
    tokens: Sequence[str | int] | Sequence[Sequence[str | int]],
) -> Tensor:
    """The first tokens that are followed, `[prompt followed]`."""
    each: list[Any] = list(tokens) if isinstance(tokens, list | tuple) else [tokens]
    if not any(isinstance(t, list | tuple) for t in each):
        each = [tuple(each)] * len(prompts)
    sizes = {len(own) if isinstance(own, list | tuple) else -1 for own in each}
    if len(each) != len(prompts) or len(sizes) != 1 or -1 in sizes:
        raise PromptError(
            f"tokens are the same for all prompts, or as many for each of {len(prompts)}; "
            f"got {len(each)} entries"
        )
    return torch.tensor(
        [
            [first_token(model, prompt, token) for token in own]
            for prompt, own in zip(prompts, each, strict=True)
        ],
        dtype=torch.long,
    ).reshape(len(prompts), sizes.pop())


def _text(prompt: Text) -> Text:
    return prompt if isinstance(prompt, Tokenized) else Prompt.of(prompt)
