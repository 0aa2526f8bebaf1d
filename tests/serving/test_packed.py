"""A packed stream is its requests, each run alone."""

import pytest
import torch

import steerkit as sk
from steerkit.errors import HookError
from steerkit.interventions import When
from steerkit.kernels.reference import apply, pack
from steerkit.serving.packed import PackedSession, Stretch

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


@pytest.mark.parametrize("stretches", PASSES)
def test_nothing_leaks_from_a_broken_neighbour_and_no_stream_is_changed_in_place(
    llama, direction, stretches
):
    view = llama.with_rows([sk.Ablate(direction(llama, 1))], [sk.Add(direction(llama, 1))])
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
