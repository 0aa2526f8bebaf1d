"""Read a network as whoever calls it would: prompt first, then the answer from the cache.

steerkit's own calls have a network to themselves: while one steers it in place (`as_hf`), the
hooks of that context sleep during our calls. A detector must not be so polite. It calls the
network itself, and its hooks come after everybody else's.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerkit.batch import Tokenized
from steerkit.models import LanguageModel
from steerkit.models.hooks import outgoing, removed_after
from steerkit.protocols import Model
from steerkit.redteam.places import POINTS, finite
from steerkit.site import Site

ROWS = 16
"""Prompts of one length that run together."""


def can_read_outside(model: Model, sites: Sequence[Site]) -> bool:
    """Whether this is a plain Hugging Face model, looked at after its blocks.

    A view of ours is steered by our own calls, so those have to be made.
    """
    return (
        isinstance(model, LanguageModel)
        and model.table is None
        and model.path == "eager"
        and isinstance(model.network, nn.Module)
        and hasattr(model.network, "get_output_embeddings")
        and hasattr(model.engine, "blocks")
        and all(site.stream == "resid_post" for site in sites)
    )


def read_outside(
    model: Model, items: Sequence[Tokenized], sites: Sequence[Site], *, outputs: bool = True
) -> tuple[Float[Tensor, "prompt place d_model"], Tensor | None]:
    """What `places.read_states` reads, from outside.

    Raises:
        ActivationError: states that are not finite.
    """
    assert isinstance(model, LanguageModel)
    network, info = model.network, model.info
    blocks = [model.engine.blocks[site.layer].module for site in sites]  # type: ignore[attr-defined]
    states = torch.empty(len(items), len(sites), len(POINTS), info.d_model)
    logits = torch.empty(len(items), len(POINTS), info.d_vocab) if outputs else None
    seen: dict[int, Tensor] = {}

    def watch(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            seen[index] = outgoing(output)[:, -1].detach().float().cpu()

        return hook

    device = next(network.parameters()).device
    with model.engine.undisturbed(), removed_after() as handles, torch.no_grad():
        # Not prepended: what others' hooks did to the same block is in what ours see.
        handles.extend(b.register_forward_hook(watch(i)) for i, b in enumerate(blocks))
        for rows in _of_one_shape(items):
            cache, length = None, 0
            for point in range(len(POINTS)):
                tokens = [(items[i].prompt, items[i].answer)[point] for i in rows]
                if tokens[0]:
                    length += len(tokens[0])
                    out = network(
                        input_ids=torch.tensor(tokens, device=device),
                        attention_mask=torch.ones(
                            len(rows), length, dtype=torch.long, device=device
                        ),
                        past_key_values=cache,
                        use_cache=True,
                    )
                    cache = out.past_key_values
                    last = out.logits[:, -1].float().cpu()
                for index in range(len(blocks)):
                    states[rows, index, point] = seen[index]
                if logits is not None:
                    logits[rows, point] = last - last.mean(-1, keepdim=True)
    finite(states[None])
    return states.flatten(1, 2), logits


def _of_one_shape(items: Sequence[Tokenized]) -> Iterator[list[int]]:
    """Indices of prompts of the same lengths: rows that need no padding, `ROWS` at a time."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for i, item in enumerate(items):
        shapes.setdefault((len(item.prompt), len(item.answer)), []).append(i)
    for rows in shapes.values():
        for first in range(0, len(rows), ROWS):
            yield rows[first : first + ROWS]
