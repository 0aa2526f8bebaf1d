"""Continuous batching: each request answers as it would alone, and nothing is left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import CompileConfig, ContinuousBatchingConfig

import steerkit as sk
from steerkit.batch import Tokenized
from steerkit.errors import HookError, InterventionError, ModelError, PromptError
from steerkit.interventions import When
from steerkit.serving import batching, serve

NEW = 8
RULES: tuple[Any, ...] = ("all", "prompt", "last_prompt", "generated", [0, 2], [-1, -3])


def small(**changes: Any) -> ContinuousBatchingConfig:
    """Blocks of four tokens, and passes of five: long prompts come in chunks."""
    given = {"page_size": 4, "num_blocks": 80, "max_batch_tokens": 5, **changes}
    return ContinuousBatchingConfig(auto_switch_to_flash=False, **given)


def starved() -> ContinuousBatchingConfig:
    """A cache with room for about two of the requests."""
    return small(num_blocks=11, max_batch_tokens=16, safety_margin=0.0)


@pytest.fixture
def followers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every follower that a call makes."""
    made: list[Any] = []

    class Kept(batching.Follower):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.tokens: list[int] = []
            made.append(self)

        def stretches(self, given: Any) -> Any:
            found = super().stretches(given)
            self.tokens.append(sum(stretch.length for stretch in found))
            return found

    monkeypatch.setattr(batching, "Follower", Kept)
    return made


