"""What the eager path gives: every operator, family, stream and rule, cached or not."""

from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.compiled import Capacity
from steerkit.interventions import OPERATORS, InOrder, LowRank, Rotate, SetFeatures, When
from steerkit.site import Site

BOUND = 1e-5
RULES = ["all", "prompt", "last_prompt", "generated", (0, -1), (-2, 3, 11)]


def rows(n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 32, generator=g, dtype=torch.float64) / 32**0.5


def operators(model: Any, direction: Any, rule: Any = "all") -> dict[str, Any]:
    """One of every registered operator, at layer 0 or 1."""
    d, e = direction(model, 1), direction(model, 1, seed=1)
    own = {"positions": rule}
    return {
        "ablate": sk.Ablate(d, reference="negative_mean", **own),
        "add": sk.Add(d, 2.0, **own),
        "add_keeping_norm": sk.AddKeepingNorm(d, 1.5, **own),
        "affine": sk.Affine(d, gain=0.5, bias=1.0, **own),
        "clamp": sk.Clamp(d, low=0.1, high=0.2, **own),
        "low_rank": LowRank(rows(3, 0), rows(3, 1), torch.ones(3).double(), sites=[1], **own),
        "rotate": Rotate([d, e], to=30.0, **own),
        "set_features": SetFeatures(
            encoder=rows(2, 2),
            bias=torch.ones(2).double(),
            decoder=rows(2, 3),
            target=[2.0, 0.7],
            threshold=[0.0, 0.1],
            sites=[0],
            **own,
        ),
    }


def conditions(model: Any, direction: Any) -> dict[str, Any]:
    """Operators under conditions of each kind, decided at layer 0; and in order."""
    d, read = direction(model, 1), direction(model, 0, seed=5)
    return {
        on: sk.Add(d, 2.0).when(When(read, above=0.0, on=on))
        for on in ("last_prompt", "mean_prompt", "token")
    } | {
        "below": sk.Ablate(d).when(When(read, below="zero", measure="projection")),
        "in_order": InOrder(sk.Ablate(d), Rotate([d, direction(model, 1, seed=2)], by=40.0)),
        "open": sk.AddKeepingNorm(d, 2.0).when(When(read, above=-1.0, on="mean_prompt")),
    }


def test_every_registered_operator_is_compared(llama: Any, direction: Any) -> None:
    assert set(operators(llama, direction)) == set(OPERATORS.names())


def agree(eager: Any, compiled: Any, batch: Any, cached: Any, relative: Any, *given: Any) -> None:
    """Logits of the whole batch at once, and a token a step, equal the eager ones."""
    slots = [1 + i % len(given) for i in range(len(batch))]
    wanted = eager.with_rows(*given).run(batch, slots=slots).logits
    view = compiled.with_rows(*given)
    found = view.run(batch, slots=slots).logits
    assert view.receipt.path == "compiled"
    assert view.receipt.steered == 2 and view.receipt.untouched == 0
    assert relative(found[batch.mask], wanted[batch.mask]) < BOUND
    for row, logits in enumerate(cached(view, (0, 1, 2), slots)):
        answer = wanted[row][batch.mask[row]][batch.prompt_len[row] - 1 :]
        assert relative(logits, answer) < BOUND
    assert view.receipt.steered == 2 + batch.answer_width


def test_every_operator_in_one_batch_and_cached(
    pair: Any, batch: Any, cached: Any, relative: Any, direction: Any
) -> None:
    eager, compiled = pair
    given = list(operators(eager, direction).values())
    plain = eager.run(batch).logits
    for i in range(0, len(given), 3):
        chosen = [(one,) for one in given[i : i + 3]]
        agree(eager, compiled, batch, cached, relative, *chosen)
        for row, one in enumerate(chosen):
            moved = eager.with_(*one).run(batch).logits
            assert not torch.allclose(moved[row], plain[row], atol=1e-3), "a test of nothing"


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_position_rule(
    pair: Any, batch: Any, cached: Any, relative: Any, direction: Any, rule: Any
) -> None:
    eager, compiled = pair
    every = operators(eager, direction, rule)
    given = [(every["add"],), (every["rotate"], every["clamp"]), (every["set_features"],)]
    agree(eager, compiled, batch, cached, relative, *given)


