"""A packed stream is its requests, each run alone."""

import pytest
import torch

import steerkit as sk
from steerkit.errors import HookError
from steerkit.interventions import When
from steerkit.kernels.reference import apply, pack
from steerkit.serving.additions import Stretch, additions
from steerkit.serving.packed import PackedSession

PROMPTS = (5, 9, 3, 6)


def session_of(view, slots):
    session = PackedSession(prompt_len=PROMPTS)
    session.steer(view.table, slots)
    return session


def passed(session, streams, stretches):
    """One pass over the stretches, whose streams are given by site."""
    session.begin_packed(stretches, torch.device("cpu"))
    out = {site: visit(streams[site]) for site, visit in session.visits.items()}
    session.end_packed()
    return out


PASSES = (
    (Stretch(1, 0, 4), Stretch(0, 0, 5), Stretch(3, 0, 1)),
    (Stretch(0, 5, 1), Stretch(1, 4, 5), Stretch(2, 0, 3), Stretch(3, 1, 5)),
    (Stretch(0, 6, 1), Stretch(1, 9, 1), Stretch(2, 3, 1), Stretch(3, 6, 1)),
)


@pytest.mark.parametrize("slots", [(1, 2, 3, 0), (1, 1, 1, 1), (3, 3, 3, 3), (0, 3, 0, 2)])
def test_a_packed_stream_equals_each_request_alone(llama, direction, slots):
    gate = When(direction(llama, 0, seed=5), above=0.0, on="mean_prompt")
    view = llama.with_rows(
        [sk.Add(direction(llama, 1)), sk.Ablate(direction(llama, 2), positions="prompt")],
        [sk.Ablate(direction(llama, 1, seed=3), positions="generated")],
        [sk.Add(direction(llama, 1, seed=4)).when(gate), sk.Add(direction(llama, 2, seed=8))],
    )
    check_alone(view, slots)


RULES = ("all", "prompt", "last_prompt", "generated", [0, -1, 2], -2)


@pytest.mark.parametrize("gated", [None, "last_prompt", "mean_prompt"])
@pytest.mark.parametrize("first", range(len(RULES)))
def test_sites_that_only_add_are_looked_up_and_equal_each_request_alone(
    llama, direction, gated, first
):
    gate = When(direction(llama, 0, seed=5), above=0.0, on=gated) if gated else None

    def added(number):
        rule = RULES[(first + number) % len(RULES)]
        op = sk.Add(direction(llama, 1, seed=number), strength=1.0 + number, positions=rule)
        other = sk.Add(direction(llama, 1, seed=9 + number), strength=-0.5, positions=rule)
        return [o.when(gate) if gate and number else o for o in (op, other)]

    # The site that decides adds as well, for a request that the condition is not about too.
    here = [sk.Add(direction(llama, 0, seed=20), positions=RULES[first])]
    view = llama.with_rows(added(0), [*added(1), *here], added(2))
    slots = (1, 2, 3, 0)
    for site in view.table.sites:
        found = additions(view.table.at(site), slots, torch.device("cpu"), torch.float64)
        assert found is not None
        assert found.deciding is bool(gated and site.layer == 0)
    check_alone(view, slots)
    check_alone(view, (2, 2, 2, 2))


def test_what_does_more_than_add_is_not_looked_up(llama, direction):
    on_token = When(direction(llama, 1, seed=5), above=0.0, on="token")
    mask = torch.ones(4, 20, dtype=torch.bool)
    for operators in (
        [sk.Ablate(direction(llama, 1))],
        [sk.Add(direction(llama, 1)), sk.Ablate(direction(llama, 1))],
        [sk.Add(direction(llama, 1)).when(on_token)],
        [sk.Add(direction(llama, 1), positions=mask)],
        [sk.Add(direction(llama, 1)), sk.Add(direction(llama, 1), positions="prompt")],
    ):
        programs = llama.with_(*operators).table.at(sk.Site(1))
        assert additions(programs, (1, 1), torch.device("cpu"), torch.float32) is None
    programs = llama.with_(sk.Add(direction(llama, 1))).table.at(sk.Site(1))
    assert additions(programs, (1, 1), torch.device("cpu"), torch.bfloat16) is None


def check_alone(view, slots):
    """Three passes over packed streams against each request in a batch of its own."""
    session = session_of(view, slots)
    generator = torch.Generator().manual_seed(0)
    alone: dict[int, dict[str, torch.Tensor]] = {i: {} for i in range(4)}
    for stretches in PASSES:
        width = sum(stretch.length for stretch in stretches)
        streams = {
            site: torch.randn(1, width, 32, generator=generator, dtype=torch.float64)
            for site in session.visits
        }
        out = passed(session, streams, stretches)
        first = 0
        for stretch in stretches:
            i, here = stretch.request, slice(first, first + stretch.length)
            first += stretch.length
            for site in session.visits:
                packed = pack(view.table.at(site), "cpu", torch.float64)
                want = apply(
                    packed,
                    streams[site][:, here],
                    absolute=torch.arange(stretch.start, stretch.start + stretch.length)[None],
                    prompt_len=torch.tensor([PROMPTS[i]]),
                    row=torch.tensor([i]),
                    slot=[slots[i]],
                    latches=alone[i],
                )
                torch.testing.assert_close(out[site][:, here], want, rtol=1e-12, atol=1e-12)
                touched = (want != streams[site][:, here]).any(-1)
                kept = ~touched[0]
                assert torch.equal(out[site][0, here][kept], streams[site][0, here][kept])


@pytest.mark.parametrize("ablating", [True, False])
@pytest.mark.parametrize("stretches", PASSES)
def test_nothing_leaks_from_a_broken_neighbour_and_no_stream_is_changed_in_place(
    llama, direction, stretches, ablating
):
    first = (sk.Ablate if ablating else sk.Add)(direction(llama, 1))
    view = llama.with_rows([first], [sk.Add(direction(llama, 1))])
    session = session_of(view, (1, 2, 0, 1))
    (site,) = session.visits
    width = sum(stretch.length for stretch in stretches)
    stream = torch.randn(1, width, 32, generator=torch.Generator().manual_seed(1))
    clean = passed(session, {site: stream}, stretches)[site]
    broken = stream.clone()
    broken[0, : stretches[0].length] = torch.nan
    given = broken.clone()
    found = passed(session, {site: broken}, stretches)[site]
    assert torch.equal(broken.nan_to_num(7.0), given.nan_to_num(7.0))
    assert torch.equal(found[:, stretches[0].length :], clean[:, stretches[0].length :])


def test_a_stream_of_another_shape_is_refused(llama, direction):
    session = session_of(llama.with_(sk.Add(direction(llama, 1))), (1, 1, 1, 1))
    (site,) = session.visits
    with pytest.raises(HookError, match=r"resid_post@1 has shape \(2, 10, 32\).*10 packed tokens"):
        passed(session, {site: torch.zeros(2, 10, 32)}, PASSES[0])
