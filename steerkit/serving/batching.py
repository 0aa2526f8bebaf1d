"""Answers by the Hugging Face object's own continuous batching, a program for each request."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from steerkit.batch import Tokenized
from steerkit.errors import ModelError, SteerkitError
from steerkit.models import hooks
from steerkit.models.generate import Noise, until
from steerkit.models.hooks import removed_after
from steerkit.models.huggingface import HuggingFaceEngine
from steerkit.program import ProgramTable
from steerkit.serving.follower import Follower
from steerkit.serving.packed import PackedSession
from steerkit.serving.refusals import check_config, check_engine
from steerkit.serving.sharing import may_share

TOGETHER = 64
"""Requests that a cache of ours has room for at the same time, on a CPU."""
PASS = 512
"""Tokens of a pass, on a CPU."""


def serve(
    engine: Any,
    items: Sequence[Tokenized],
    table: ProgramTable | None,
    slots: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    config: Any = None,
    progress: bool = False,
) -> list[tuple[int, ...]]:
    """New tokens of each request, the end-of-sequence token included where it was reached.

    The network's own scheduler runs in a thread of its own until all are answered; its turn
    is this call's. Passes are eager, one after the other, so that every hook fires.

    Args:
        engine: of a Hugging Face network.
        items: the prompts.
        table: programs by slot.
        slots: program of each request.
        max_new_tokens: of each answer, at most.
        temperature: 0 is greedy; noise is as in `generate`.
        seed: of the noise.
        config: a `transformers.ContinuousBatchingConfig`; `allow_block_sharing` of it is
            turned off where requests must not share (`may_share`). By default, one with room
            for `TOGETHER` of these requests (on a GPU: what the memory gives).
        progress: show a bar.

    Raises:
        ModelError: a network or a configuration that cannot be served like this, or what
            went wrong in the scheduler.
        HookError: a hook that did not fire once in each pass, or a request that was lost
            track of.
    """
    network = check_engine(engine, [len(item) + max_new_tokens for item in items])
    assert isinstance(engine, HuggingFaceEngine)
    names = {f"request-{i}": i for i in range(len(items))}
    session = PackedSession(prompt_len=tuple(len(item) for item in items))
    session.steer(table, slots)
    sharing = may_share(table, slots)
    noise = [Noise(temperature, seed, [i]) for i in names.values()] if temperature > 0 else []
    with engine.turns.taken() as session.awake, engine.undisturbed(), _restored(network):
        settings = _settings(config, network, items, max_new_tokens, sharing)
        ends = engine.text.eos_ids
        manager = _manager(engine, settings, ends, max_new_tokens)
        follower = Follower(
            session,
            names,
            lambda: manager.batch_processor.inputs_and_outputs.requests_in_batch,
            sharing=sharing,
            noise=noise,
        )
        with hooks.attached(engine.blocks, session.guarded), _followed(engine, follower):
            answers = _answered(engine, manager, names, items, progress)
        if session.visits:
            session.check(max(follower.passes, 1))
    return [until(answers[name], ends) for name in names]


@contextmanager
def _followed(engine: HuggingFaceEngine, follower: Follower) -> Iterator[None]:
    """The follower's hooks, while the context is open."""
    with removed_after() as handles:
        backbone, network = engine.backbone, engine.network
        handles.append(
            backbone.register_forward_pre_hook(follower.on_start, prepend=True, with_kwargs=True)
        )
        handles.append(backbone.register_forward_hook(follower.on_end, prepend=True))
        handles.append(network.register_forward_hook(follower.on_logits, with_kwargs=True))
        yield


@contextmanager
def _restored(network: Any) -> Iterator[None]:
    """Put back what the library's manager leaves changed when it fails: attention, randomness."""
    before = network.config._attn_implementation
    # The manager seeds every generator of the process.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            if network.config._attn_implementation != before:
                network.set_attn_implementation(before)


def _settings(
    config: Any, network: Any, items: Sequence[Tokenized], max_new_tokens: int, sharing: bool
) -> Any:
    """The configuration of this call; the caller's is left as it is."""
    from transformers import ContinuousBatchingConfig

    if config is not None:
        check_config(config, network)
        settings = copy.deepcopy(config)
    else:
        settings = ContinuousBatchingConfig(auto_switch_to_flash=False)
        if "flash" not in str(network.config._attn_implementation):
            # Their default suits a kernel that is not in use here.
            settings.page_size = 32
        if network.device.type == "cpu":
            # Theirs is more than half of the machine's memory.
            lengths = sorted((len(item) + max_new_tokens for item in items), reverse=True)
            pages = sum(-(-n // settings.page_size) + 1 for n in lengths[:TOGETHER])
            settings.num_blocks = pages + pages // 4 + 1
            settings.max_batch_tokens = PASS
    if settings.max_requests_per_batch is None:
        settings.max_requests_per_batch = min(len(items), 1024)
    settings.allow_block_sharing = settings.allow_block_sharing and sharing
    # Neither captured graphs nor passes in flight: hooks are Python, and fire in order.
    settings.use_cuda_graph = False
    settings.use_async_batching = False
    settings.seed = 0
    return settings


def _manager(
    engine: HuggingFaceEngine, settings: Any, ends: Sequence[int], max_new_tokens: int
) -> Any:
    """The library's manager of requests, not yet running."""
    from transformers import GenerationConfig

    generation = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_return_sequences=1,
        eos_token_id=list(ends) or -1,
        pad_token_id=engine.text.pad_id,
    )
    try:
        return engine.network.init_continuous_batching(
            generation_config=generation, continuous_batching_config=settings
        )
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"{engine.info.name} cannot be batched continuously: {error}; use generate"
        ) from error


def _answered(
    engine: HuggingFaceEngine,
    manager: Any,
    names: dict[str, int],
    items: Sequence[Tokenized],
    progress: bool,
) -> dict[str, list[int]]:
    """Run the manager until every request is answered; it has stopped when this returns."""
    from tqdm.auto import tqdm

    answers: dict[str, list[int]] = {}
    failed = None
    manager.start()
    try:
        for name, number in names.items():
            manager.add_request(list(items[number].prompt), request_id=name)
        with tqdm(total=len(names), disable=not progress, desc="generate_batch") as bar:
            while len(answers) < len(names) and failed is None:
                result = manager.get_result(timeout=1)
                if result is not None and result.error is None:
                    answers[result.request_id] = result.generated_tokens
                    bar.update(1)
                elif result is not None or not manager.is_running():
                    failed = getattr(result, "error", "its thread ended")
    finally:
        manager.stop(block=True, hard_stop=len(answers) < len(names))
        manager.destroy()
    if failed is not None:
        # Known for certain only once the thread has ended.
        raise _failure(engine, manager.background_thread_status.fatal_error, failed)
    return answers


def _failure(engine: HuggingFaceEngine, fatal: Exception | None, failed: str) -> SteerkitError:
    """What to raise when a request, or the whole loop, has failed."""
    if isinstance(fatal, SteerkitError):
        return fatal
    why = failed if fatal is None else f"{type(fatal).__name__}: {fatal}"
    error = ModelError(
        f"{engine.info.name}: continuous batching failed ({why}). Use generate; or, if the cache "
        "was too small, give a config with more num_blocks or fewer max_requests_per_batch"
    )
    error.__cause__ = fatal
    return error
