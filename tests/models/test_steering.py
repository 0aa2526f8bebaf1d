"""Programs at hooks mean the same with and without a cache, in chunks, and in mixed batches."""

from dataclasses import dataclass, replace

import pytest
import torch

import steerkit as sk
from steerkit.batch import Positions
from steerkit.errors import HookError, InterventionError
from steerkit.interventions import OPERATORS
from steerkit.site import Site

MASK = torch.zeros(3, 12, dtype=torch.bool)
MASK[:, 1::3] = True
RULES = {
    "all": "all",
    "prompt": "prompt",
    "last_prompt": "last_prompt",
    "generated": "generated",
    "indices": (0, 2, -2),
    "mask": MASK,
}
SETTINGS = {
    "add": {"strength": 1.5},
    "add_keeping_norm": {"strength": 1.5},
    "ablate": {"reference": "negative_mean"},
    "clamp": {"high": "negative_mean"},
    "affine": {"gain": 0.3, "bias": 0.7},
    "low_rank": {},
    "rotate": {"to": 40},
    "set_features": {"target": 1.5, "threshold": 0.1},
}


def operator(name, direction, **changes):
    """An operator about a direction; those of matrices get some that the direction decides."""
    settings, at = SETTINGS.get(name, {}), {"sites": direction.site}
    made = OPERATORS[name]
    if name in ("low_rank", "set_features"):
        rows = torch.stack([direction.unit, direction.unit.roll(1)])
        other = torch.stack([direction.unit.roll(2), direction.unit.roll(3)])
        given = {
            "low_rank": {"rotation": rows, "weight": other, "bias": torch.ones(2)},
            "set_features": {"encoder": rows, "bias": torch.ones(2), "decoder": other},
        }[name]
        return made(**{**given, **at, **settings, **changes})
    if name == "rotate":
        return made(
            [direction, replace(direction, unit=direction.unit.roll(1))], **settings, **changes
        )
    return made(direction, **{**settings, **changes})


def test_every_operator_is_tried_here():
    assert set(SETTINGS) == set(OPERATORS.names())


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("rule", RULES)
def test_cached_chunked_and_uncached_logits_agree(
    llama, batch, direction, relative, fed, name, rule
):
    steered = llama.with_(
        operator(name, direction(llama.info, 0), positions=RULES[rule]),
        operator(name, direction(llama.info, 1, "resid_mid", 1), positions=RULES[rule]),
        operator(name, direction(llama.info, 2, "attn_out", 2), positions=RULES[rule]),
    )
    whole = steered.run(batch).logits
    real = batch.mask
    assert not torch.allclose(whole[real], llama.run(batch).logits[real], atol=1e-3)
    prefill = batch.width - batch.answer_width
    for chunks in (
        [batch.width],
        [prefill, *[1] * batch.answer_width],
        [3, prefill - 3, *[1] * batch.answer_width],
        [1] * batch.width,
        [batch.width - 1, 1],
    ):
        assert relative(fed(steered, batch, chunks)[real], whole[real]) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_generated_tokens_are_what_uncached_runs_predict(llama, batch, direction, rule):
    """Every decoded token is steered as a teacher-forced run says it should be."""
    d = direction(llama.info, 1)
    steered = llama.with_(sk.Add(d, strength=2.0, positions=RULES[rule]))
    prompts = replace(batch, prompt_len=batch.mask.sum(1))
    new = steered.engine.complete(
        prompts, steered.table, [1] * 3, max_new_tokens=6, temperature=0.0, seed=0
    )
    for row, tokens in enumerate(new):
        prompt = batch.tokens[row][batch.mask[row]].tolist()
        item = sk.batch.Tokenized(tuple(prompt), tokens)
        forced = sk.batch.Batch.collate([item], pad_id=0, rows=[row])
        logits = steered.run(forced).logits[0, len(prompt) - 1 : -1]
        for step, token in enumerate(tokens):
            best = logits[step].topk(2)
            if best.values[0] - best.values[1] > 1e-4:
                assert token == best.indices[0]


