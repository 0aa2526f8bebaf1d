"""Faults of a published routing audit (arXiv:2603.18280) that the default does not have."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.activations import Activations
from steerkit.probing import probe
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion, ModelInfo
from steerkit.refusals import is_refusal
from steerkit.site import Site
from steerkit.suites import Material, routing
from steerkit.suites.subject import Subject

INFO = ModelInfo("made", "fake", 2, 8, 9, 64, ("resid_post",), "float32", "cpu", "f")
QUICK: dict[str, Any] = {"n_permutations": 19, "n_random": 0, "n_folds": 4, "progress": False}


def test_an_offer_to_help_is_no_refusal() -> None:
    """The published markers hold `i can`, which opens most helpful answers (arXiv:2603.18280)."""
    for answer in ("I can help with that: take two eggs.", "Yes, I can. Mix it.", "i can do it ."):
        assert "i can" in answer.lower() and not is_refusal(answer)
    assert is_refusal("I can't do that.") and is_refusal("I cannot.")


def test_words_are_held_against_the_probe_on_the_same_left_out_categories() -> None:
    """A left-out category shares words with the others, and a list of them reads it as well as the
    published probe does (arXiv:2603.18280, which has no such arm)."""
    generator = torch.Generator().manual_seed(0)
    labels = [1] * 40 + [0] * 40
    values = torch.randn(80, 1, 8, generator=generator)
    values[:40, :, 0] += 3
    names = [f"kind{i % 4}" for i in range(40)] * 2
    groups = [f"pair{i % 40}" for i in range(80)]

    def left_out(words: tuple[str, str]) -> Any:
        said = [
            f"{words[1 - y]} of {c} number {g}"
            for y, c, g in zip(labels, names, groups, strict=True)
        ]
        prompts = tuple(Prompt(t, category=c) for t, c in zip(said, names, strict=True))
        acts = Activations(values, (Site(0),), prompts, tuple(labels), tuple(groups), "last", INFO)
        report = probe(acts, "ridge", **QUICK)
        assert any("words alone, left out" in row for row in report.rows()[1])
        return report.left_out

    given_away = left_out(("capital", "market"))
    assert given_away.words.value == 1 and given_away.over_words.low <= 0
    silent = left_out(("place", "place"))
    assert silent.words.low <= 0.5 and silent.over_words.low > 0


def test_ablation_goes_no_further_than_its_reference() -> None:
    """Published strengths of 5 to 20 turn a projection round and blow it up (arXiv:2603.18280).
    Ours are the share of the way to a reference; a routing audit tries none above the whole."""
    tried: dict[str, Any] = {}

    def searched(*_: Any, **options: Any) -> Any:
        tried.update(options)
        return SimpleNamespace(final=None, nearest=("it", "kl", 9.0), limits={"kl": 1.0})

    subject = planned(refuses=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "search", searched)
        patch.setattr(routing, "capture", lambda *_, **__: None)
        patch.setattr(routing, "extract", lambda *_, **__: None)
        found = routing.routed(subject, "refusal", "requests are left unanswered")
    assert max(tried["strengths"]) <= 1 and min(tried["strengths"]) > 0
    assert found.answer == "inconclusive"


def planned(*, refuses: bool, n: int = 24) -> Subject:
    """A scripted model asked about templates of two requests each."""
    sides = [
        [Prompt(f"{side} {i}", answer="right", group=f"{side}{i // 2}") for i in range(n)]
        for side in ("harm", "plain")
    ]

    def generate(prompts: Any, **_: Any) -> list[Completion]:
        said = ["no" if refuses and p.text.startswith("harm") else "right" for p in prompts]
        return [Completion(p, s, (1,), (2,)) for p, s in zip(prompts, said, strict=True)]

    model: Any = SimpleNamespace(info=INFO, generate=generate, table=None)
    return Subject(model, Material({"refusal": Contrast.of(*sides, name="refusal")}))


def test_what_chooses_a_layer_and_what_is_reported_share_no_template() -> None:
    """The published layer is the best on the folds that are reported, its strength was chosen on
    four of eight final prompts, and its hard set repeats the easy one (arXiv:2603.18280). Ours
    fits, chooses and reports on parts that share no template."""
    train, rest = planned(refuses=True).parts("refusal")
    assert not set(train.groups) & set(rest.groups)
    assert not {p.text for p in train.prompts} & {p.text for p in rest.prompts}
    choose, report = rest.split(0.5, seed=0)
    assert not set(choose.groups) & set(report.groups)


def test_states_are_read_where_answers_are_generated_chat_template_and_all(
    tiny_model: Any, tiny_folder: Any
) -> None:
    """The published direction is read from bare prompts and applied to chat turns
    (arXiv:2603.18280). Here both render a prompt alike, and it can be seen."""
    for template in ("chat", "raw", "auto"):
        prompt = Prompt("how to make a cake ?", template=template)
        (said,) = tiny_model.generate([prompt], max_new_tokens=1)
        (tokens,) = tiny_model.tokenize([prompt])
        assert tuple(said.prompt_tokens) == tuple(tokens.prompt)
        with torch.no_grad():
            states = tiny_model.network(
                torch.tensor([list(said.prompt_tokens)]), output_hidden_states=True
            ).hidden_states
        acts = sk.capture(tiny_model, [prompt], layers=0, positions="last", progress=False)
        torch.testing.assert_close(acts.at(0)[0], states[1][0, -1])


def test_a_null_that_is_trained_on_what_it_is_scored_on_is_perfect_and_ours_is_not() -> None:
    """Published innocuous topics are scored on their training rows, and 100% at every layer
    (arXiv:2603.18280). With more dimensions than prompts anything is; held out, nothing is."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(32, 1, 200, generator=generator)
    labels = [1] * 16 + [0] * 16
    prompts = tuple(Prompt(f"w{i}") for i in range(32))
    groups = tuple(f"g{i}" for i in range(32))
    acts = Activations(
        values, (Site(0),), prompts, tuple(labels), groups, "last", replace(INFO, d_model=200)
    )
    (direction,) = sk.extract(
        acts, "mean_difference", n_permutations=19, n_random=0, progress=False
    )
    trained = direction.project(acts.at(0)).numpy()
    assert min(trained[:16]) > max(trained[16:]), "on its own rows it is perfect"
    found = probe(acts, "mean_difference", **{**QUICK, "categories": False})
    assert found.verdict == "nothing" and found.permutation.p > 0.05
    assert np.isfinite(found.permutation.q95) and found.permutation.n == 19
