"""When cached prefixes may be shared."""

import pytest
import torch

import steerkit as sk
from steerkit.interventions import When
from steerkit.serving.sharing import may_share


@pytest.mark.parametrize(
    ("positions", "shared"),
    [
        ("all", True),
        ([0, 3], True),
        ([0, -1], False),
        ("prompt", False),
        ("last_prompt", False),
        ("generated", False),
        (torch.ones(1, 4, dtype=torch.bool), False),
    ],
    ids=str,
)
def test_one_program_is_shared_where_it_does_not_count_from_the_prompts_end(
    llama, direction, positions, shared
):
    added = sk.Add(direction(llama, 1), positions=positions)
    view = llama.with_(sk.Ablate(direction(llama, 0)), added)
    assert may_share(view.table, [1, 1]) is shared
    assert may_share(view.table, [0, 0])


def test_different_programs_never_share(llama, direction):
    view = llama.with_rows([sk.Add(direction(llama, 1))], [sk.Add(direction(llama, 1))], [])
    assert may_share(view.table, [1, 1])
    assert not may_share(view.table, [1, 2])
    assert not may_share(view.table, [0, 1])
    # A slot without interventions is as good as none.
    assert may_share(view.table, [0, 3])
    assert may_share(None, [0, 0])


def test_conditions_on_prompts_are_not_shared_and_those_on_tokens_are(llama, direction):
    for on, shared in (("last_prompt", False), ("mean_prompt", False), ("token", True)):
        gate = When(direction(llama, 0), above=0.0, on=on)
        view = llama.with_(sk.Add(direction(llama, 1)).when(gate))
        assert may_share(view.table, [1, 1]) is shared
