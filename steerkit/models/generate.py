"""Generation by the Hugging Face object itself, with each request's place carried along."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerkit.batch import Batch, RequestState
from steerkit.errors import HookError
from steerkit.models import hooks
from steerkit.models.hooks import removed_after
from steerkit.models.steering import Session
from steerkit.program import ProgramTable

if TYPE_CHECKING:
    from steerkit.models.huggingface import HuggingFaceEngine


class Noise:
    """Sampling as an argmax: temperature-scaled, truncated logits plus Gumbel noise.

    Each row draws from its own generator, seeded by the caller's seed and the prompt's
    number, so an answer does not depend on what it is batched with and no global random
    state is touched. Truncation comes after the temperature and takes no noise away, so
    that the same seed is the same noise under any. Source: Gumbel 1954; Maddison et al. 2014
    (arXiv:1411.0030).
    """

    def __init__(
        self,
        temperature: float,
        seed: int,
        rows: Sequence[int],
        *,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._generators = [
            torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in rows
        ]

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Scores whose largest entry is a sample."""
        uniform = torch.stack(
            [torch.rand(scores.shape[1], generator=g) for g in self._generators]
        ).to(scores.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        scaled = scores.float() / self.temperature
        return truncated(scaled, top_k=self.top_k, top_p=self.top_p) + gumbel


def truncated(
    scores: Float[Tensor, "*lead d_vocab"], *, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "*lead d_vocab"]:
    """Scores with -inf at every token that is not among those kept: top-k first, then top-p.

    Top-k keeps exactly `top_k` tokens, 0 all of them. Top-p keeps the fewest of the likeliest
    tokens that hold `top_p` of what top-k left, 1 all of them; the likeliest is always
    kept. Masses are summed in float64; of equal scores the smaller token id comes first.
    Source of top-p: Holtzman et al. 2020 (arXiv:1904.09751).

    >>> truncated(torch.tensor([0.6, 0.3, 0.1]).log(), top_p=0.5).exp()
    tensor([0.6000, 0.0000, 0.0000])
    """
    if top_k <= 0 and top_p >= 1:
        return scores
    order = scores.double().sort(dim=-1, descending=True, stable=True)
    ranked, keep = order.values, torch.ones_like(order.values, dtype=torch.bool)
    if top_k > 0:
        keep[..., top_k:] = False
        ranked = ranked.masked_fill(~keep, -torch.inf)
    if top_p < 1:
        mass = ranked.softmax(-1)
        keep &= mass.cumsum(-1) - mass < top_p
        keep[..., 0] = True
    kept = torch.zeros_like(keep).scatter(-1, order.indices, keep)
    return scores.masked_fill(~kept, -torch.inf)


@contextmanager
def own_defaults(network: Any) -> Iterator[None]:
    """Hide the network's `generation_config`: what a call leaves unset is then unset.

    `generate` fills whatever is None from it (suppressed tokens, least lengths, bad words),
    also where a configuration is given, and some models ship such values.
    """
    from transformers import GenerationConfig

    before = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = before


def complete(
    engine: "HuggingFaceEngine",
    batch: Batch,
    table: ProgramTable | None,
    slots: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[tuple[int, ...]]:
    """New tokens of each row of one batch, greedy or sampled."""
    from transformers import GenerationConfig

    eos = engine.text.eos_ids
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(eos) or None,
        pad_token_id=engine.text.pad_id,
        use_cache=True,
        disable_compile=True,
        return_dict_in_generate=False,
    )
    processors = []
    if temperature > 0:
        processors = [Noise(temperature, seed, batch.rows.tolist(), top_k=top_k, top_p=top_p)]
    session = Session()
    session.steer(table, slots)
    with (
        engine.turns.taken() as session.awake,
        engine.undisturbed(),
        hooks.attached(engine.blocks, session.guarded),
        carried(engine.backbone, session, batch.state(slots)),
        own_defaults(engine.network),
    ):
        out = engine.network.generate(
            input_ids=batch.tokens,
            attention_mask=batch.attention_mask,
            generation_config=config,
            logits_processor=processors,
        )
    new = out[:, batch.width :].tolist()
    return [until(row, eos) for row in new]


def until(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Tokens up to and including the first that ends an answer."""
    for i, token in enumerate(tokens):
        if token in ends:
            return tuple(tokens[: i + 1])
    return tuple(tokens)


@contextmanager
def carried(backbone: nn.Module, session: Session, start: RequestState) -> Iterator[None]:
    """Give each pass through the backbone its requests' places, from how many columns ran.

    A prefill, a chunk of one, and a cached step are the same thing here: some more columns.
    A pass without anything in its cache begins again at the first column (long-rope models
    recompute what they cached when a text outgrows their first range); what was decided about
    the prompts stays decided.
    """
    if not session.visits:
        yield
        return
    passes = seen = 0
    # Only the left of a row is padding: past its longest, no column holds any. Read once.
    padding = -int(start.position.min())

    def on_start(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal passes, seen
        if session.awake():
            session.check(passes)
            passes += 1
            given = arguments(module, args, kwargs)
            cache = given.get("past_key_values")
            if cache is None or not cache.get_seq_length():
                seen = 0
            length = columns(given).shape[1]
            session.begin(start, length, seen=seen, padded=seen < padding)
            seen += length

    with removed_after() as handles:
        handles.append(backbone.register_forward_pre_hook(on_start, prepend=True, with_kwargs=True))
        yield
        session.check(passes)


def arguments(
    backbone: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What a pass through a backbone is given, by name."""
    if not args:
        # As `generate` calls it at every step; looking up a signature takes longer than a hook.
        return kwargs
    bound = inspect.signature(backbone.forward).bind_partial(*args, **kwargs).arguments
    return {**bound, **kwargs}


def columns(given: Mapping[str, Any]) -> Tensor:
    """The token ids, or embeddings, among them.

    Raises:
        HookError: neither is there, so that positions cannot be followed.
    """
    found = given.get("input_ids")
    if found is None:
        found = given.get("inputs_embeds")
    if not isinstance(found, Tensor):
        raise HookError(
            "the network ran without input_ids or inputs_embeds, so positions cannot be followed"
        )
    return found