@pytest.mark.parametrize(
    "kind", ["last_prompt", "mean_prompt", "token", "below", "open", "in_order"]
)
def test_conditions_and_orders(
    pair: Any, batch: Any, cached: Any, relative: Any, direction: Any, kind: str
) -> None:
    eager, compiled = pair
    given = conditions(eager, direction)[kind]
    agree(eager, compiled, batch, cached, relative, (given,))
    other = conditions(eager, direction)["in_order" if kind != "in_order" else "token"]
    agree(
        eager, compiled, batch, cached, relative, (given,), (other,), (sk.Add(direction(eager, 0)),)
    )


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("stream", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"])
def test_every_stream(
    full_pair: Any, batch: Any, relative: Any, direction: Any, stream: Any, layer: int
) -> None:
    eager, compiled = full_pair
    d = direction(eager, layer, stream)
    given = [sk.Ablate(d), sk.Add(direction(eager, layer, stream, seed=3), 1.5, "prompt")]
    wanted = eager.with_(*given).run(batch).logits
    found = compiled.with_(*given).run(batch).logits
    assert relative(found[batch.mask], wanted[batch.mask]) < BOUND


def test_a_mixed_batch_is_each_row_alone(
    pair: Any, batch: Any, batch_of: Any, relative: Any, direction: Any
) -> None:
    eager, compiled = pair
    every = operators(eager, direction)
    view = compiled.with_rows(
        [every["rotate"]], [conditions(eager, direction)["mean_prompt"]], [every["low_rank"]]
    )
    for slots in ([1, 2, 3], [3, 0, 1], [2, 1, 2]):
        together = view.run(batch, slots=slots).logits
        for row, slot in enumerate(slots):
            single = view.run(batch_of((row,)), slots=[slot]).logits[0]
            assert relative(together[row][batch.mask[row]], single) < BOUND


@pytest.mark.parametrize(
    ("temperature", "truncation"), [(0.0, {}), (0.8, {}), (1.5, {"top_k": 20, "top_p": 0.9})]
)
def test_generated_tokens_are_the_eager_ones(
    pair: Any, batch_of: Any, direction: Any, temperature: float, truncation: dict[str, Any]
) -> None:
    eager, compiled = pair
    d = direction(eager)
    given = [
        [sk.Add(d, 2.0)],
        [sk.Ablate(d), sk.AddKeepingNorm(direction(eager, 0, seed=4), 1.0, "generated")],
        [conditions(eager, direction)["last_prompt"]],
    ]
    asked = batch_of(answers=False)
    slots = [1, 2, 3]
    answers = [
        view.engine.complete(
            asked,
            view.table,
            slots,
            max_new_tokens=8,
            temperature=temperature,
            seed=1,
            **truncation,
        )
        for view in (eager.with_rows(*given), compiled.with_rows(*given))
    ]
    for row, (wanted, found) in enumerate(zip(*answers, strict=True)):
        if wanted != found:
            # Only where the two best were as good as equal.
            step = next(i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b)
            text = asked.tokens[row][asked.mask[row]].tolist() + list(wanted[:step])
            logits = eager.with_(*given[row]).run(batch_from(text, len(asked.tokens[row])))
            best = logits.logits[0, -1].topk(2).values
            assert temperature == 0 and best[0] - best[1] < 1e-4


def batch_from(tokens: list[int], prompt: int) -> Any:
    from steerkit.batch import Batch, Tokenized

    return Batch.collate([Tokenized(tuple(tokens[:prompt]), tuple(tokens[prompt:]))], pad_id=0)


@pytest.mark.parametrize("logits", ["last", "answer", "all", "none"])
def test_which_logits(pair: Any, batch: Any, relative: Any, direction: Any, logits: Any) -> None:
    eager, compiled = pair
    given = sk.Add(direction(eager), 1.0)
    wanted = eager.with_(given).run(batch, logits=logits).logits
    found = compiled.with_(given).run(batch, logits=logits).logits
    if logits == "none":
        assert found is None
        return
    kept = batch.mask[:, -wanted.shape[1] :]
    assert found.shape == wanted.shape
    assert relative(found[kept], wanted[kept]) < BOUND


def test_half_precision_is_no_further_from_the_truth_than_the_eager_path(
    network_of: Any, batch: Any, direction: Any
) -> None:
    truth = sk.wrap(network_of("llama").double(), name="tiny")
    half = sk.wrap(network_of("llama").bfloat16(), name="tiny")
    sites = [Site(0), Site(1)]
    given = [sk.Add(direction(half, 0), 1.0), sk.Ablate(direction(half, 1, seed=1))]
    wanted = truth.with_(*given, force=True).run(batch).logits
    room = Capacity(slots=1, terms=1, latches=0, gates=False, rows=3, length=32, chunk=8)
    compiled = half.compile(room, sites=sites, backend="eager")

    def error(view: Any) -> float:
        out = view.with_(*given).run(batch).logits.double()
        return float((out - wanted)[batch.mask].norm() / wanted[batch.mask].norm())

    assert error(compiled) <= 1.1 * error(half)
