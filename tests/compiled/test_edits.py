"""One graph and one table: edits change numbers in place, never a graph or an address."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import steerkit as sk
from steerkit.compiled import Capacity
from steerkit.errors import InterventionError, ModelError, PromptError
from steerkit.interventions import InOrder, When
from steerkit.protocols import Model
from steerkit.site import Site


@pytest.fixture(scope="module")
def small(llama: Any) -> Any:
    """A compiled model with little room, for tests of what is full."""
    capacity = Capacity(slots=2, terms=2, rows=3, length=24, chunk=8, latches=1)
    return llama.compile(capacity, backend="eager")


def test_a_thousand_edits_make_no_graph_and_break_none(
    compiled_llama: Any, llama: Any, batch_of: Any, relative: Any, direction: Any
) -> None:
    asked = batch_of(answers=False)
    view = compiled_llama.with_rows([sk.Add(direction(llama))], [sk.Ablate(direction(llama))], [])
    tokens = torch.tensor([3, 4, 5])
    made, addresses = view.receipt.graphs, [part.data_ptr() for part in view.engine.held]
    counters.clear()
    rules = ["all", "generated", (0, -1), "last_prompt"]
    # Somebody makes another kind of model meanwhile, which changes globals that are traced.
    sk.wrap(another_network())
    with view.decoding(asked, slots=[1, 2, 0], room=2) as steps:
        steps.step(tokens)
        requests = view.engine.requests
        place, column = requests.position.clone(), requests.column.clone()
        for i in range(1000):
            d = direction(llama, i % 2, seed=i)
            if i % 4 == 3:
                view.set_strength(i % 7 / 3, slot=1 + i % 3)
            elif i % 4 == 2:
                steps.move([i % 4, (i + 1) % 4, (i + 2) % 3])
            else:
                view = view.edited(sk.Add(d, i % 5 - 2.0, rules[i % 4]), slot=1 + i % 3)
            if i % 25 == 0:
                # The same step again.
                requests.position.copy_(place)
                requests.column.copy_(column)
                steps._left = 1
                steps.step(tokens)
    assert not counters["graph_break"] and not counters["stats"]
    assert view.receipt.graphs == made
    assert [part.data_ptr() for part in view.engine.held] == addresses
    # What stands there after all of them is what was written last.
    last = sk.Ablate(direction(llama, 1))
    wanted = llama.with_(last).run(asked).logits
    found = view.edited(last, slot=2).run(asked, slots=[2, 2, 2]).logits
    assert relative(found[asked.mask], wanted[asked.mask]) < 1e-5


def another_network() -> Any:
    from transformers import OlmoConfig, OlmoForCausalLM

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = OlmoConfig(vocab_size=50, num_attention_heads=2, num_key_value_heads=2, **small)
    return OlmoForCausalLM(config).eval()


def test_edits_between_steps_take_effect_at_the_next(
    compiled_llama: Any, llama: Any, batch_of: Any, relative: Any, direction: Any
) -> None:
    add, ablate = sk.Add(direction(llama), 2.0, "generated"), sk.Ablate(direction(llama, seed=1))
    asked = batch_of((2,), answers=False)
    view = compiled_llama.with_rows([add], [ablate])
    answer = [50, 51, 52, 53]
    with view.decoding(asked, slots=[0], room=4) as steps:
        plain = llama.run(asked, logits="last").logits
        assert relative(steps.logits, plain[:, -1]) < 1e-5
        found = []
        for i, token in enumerate(answer):
            if i == 1:
                steps.move([1])
            if i == 2:
                view.set_strength(0.0, slot=1)
            if i == 3:
                view = view.edited(ablate, slot=1)
            found.append(steps.step([token]).clone())
    # The first token ran unsteered, the second steered, the third at strength 0, then ablated.
    from steerkit.batch import Batch, Tokenized

    prompt = asked.tokens[0][asked.mask[0]].tolist()
    forced = Batch.collate([Tokenized((*prompt, *answer))], pad_id=0)
    n = len(prompt)
    only = llama.with_(
        sk.Add(direction(llama), 2.0, (n + 1,)),
        sk.Ablate(direction(llama, seed=1), positions=(n + 3,)),
    )
    wanted = only.run(forced).logits[0]
    for i, logits in enumerate(found):
        assert relative(logits, wanted[n + i][None]) < 1e-5, i


def test_only_slot_0_runs_the_untouched_graph(
    compiled_llama: Any, llama: Any, batch: Any, direction: Any
) -> None:
    view = compiled_llama.with_(sk.Add(direction(llama), 3.0))
    steered = view.run(batch)
    assert (view.receipt.steered, view.receipt.untouched) == (2, 0) and steered.logits is not None
    for model, slots in (
        (view, [0, 0, 0]),
        (view.plain, None),
        (compiled_llama.with_rows([]), [1] * 3),
    ):
        plain = model.run(batch, slots=slots).logits
        assert (model.receipt.steered, model.receipt.untouched) == (0, 2)
        torch.testing.assert_close(
            plain[batch.mask], llama.run(batch).logits[batch.mask], rtol=1e-4, atol=1e-4
        )


def test_slot_0_rows_keep_their_bits_beside_steered_and_broken_ones(
    compiled_llama: Any, llama: Any, network_of: Any, batch: Any, direction: Any
) -> None:
    engine = compiled_llama.engine
    view = compiled_llama.with_rows(
        [sk.Add(direction(llama), 1e30)], [sk.Add(direction(llama), 2.0)]
    )
    first, second = engine.slots.of(view.table)[1:]

    # The steered graph with every row at slot 0, which a call would not choose by itself.
    def steered_graph(slots: list[int]) -> torch.Tensor:
        with engine.turn():
            columns = engine.begin(batch, slots, "score", 0)
            return torch.cat([engine.run_step("score", c, True).clone() for c in columns], 1)

    zero = steered_graph([0, 0, 0])
    for slots in ([first, 0, second], [0, first, first], [second, second, 0]):
        found = steered_graph(slots)
        for row, slot in enumerate(slots):
            assert torch.equal(found[row], zero[row]) == (slot == 0)
    # As close to the truth as the untouched graph is.
    truth = sk.wrap(network_of("llama").double(), name="tiny").run(batch).logits
    untouched, real = compiled_llama.run(batch).logits, batch.mask
    assert untouched is not None and truth is not None
    errors = [
        float((out[:, -batch.width :][real].double() - truth[real]).norm())
        for out in (zero[: len(batch)], untouched)
    ]
    assert errors[0] <= 1.1 * errors[1]
    # An overflow of one batch leaves nothing for the next.
    torch.testing.assert_close(steered_graph([0, 0, 0]), zero, rtol=0, atol=0)


def test_what_does_not_fit_is_refused_with_the_next_step(
    small: Any, llama: Any, direction: Any
) -> None:
    d = direction(llama)
    one = small.with_(sk.Add(d))
    two = small.with_(sk.Add(d), sk.Ablate(direction(llama, seed=1)))
    with pytest.raises(
        InterventionError, match=r"takes 1 slots of .* has 2, 0 of them free; let go"
    ):
        small.with_(sk.Add(d))
    assert small.engine.slots.of(one.table) != small.engine.slots.of(two.table)
    del two
    cases = {
        "3 terms does not fit.*larger Capacity": [
            sk.Ablate(direction(llama, seed=i)) for i in range(3)
        ],
        "2 groups does not fit": [InOrder(sk.Ablate(d), sk.Add(d))],
        "2 latches": [
            sk.Add(d).when(When(direction(llama, 0, seed=i), above=0.0)) for i in range(2)
        ],
        "names prompts": [sk.Add(d, 1.0, torch.ones(3, 4).bool())],
        "mlp_out@1 is not among": [sk.Add(direction(llama, 1, "mlp_out"))],
    }
    for message, given in cases.items():
        with pytest.raises(InterventionError, match=message):
            small.with_(*given)
    # Refusals cost no slot.
    small.with_(sk.Add(d))
    assert one.table is not None


def test_batches_that_do_not_fit_are_refused(small: Any, batch_of: Any) -> None:
    with pytest.raises(PromptError, match=r"4 rows does not fit .* of 3; .*Capacity\(rows="):
        small.run(batch_of((0, 1, 2, 0)))
    with pytest.raises(PromptError, match=r"\(in chunks of 8: 16\) and 9 more .* length 24"):
        with small.decoding(batch_of(), room=9):
            pass
    with small.decoding(batch_of(), room=1) as steps:
        steps.step([1, 2, 3])
        with pytest.raises(PromptError, match="no room for another step"):
            steps.step([1, 2, 3])
        with pytest.raises(ModelError, match="under way"):
            small.run(batch_of())
        with pytest.raises(InterventionError, match="one slot a row"):
            steps.move([1, 1, 1])


def test_a_view_that_was_edited_is_no_longer_of_use(
    small: Any, llama: Any, batch: Any, direction: Any
) -> None:
    first = small.with_(sk.Add(direction(llama)))
    later = first.edited(sk.Add(direction(llama, seed=1)))
    with pytest.raises(InterventionError, match="handed over by `edited`"):
        first.run(batch)
    del first
    assert later.run(batch).logits is not None
    with pytest.raises(InterventionError, match=r"no slot 2 to edit; this view has slots 1\.\.1"):
        later.edited(slot=2)
    with pytest.raises(InterventionError, match="make a view by with_ first"):
        small.edited()


def test_conditions_of_a_row_are_forgotten_when_it_is_given_another_program(
    compiled_llama: Any, llama: Any, batch_of: Any, relative: Any, direction: Any
) -> None:
    d = direction(llama)
    opened = [sk.Add(d, 3.0).when(When(direction(llama, 0, seed=i), above=-1.0)) for i in range(2)]
    view = compiled_llama.with_rows([opened[0]], [opened[1]])
    asked = batch_of((1,), answers=False)
    with view.decoding(asked, slots=[1], room=3) as steps:
        requests = view.engine.requests
        assert requests.registers[0].max() == 1
        steps.step([4])
        view = view.edited(sk.Ablate(d).when(opened[0].condition))
        assert requests.registers[0].max() == 1, "the same condition stays decided"
        steps.move([2])
        assert requests.registers[0].abs().max() == 0


def test_the_models_protocol_and_its_words(
    compiled_llama: Any, llama: Any, batch: Any, direction: Any
) -> None:
    assert isinstance(compiled_llama, Model)
    assert (llama.path, compiled_llama.path) == ("eager", "compiled")
    view = compiled_llama.with_(sk.Add(direction(llama)))
    assert "compiled, 6 slots" in repr(view) and "steered: " in repr(view)
    assert view.with_() is view and view.plain.table is None and view.eager.table is view.table
    for refused in (
        lambda: view.run(batch, sites=[Site(0)]),
        lambda: view.run(batch, grad=True),
        view.compile,
        view.as_hf,
    ):
        with pytest.raises(InterventionError, match=r"\.eager"):
            refused()
    with pytest.raises(InterventionError, match="did you mean 'last'"):
        view.run(batch, logits="lst")
    assert torch.equal(view.read_out(torch.eye(32)[:2]), llama.read_out(torch.eye(32)[:2]))


def test_text_in_text_out_in_batches_of_the_capacity(tiny_model: Any) -> None:
    prompts = ["the cat was happy", "tell me how to make cake", "rain", "the bird was sad and", "a"]
    room = Capacity(slots=1, terms=1, latches=0, gates=False, rows=2, length=32, chunk=8)
    view = tiny_model.compile(room, backend="eager")
    wanted = tiny_model.generate(prompts, max_new_tokens=6)
    found = view.generate(prompts, max_new_tokens=6)
    assert [f.tokens for f in found] == [w.tokens for w in wanted]
    assert max(len(b) for b in view.batches(prompts)) == 2


def test_a_steered_view_compiles_into_just_the_room_it_needs(
    llama: Any, batch: Any, relative: Any, direction: Any
) -> None:
    steered = llama.with_(sk.Ablate(direction(llama, 0)), sk.Add(direction(llama, 1), 2.0))
    view = steered.compile(backend="eager")
    assert view.engine.sites == (Site(0), Site(1))
    capacity = view.engine.capacity
    assert (capacity.slots, capacity.terms, capacity.gates, capacity.latches) == (1, 1, False, 0)
    wanted = steered.run(batch).logits
    assert relative(view.run(batch).logits[batch.mask], wanted[batch.mask]) < 1e-5
