"""Turns on a network belong to the network, however often it is wrapped."""

import gc

import steerkit as sk
from steerkit.models import engine
from steerkit.models.engine import turns_of


def test_every_wrap_of_a_network_shares_its_turns(make_network):
    network = make_network("llama")
    a, b = sk.wrap(network), sk.wrap(network)
    assert a.engine is not b.engine and a.engine.turns is b.engine.turns
    assert sk.wrap(make_network("llama")).engine.turns is not a.engine.turns


def test_turns_end_with_the_network(make_network):
    network = make_network("llama")
    turns_of(network)
    key = id(network)
    assert key in engine._TURNS
    del network
    gc.collect()
    assert key not in engine._TURNS


def test_of_nested_turns_the_innermost_is_awake(make_network):
    turns = turns_of(make_network("llama"))
    with turns.taken() as outer:
        assert outer()
        with turns.taken() as inner:
            assert inner() and not outer()
        assert outer()
