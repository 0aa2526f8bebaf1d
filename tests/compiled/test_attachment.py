"""Nothing is silently unsteered: blocks are proven live, hooks refused, networks left alone."""

from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.compiled import Capacity, engine
from steerkit.compiled.copies import structural_copy
from steerkit.errors import HookError, ModelError
from steerkit.site import Site

ROOM = Capacity(slots=1, rows=2, length=16, chunk=8, gates=False, latches=0)


def test_copies_share_every_weight_and_nothing_else(network_of: Any) -> None:
    network = network_of("llama")
    made = structural_copy(network)
    ours = {id(p) for p in (*network.parameters(), *network.buffers())}
    assert {id(p) for p in (*made.parameters(), *made.buffers())} == ours
    modules = {id(m) for m in network.modules()}
    assert not modules & {id(m) for m in made.modules()}


def test_the_users_network_is_left_as_it_is(network_of: Any, batch: Any) -> None:
    network = network_of("llama").train()
    model = sk.wrap(network, name="tiny")
    before = {name: dict(vars(module)) for name, module in network.named_modules()}
    weights = {name: part.clone() for name, part in network.state_dict().items()}
    compiled = model.compile(ROOM, backend="eager")
    compiled.run(batch_of_one(batch))
    for name, module in network.named_modules():
        now = vars(module)
        assert now.keys() == before[name].keys() and "forward" not in now
        assert now["training"] and not now["_forward_hooks"] and not now["_forward_pre_hooks"]
    for name, part in network.state_dict().items():
        assert torch.equal(part, weights[name])
    # Weights are shared: what is trained further is what runs.
    with torch.no_grad():
        network.model.norm.weight.mul_(2)
    one = batch_of_one(batch)
    torch.testing.assert_close(
        compiled.run(one).logits, model.run(one).logits, rtol=1e-4, atol=1e-4
    )


def batch_of_one(batch: Any) -> Any:
    from steerkit.batch import Batch, Tokenized

    return Batch.collate([Tokenized(tuple(batch.tokens[0, :5].tolist()))], pad_id=0)


@pytest.mark.parametrize("broken", ["nothing", "one_site", "all_rows", "prefill_only"])
def test_a_broken_attachment_is_found(
    network_of: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    attach, program = engine.attach, engine.Programs._steer

    def attached(blocks: Any, visits: Any) -> None:
        if broken == "nothing":
            return
        if broken == "one_site":
            visits = {site: visit for site, visit in visits.items() if site != Site(1)}
        attach(blocks, visits)

    def steer(self: Any, h: Any, site: int) -> Any:
        out = program(self, h, site)
        if broken == "all_rows":
            return h + (out - h).sum(0, keepdim=True)
        return h if broken == "prefill_only" and h.shape[1] == 1 else out

    monkeypatch.setattr(engine, "attach", attached)
    monkeypatch.setattr(engine.Programs, "_steer", steer)
    messages = {
        "nothing": "prefill .* canary at resid_post@0 did not move",
        "one_site": "canary at resid_post@1 did not move",
        "all_rows": "moved a row at slot 0",
        "prefill_only": "decode step .* did not move",
    }
    model = sk.wrap(network_of("llama"), name="tiny")
    with pytest.raises(HookError, match=messages[broken]):
        model.compile(ROOM, backend="eager")


def test_hooks_of_others_are_refused_before_and_after(network_of: Any, batch: Any) -> None:
    network = network_of("llama")
    model = sk.wrap(network, name="tiny")
    compiled = model.compile(ROOM, backend="eager")
    handle = network.model.layers[1].mlp.register_forward_hook(lambda *args: None)
    for call in (lambda: model.compile(ROOM), lambda: compiled.run(batch_of_one(batch))):
        with pytest.raises(HookError, match=r"'model\.layers\.1\.mlp' .* has a hook"):
            call()
    handle.remove()
    assert compiled.run(batch_of_one(batch)).logits is not None
    # What the library itself leaves behind for output_hidden_states is no hook of anybody's.
    network(input_ids=torch.tensor([[3, 4]]), output_hidden_states=True)
    assert compiled.run(batch_of_one(batch)).logits is not None
    network.model.norm.weight = torch.nn.Parameter(torch.ones(32))
    with pytest.raises(ModelError, match="compile it again"):
        compiled.run(batch_of_one(batch))


def test_inside_calls_of_the_eager_model(network_of: Any, batch: Any, direction: Any) -> None:
    model = sk.wrap(network_of("llama"), name="tiny")
    compiled = model.compile(ROOM, backend="eager")
    one = batch_of_one(batch)
    wanted = compiled.run(one).logits
    with model.with_(sk.Add(direction(model), 3.0)).as_hf():
        assert torch.equal(compiled.run(one).logits, wanted)