def every_rule(model: Any, direction: Callable[..., Any]) -> Any:
    """A slot for each position rule, adding at every layer and ablating at one."""
    # Gemma's stream is longer: its embeddings are scaled up.
    strength = 12.0 if "gemma" in model.info.name else 1.0
    rows = []
    for i, rule in enumerate(RULES):
        directions = [direction(model, layer, seed=10 * i + layer) for layer in range(3)]
        added = [sk.Add(d, strength=strength, positions=rule) for d in directions]
        rows.append([*added, sk.Ablate(direction(model, 2, seed=99), positions=rule)])
    mask = torch.rand(len(RULES) + 2, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    rows.append([sk.Add(direction(model, 1, seed=77), strength=strength, positions=mask)])
    return model.with_rows(*rows)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_every_rule_answers_as_alone_however_prompts_are_fed(
    model_of, items, direction, sequential, disagreeing, followers, family
):
    view = every_rule(model_of(family), direction)
    slots = [*range(len(RULES) + 2)]
    want = sequential(view, items, slots)
    plain = sequential(view.plain, items, [0] * len(items))
    assert sum(a != b for a, b in zip(want[1:], plain[1:], strict=True)) >= len(RULES) - 1
    for config in (None, small(), small(scheduler_type="prefill_first")):
        found = serve(view.engine, items, view.table, slots, max_new_tokens=NEW, config=config)
        assert not disagreeing(view, items, slots, found, want)
    assert max(followers[0].tokens) == sum(len(item) for item in items)
    # Thirteen tokens of a prompt cannot have come in passes of five but in chunks.
    assert max(followers[1].tokens) == max(followers[2].tokens) == 5


@pytest.mark.parametrize("on", ["last_prompt", "mean_prompt", "token"])
def test_conditions_are_decided_for_each_request(
    llama, items, direction, sequential, disagreeing, on
):
    gate = When(direction(llama, 0, seed=5), above=0.0, on=on)
    steer = sk.Add(direction(llama, 1, seed=6), strength=2.0)
    view = llama.with_rows([steer.when(gate)], [steer])
    slots, always = [1] * len(items), [2] * len(items)
    want, opened = sequential(view, items, slots), sequential(view, items, always)
    closed = sequential(llama, items, [0] * len(items))
    if on != "token":
        # Some gates are open and some are closed, and one can tell.
        assert 0 < sum(a == b for a, b in zip(want, closed, strict=True)) < len(items)
    mixed = [1, 2, 1, 1, 0, 1, 1, 2]
    for config in (None, small()):
        found = serve(view.engine, items, view.table, slots, max_new_tokens=NEW, config=config)
        assert not disagreeing(view, items, slots, found, want)
        found = serve(view.engine, items, view.table, mixed, max_new_tokens=NEW, config=config)
        expected = [(closed, want, opened)[slot][i] for i, slot in enumerate(mixed)]
        assert not disagreeing(view, items, mixed, found, expected)


def test_soft_resets_keep_prompt_lengths_and_latches(
    llama, items, direction, sequential, disagreeing, followers
):
    gate = When(direction(llama, 0, seed=5), above=0.0, on="mean_prompt")
    rows = [[sk.Add(direction(llama, 1, seed=i), positions=rule)] for i, rule in enumerate(RULES)]
    rows.append([sk.Add(direction(llama, 1, seed=6), strength=2.0).when(gate)])
    view = llama.with_rows(*rows)
    for slots in ([1, 2, 3, 4, 5, 6, 7, 4], [7] * 8):
        want = sequential(view, items, slots)
        found = serve(view.engine, items, view.table, slots, max_new_tokens=NEW, config=starved())
        assert followers[-1].restarts > 0, "no cache was dropped, so nothing was tested"
        assert not disagreeing(view, items, slots, found, want)


def test_a_returned_answer_counted_as_prompt_would_change_it(
    llama, items, direction, sequential, disagreeing, monkeypatch
):
    class Trusting(batching.Follower):
        """Believes the scheduler, whose prompts grow at a reset."""

        def stretches(self, given: Any) -> Any:
            lengths = list(self._session.prompt_len)
            for future in self._scheduled():
                number = self._numbers[future.state.request_id]
                lengths[number] = len(future.state.initial_tokens)
            self._session.prompt_len = tuple(lengths)
            return super().stretches(given)

    monkeypatch.setattr(batching, "Follower", Trusting)
    view = llama.with_(sk.Add(direction(llama, 1), strength=2.0, positions="generated"))
    slots = [1] * len(items)
    want = sequential(view, items, slots)
    found = serve(view.engine, items, view.table, slots, max_new_tokens=NEW, config=starved())
    assert disagreeing(view, items, slots, found, want)


def test_requests_swapped_out_to_memory_go_on_where_they_were(
    llama, items, direction, sequential, disagreeing, followers, monkeypatch
):
    # Pinned memory needs a GPU; what is swapped does not.
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    gate = When(direction(llama, 0, seed=5), above=0.0, on="mean_prompt")
    view = llama.with_(sk.Add(direction(llama, 1, seed=6), strength=2.0).when(gate))
    slots, config = [1] * len(items), starved()
    config.cpu_offload_space = 0.001
    found = serve(view.engine, items, view.table, slots, max_new_tokens=NEW, config=config)
    assert not disagreeing(view, items, slots, found, sequential(view, items, slots))
    assert followers[0].restarts == 0


TWINS = [Tokenized((*range(10, 22), last)) for last in (30, 30, 31, 31, 32, 32)]
"""Prompts that share three blocks of four tokens."""


def test_shared_prefixes_would_leak_between_programs(
    llama, direction, sequential, disagreeing, monkeypatch, followers
):
    view = llama.with_rows([sk.Add(direction(llama, 0), strength=2.0)])
    slots, config = [1, 0, 1, 0, 1, 0], small(max_requests_per_batch=1)
    want = sequential(view, TWINS, slots)
    found = serve(view.engine, TWINS, view.table, slots, max_new_tokens=NEW, config=config)
    assert not disagreeing(view, TWINS, slots, found, want)
    monkeypatch.setattr(batching, "may_share", lambda table, slots: True)
    leaked = serve(view.engine, TWINS, view.table, slots, max_new_tokens=NEW, config=config)
    assert sum(followers[1].tokens) < sum(followers[0].tokens)
    assert disagreeing(view, TWINS, slots, leaked, want)


def test_shared_prefixes_would_leak_within_one_program_where_prompts_end_elsewhere(
    llama, direction, sequential, disagreeing, monkeypatch
):
    whole = tuple(range(10, 23))
    nested = [Tokenized(whole[:8]), Tokenized(whole), Tokenized(whole[:12])]
    # The first blocks are steered by one request at the end of its prompt.
    view = llama.with_(sk.Add(direction(llama, 0), strength=4.0, positions="last_prompt"))
    slots, config = [1] * 3, small(max_requests_per_batch=1)
    want = sequential(view, nested, slots)
    found = serve(view.engine, nested, view.table, slots, max_new_tokens=NEW, config=config)
    assert not disagreeing(view, nested, slots, found, want)
    monkeypatch.setattr(batching, "may_share", lambda table, slots: True)
    leaked = serve(view.engine, nested, view.table, slots, max_new_tokens=NEW, config=config)
    assert disagreeing(view, nested, slots, leaked, want)


@pytest.mark.parametrize("steered", [True, False])
def test_one_program_for_all_shares_prefixes_and_answers_as_alone(
    llama, direction, sequential, disagreeing, followers, steered
):
    gate = When(direction(llama, 0, seed=5), above=0.0, on="token")
    added = sk.Add(direction(llama, 0, seed=2), positions=[1, 5]).when(gate)
    view = llama.with_(sk.Ablate(direction(llama, 1)), added) if steered else llama
    slots, config = [int(steered)] * 6, small(max_requests_per_batch=1)
    found = serve(view.engine, TWINS, view.table, slots, max_new_tokens=NEW, config=config)
    assert not disagreeing(view, TWINS, slots, found, sequential(view, TWINS, slots))
    assert sum(followers[0].tokens) <= len(TWINS) * (len(TWINS[0]) + NEW) - 5 * 12
    config.allow_block_sharing = False
    assert found == serve(view.engine, TWINS, view.table, slots, max_new_tokens=NEW, config=config)
    assert sum(followers[1].tokens) > sum(followers[0].tokens)


def test_sampled_answers_are_those_of_generate(llama, items, direction, sequential):
    view = llama.with_(sk.Add(direction(llama, 1), positions="generated"))
    slots = [1, 0] * 4
    want = sequential(view, items, slots, temperature=1.3)
    for config in (None, starved()):
        found = serve(
            view.engine,
            items,
            view.table,
            slots,
            max_new_tokens=NEW,
            temperature=1.3,
            config=config,
        )
        assert found == want


def test_the_verb_gives_the_completions_of_generate(tiny_model, direction):
    prompts = ["a dog", "the cat was happy .", "please tell me how", "a dog"]
    steer = sk.Add(direction(tiny_model, 1), positions="generated")
    view = tiny_model.with_rows([steer], [steer, sk.Ablate(direction(tiny_model, 2, seed=4))])
    slots = [0, 1, 2, 2]
    found = view.generate_batch(prompts, slots=slots, max_new_tokens=6)
    assert found == view.generate(prompts, slots=slots, max_new_tokens=6, token_budget=1)
    assert tiny_model.generate_batch(prompts) == tiny_model.generate(prompts, token_budget=1)


def state_of(network: Any) -> tuple[Any, ...]:
    hooks = [
        (name, *(tuple(getattr(module, kind)) for kind in vars(module) if kind.endswith("_hooks")))
        for name, module in network.named_modules()
    ]
    flags = [(name, module.training) for name, module in network.named_modules()]
    tensors = [(name, t.clone()) for name, t in network.state_dict().items()]
    attributes = {name: sorted(vars(m)) for name, m in network.named_modules()}
    return hooks, flags, network.config.to_dict(), attributes, tensors, torch.get_rng_state()


def assert_unchanged(network: Any, before: tuple[Any, ...]) -> None:
    *rest, tensors, random = state_of(network)
    assert rest == list(before[:-2])
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(tensors, before[-2], strict=True))
    assert torch.equal(random, before[-1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_network_is_as_before_after_a_call_and_after_a_failure(
    make_network, items, direction, attention
):
    network = make_network("llama", attn_implementation=attention)
    model = sk.wrap(network, name="tiny-llama")
    network.train()
    network.model.layers[1].eval()
    before = state_of(network)
    few = torch.ones(2, 30, dtype=torch.bool)
    view = model.with_rows(
        [sk.Add(direction(model, 1))], [sk.Add(direction(model, 1), positions=few)]
    )
    kept = serve(view.engine, items, view.table, [1] * 8, max_new_tokens=3)
    assert_unchanged(network, before)
    with pytest.raises(InterventionError, match="the position mask has 2 rows but prompt"):
        serve(view.engine, items, view.table, [1, 2] * 4, max_new_tokens=3)
    assert_unchanged(network, before)
    with pytest.raises(ModelError, match=r"No requests can be scheduled.*num_blocks"):
        serve(view.engine, items, view.table, [1] * 8, max_new_tokens=3, config=small(num_blocks=1))
    assert_unchanged(network, before)
    assert kept == serve(view.engine, items, view.table, [1] * 8, max_new_tokens=3)


def test_unsteered_requests_are_untouched_by_their_neighbours(llama, items, direction):
    unit = direction(llama, 0)
    view = llama.with_rows([sk.Add(unit, strength=1e30)])
    found = serve(view.engine, items, view.table, [0, 1] * 4, max_new_tokens=NEW)
    plain = serve(llama.engine, items, None, [0] * 8, max_new_tokens=NEW)
    assert found[::2] == plain[::2]
    assert found[1::2] != plain[1::2]


def test_a_hook_that_is_passed_by_is_an_error(make_network, items, direction):
    network = make_network("llama")
    model = sk.wrap(network, name="tiny-llama")
    view = model.with_(sk.Add(direction(model, 1)))
    network.model.layers[1] = make_network("llama").model.layers[1]
    with pytest.raises(HookError, match=r"resid_post@1 0\. The network skips"):
        serve(view.engine, items, view.table, [1] * 8, max_new_tokens=2)


def test_networks_without_packed_passes_are_refused_even_unsteered(model_of, items):
    model = model_of("bloom")
    with pytest.raises(HookError, match="was not told where requests begin"):
        serve(model.engine, items, None, [0] * 8, max_new_tokens=2)


def test_other_libraries_and_busy_networks_are_refused(make_network, items):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    lens = HookedTransformer(
        HookedTransformerConfig(
            n_layers=1, d_model=8, n_ctx=16, d_head=4, d_vocab=20, act_fn="relu", device="cpu"
        )
    )
    with pytest.raises(ModelError, match="only Hugging Face models have continuous batching"):
        serve(sk.wrap(lens).engine, items, None, [0] * 8, max_new_tokens=2)
    network = make_network("llama")
    model = sk.wrap(network, name="tiny-llama")
    network._cached_continuous_batching_manager = object()
    with pytest.raises(ModelError, match="keeps a manager of continuous batching alive"):
        serve(model.engine, items, None, [0] * 8, max_new_tokens=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_cuda_graph": True},
        {"use_cuda_graph": (False, True)},
        {"use_async_batching": True},
        {"default_compile_level": 1},
        {"varlen_compile_config": CompileConfig()},
        {"decode_compile_config": CompileConfig()},
    ],
    ids=str,
)
def test_modes_that_run_past_hooks_are_refused(llama, items, changes):
    with pytest.raises(InterventionError, match=f"{next(iter(changes))}: graphs, compiled passes"):
        serve(llama.engine, items, None, [0] * 8, max_new_tokens=2, config=small(**changes))


def test_the_callers_config_is_left_as_it_is(llama, items, direction):
    config = small()
    before = vars(config).copy()
    view = llama.with_(sk.Add(direction(llama, 1), positions="prompt"))
    serve(view.engine, items, view.table, [1] * 8, max_new_tokens=2, config=config)
    assert vars(config) == before


def test_bad_requests_are_refused(tiny_model):
    with pytest.raises(PromptError, match="max_new_tokens is at least 1"):
        tiny_model.generate_batch(["a dog"], max_new_tokens=0)
    with pytest.raises(InterventionError, match="no slot 1"):
        tiny_model.generate_batch(["a dog"], slots=[1])
    with pytest.raises(PromptError, match="too long"):
        tiny_model.generate_batch(["a dog"], max_new_tokens=64)