@pytest.mark.parametrize("stream", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"])
def test_rows_at_slot_zero_keep_their_bits(llama, batch, direction, stream):
    view = llama.with_rows([sk.Add(direction(llama.info, 1, stream), strength=3.0)])
    plain = llama.run(batch, sites=[Site(2)])
    mixed = view.run(batch, sites=[Site(2)], slots=[0, 1, 0])
    for row in (0, 2):
        assert torch.equal(mixed.logits[row], plain.logits[row])
        assert torch.equal(mixed.streams[Site(2)][row], plain.streams[Site(2)][row])
    assert not torch.allclose(mixed.logits[1], plain.logits[1], atol=1e-3)


def test_each_row_of_a_mixed_batch_equals_its_program_alone(llama, batch, direction, relative):
    rows = [
        (sk.Add(direction(llama.info, 0), strength=1.0),),
        (operator("ablate", direction(llama.info, 1, "resid_mid", 1), positions="last_prompt"),),
        (operator("clamp", direction(llama.info, 0, seed=2)), sk.Add(direction(llama.info, 2))),
    ]
    view = llama.with_rows(*rows)
    mixed = view.run(batch, slots=[3, 1, 2]).logits
    for row, slot in enumerate((3, 1, 2)):
        alone = llama.with_(*rows[slot - 1]).run(batch).logits
        real = batch.mask[row]
        assert relative(mixed[row][real], alone[row][real]) < 1e-5


def test_a_site_where_nothing_acts_gets_no_hook(llama, batch, direction):
    view = llama.with_rows(
        [sk.Add(direction(llama.info, 0))], [sk.Add(direction(llama.info, 1))], ()
    )
    assert set(view.run(batch, slots=[1, 0, 1]).fired) == {Site(0)}
    assert set(view.run(batch, slots=[0, 3, 0]).fired) == set()
    assert set(llama.with_(sk.Add(direction(llama.info, 0), strength=0)).run(batch).fired) == set()


def test_capture_sees_the_stream_after_its_interventions_and_before_on_request(
    llama, batch, direction, relative
):
    for stream in llama.info.streams:
        d = direction(llama.info, 1, stream)
        site, steered = d.site, llama.with_(sk.Add(d))
        plain = llama.run(batch, sites=[site]).streams[site]
        after = steered.run(batch, sites=[site]).streams[site]
        before = steered.run(batch, sites=[site], before=True).streams[site]
        real = batch.mask
        assert torch.equal(before, plain)
        assert relative(after[real], (plain + d.vector)[real]) < 1e-5
        assert torch.equal(after[~real], plain[~real])


def test_interventions_of_one_call_read_together_and_views_in_order(llama, batch, direction):
    d = direction(llama.info, 1)
    add, ablate = sk.Add(d, strength=2.0), sk.Ablate(d)
    site, real = d.site, batch.mask

    def level(view):
        return d.project(view.run(batch, sites=[site]).streams[site][real])

    together = llama.with_(add, ablate)
    torch.testing.assert_close(level(together), torch.full((int(real.sum()),), 4.0))
    torch.testing.assert_close(level(llama.with_(ablate).with_(add)), level(together))
    first_add = level(llama.with_(add).with_(ablate))
    torch.testing.assert_close(first_add, torch.zeros_like(first_add), atol=1e-4, rtol=0)


@dataclass(frozen=True)
class Nothing:
    """An intervention of a foreign type, without a direction."""

    sites: tuple[Site, ...] = (Site(0),)
    positions: Positions = Positions()  # noqa: RUF009
    strength: float = 1.0
    fingerprint: str | None = None

    def lower(self, site):
        return sk.program.Program()


def test_stacking_rows_on_views_and_views_on_rows(llama, batch, direction):
    a, b, c = (sk.Add(direction(llama.info, 1, seed=i)) for i in range(3))
    rows_on_view = llama.with_(a).with_rows([b], ())
    view_on_rows = llama.with_rows([a, b], [a]).with_(c)
    for slots, equal in (([1] * 3, [a, b]), ([2] * 3, [a])):
        expected = llama.with_(equal[0])
        for later in equal[1:]:
            expected = expected.with_(later)
        real = batch.mask
        torch.testing.assert_close(
            rows_on_view.run(batch, slots=slots).logits[real], expected.run(batch).logits[real]
        )
        torch.testing.assert_close(
            view_on_rows.run(batch, slots=slots).logits[real],
            expected.with_(c).run(batch).logits[real],
        )
    with pytest.raises(InterventionError, match="this view has 2 slots; rows stacked on it"):
        rows_on_view.with_rows([b], [b], [b])
    assert llama.with_(Nothing()).run(batch).fired == {}


def test_a_hook_that_does_not_fire_raises_and_says_where(make_network, batch):
    network = make_network("llama")
    model = sk.wrap(network)
    network.model.layers[1] = torch.nn.Identity()
    original = torch.nn.Identity.forward
    torch.nn.Identity.forward = lambda self, x, *args, **kwargs: x
    try:
        with pytest.raises(HookError, match=r"must fire 1 time, but they fired: resid_post@1 0"):
            model.run(batch, sites=[Site(1), Site(2)])
    finally:
        torch.nn.Identity.forward = original


def test_a_block_that_runs_twice_raises(make_network, batch, direction):
    network = make_network("llama")
    model = sk.wrap(network)
    block = network.model.layers[1]
    once = block.forward
    block.forward = lambda x, **kwargs: once(network.model.layers[0](x, **kwargs), **kwargs)
    with pytest.raises(HookError, match=r"fired: resid_post@0 2"):
        model.run(batch, sites=[Site(0), Site(1)])
    with pytest.raises(HookError, match=r"fired: resid_post@0 2"):
        model.with_(sk.Add(direction(model.info, 0))).run(batch)
