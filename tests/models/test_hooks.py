"""Hooks live during calls only: after each, also a failed one, the network is as before."""

import copy
import threading

import pytest
import torch

import steerkit as sk
from steerkit.models.hooks import with_outgoing
from steerkit.site import Site


def snapshot(network):
    """Everything that a call could leave changed."""
    modules = dict(network.named_modules())
    return {
        "state": {k: v.clone() for k, v in network.state_dict().items()},
        "buffers": {k: v.clone() for k, v in network.named_buffers()},
        "identities": {k: id(v) for k, v in network.named_parameters()},
        "grads": {
            k: None if v.grad is None else v.grad.clone() for k, v in network.named_parameters()
        },
        "requires_grad": {k: v.requires_grad for k, v in network.named_parameters()},
        "hooks": {
            k: (
                list(m._forward_hooks.values()),
                list(m._forward_pre_hooks.values()),
                list(m._backward_hooks.values()),
            )
            for k, m in modules.items()
        },
        "classes": {k: type(m) for k, m in modules.items()},
        "own": {k: sorted(vars(m)) for k, m in modules.items()},
        "forwards": {k: m.__dict__.get("forward") for k, m in modules.items()},
        "training": {k: m.training for k, m in modules.items()},
        "config": network.config.to_dict(),
        "generation": network.generation_config.to_dict(),
        "rng": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(params=["llama", "gpt2", "mixtral"])
def network(request, make_network):
    """A network with a training block and a foreign hook, as a user may have left it."""
    network = make_network(request.param)
    blocks = sk.wrap(network).engine.blocks
    blocks[1].module.train()
    blocks[0].module.register_forward_hook(lambda module, args, output: None)
    # The library adds attributes of its own on the first generate.
    sk.wrap(network).engine.network.generate(
        torch.tensor([[5, 6]]), attention_mask=torch.ones(1, 2, dtype=torch.long), max_new_tokens=1
    )
    return network


class Broken(Exception):
    pass


def test_every_call_leaves_the_network_as_it_was(network, batch, direction):
    before = copy.copy(snapshot(network))
    model = sk.wrap(network)
    assert same(snapshot(network), before), "wrap"
    steered = model.with_(sk.Add(direction(model.info, 1)))
    site = Site(1)
    calls = {
        "run": lambda: steered.run(batch, sites=[site]),
        "stopped run": lambda: steered.run(batch, sites=[site], logits="none"),
        "grad run": lambda: steered.run(batch, sites=[site], grad=True),
        "rows": lambda: model.with_rows([sk.Add(direction(model.info, 0))]).run(
            batch, slots=[0, 1, 1]
        ),
        "generate": lambda: complete(steered, batch, 0.0),
        "sampling": lambda: complete(steered, batch, 1.0),
        "read_out": lambda: model.read_out(torch.ones(1, 32)),
    }
    for name, call in calls.items():
        call()
        assert same(snapshot(network), before), name


def forward_as_hf(steered, batch):
    # The caller's own forward: in training mode it may draw from the global generator.
    with torch.random.fork_rng(), steered.as_hf() as hf, torch.no_grad():
        hf(input_ids=batch.tokens, attention_mask=batch.mask.long())


def complete(model, batch, temperature):
    return model.engine.complete(
        batch, model.table, [1] * 3, max_new_tokens=3, temperature=temperature, seed=0
    )


def test_a_failed_call_leaves_the_network_as_it_was(network, batch, direction):
    model = sk.wrap(network)
    steered = model.with_(sk.Add(direction(model.info, 1)))
    before = snapshot(network)

    def broken(stream, batch):
        raise Broken

    with pytest.raises(Broken):
        steered.run(batch, sites=[Site(1)], pool=broken)
    assert same(snapshot(network), before)
    handle = model.engine.blocks[2].module.register_forward_pre_hook(lambda m, args: 1 / 0)
    try:
        for call in (
            lambda: steered.run(batch),
            lambda: complete(steered, batch, 0.0),
            lambda: forward_as_hf(steered, batch),
        ):
            with pytest.raises(ZeroDivisionError):
                call()
    finally:
        handle.remove()
    assert same(snapshot(network), before)


def test_our_hooks_go_before_those_of_others(make_network, batch, direction):
    """What another tool's hook sees, and `output_hidden_states`, is the steered stream."""
    network = make_network("llama")
    seen = []
    network.model.layers[1].register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    model = sk.wrap(network)
    d = direction(model.info, 1)
    seen.clear()
    steered = model.with_(sk.Add(d))
    mine = steered.run(batch, sites=[Site(1)]).streams[Site(1)]
    assert torch.equal(seen[0], mine)
    with steered.as_hf() as hf, torch.no_grad():
        states = hf(
            input_ids=batch.tokens,
            attention_mask=batch.mask.long(),
            position_ids=batch.position_ids,
            output_hidden_states=True,
        ).hidden_states
    real = batch.mask
    late = llama_prompt_only(steered, batch)
    torch.testing.assert_close(states[2][real], late[real])


def llama_prompt_only(steered, batch):
    return steered.run(batch, sites=[Site(1)]).streams[Site(1)]


def test_one_call_at_a_time(llama, batch):
    """Another thread waits for its turn."""
    order, threads = [], []

    def pool(stream, batch):
        thread = threading.Thread(target=lambda: (llama.run(batch), order.append("other")))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first")
        threads.append(thread)
        return stream.sum()

    llama.run(batch, sites=[Site(1)], pool=pool)
    threads[0].join(60)
    assert order == ["first", "other"]


def test_calls_nest_and_each_is_steered_by_its_own_view_alone(llama, batch, direction):
    """A pool may itself run the model, and so may code inside `as_hf`."""
    site = Site(1)
    plain = llama.run(batch, sites=[site])
    steered = llama.with_(sk.Add(direction(llama.info, 0), strength=2.0))
    expected = steered.run(batch, sites=[site])
    inner = []

    def pool(stream, given):
        inner.append(llama.run(batch, sites=[site]))
        return stream.clone()

    found = steered.run(batch, sites=[site], pool=pool)
    assert torch.equal(found.streams[site], expected.streams[site])
    assert torch.equal(found.logits, expected.logits)
    with steered.as_hf():
        inner.append(llama.run(batch, sites=[site]))
        assert torch.equal(steered.run(batch, sites=[site]).logits, expected.logits)
        with llama.as_hf() as hf, torch.no_grad():
            assert torch.equal(hf(input_ids=batch.tokens[:1]).logits, plain_row(llama, batch))
    for run in inner:
        assert torch.equal(run.streams[site], plain.streams[site])
        assert torch.equal(run.logits, plain.logits)


def plain_row(model, batch):
    with torch.no_grad():
        return model.network(input_ids=batch.tokens[:1]).logits


def test_outputs_keep_their_kind():
    new = torch.ones(1)
    assert with_outgoing(torch.zeros(1), new) is new
    assert with_outgoing((torch.zeros(1), "cache"), new) == (new, "cache")
    assert with_outgoing([torch.zeros(1)], new) == [new]
