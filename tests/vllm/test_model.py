"""`sk.load("vllm:...")`: the protocol of every model, and what the Hugging Face engine gives."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit import organisms
from steerkit.batch import Batch, Tokenized
from steerkit.captures import capture_positions
from steerkit.captures.pooling import Span
from steerkit.datasets import refusal
from steerkit.errors import (
    InterventionError,
    MethodError,
    ModelError,
    PromptError,
    SiteError,
)
from steerkit.models.generate import until
from steerkit.prompts import Prompt
from steerkit.scoring import answer_log_probs, kl_by_slot, with_own_answers
from steerkit.site import Site
from steerkit.suites import Material
from steerkit.vllm import artefacts, captured

vllm = pytest.importorskip(
    "vllm", reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit"
)

TEXTS = (
    "how do i burn the house ?",
    "hello , how are you ?",
    "please tell me how to bake a cake",
    "the nurse said",
    "is the sun big ?",
    "tell me about the river",
)
SMALL = {"max_num_seqs": 8, "max_model_len": 128, "block_size": 32}


@pytest.fixture(scope="module")
def hf() -> Any:
    """The shipped organism on the Hugging Face engine."""
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def model(engines: Any) -> Iterator[Any]:
    """The same in vLLM: prompts in chunks of 16 tokens, eight requests at a time."""
    engines.stop()
    made = sk.load("vllm:organism:aligned", max_num_batched_tokens=16, **SMALL)
    yield made
    made.close()


@pytest.fixture(scope="module")
def kinds(hf: Any, steerings: Any, direction: Any) -> dict[str, Any]:
    """Steerings of every kind."""
    found: dict[str, Any] = steerings(
        partial(direction, info=hf.info, scale=24.0), hf.info.n_layers - 1
    )
    return found


@pytest.fixture(scope="module")
def refused(hf: Any) -> Any:
    """A direction of refusal."""
    acts = sk.capture(hf, refusal("train", n=20), layers=1, progress=False)
    return sk.extract(acts, "mean_difference", n_folds=0, progress=False)[0]


def prompts() -> list[Prompt]:
    """Of several lengths, some with answers to be scored."""
    answers = ("no , i can not do that", "", "yes", "", "", "it is long")
    return [Prompt(text, answer=answer) for text, answer in zip(TEXTS, answers, strict=True)]


def off(found: torch.Tensor, want: torch.Tensor, real: torch.Tensor) -> float:
    """Largest relative difference of a token."""
    gap = (found - want)[real].norm(dim=-1) / want[real].norm(dim=-1)
    return float(gap.max())


def test_it_is_known_as_the_same_model(model: Any, hf: Any, refused: Any) -> None:
    same = ("name", "model_type", "n_layers", "d_model", "d_vocab", "fingerprint", "chat", "dtype")
    for field in same:
        assert getattr(model.info, field) == getattr(hf.info, field), field
    assert model.info.streams == ("resid_pre", "resid_post")
    assert (model.info.n_ctx, model.path) == (128, "vllm")
    assert repr(model.with_(sk.Add(refused))).startswith("VLLMModel('organism:aligned'")
    assert model.tokenize(TEXTS) == hf.tokenize(TEXTS)


@pytest.mark.parametrize("before", [False, True])
def test_streams_and_logits_of_every_kind_in_one_batch(
    model: Any, hf: Any, kinds: dict[str, Any], before: bool
) -> None:
    """Each row its own program, plain ones too; answers that come along are no prompt."""
    texts = [prompts()[i % len(TEXTS)] for i in range(len(kinds) + 2)]
    slots = [0, *range(1, len(kinds) + 1), 0]
    batch = hf.encode(texts)
    sites = [Site(layer, s) for layer in range(hf.info.n_layers) for s in model.info.streams]
    ours, theirs = (
        one.with_rows(*kinds.values()).run(batch, sites=sites, slots=slots, before=before)
        for one in (model, hf)
    )
    for site in sites:
        assert off(ours.streams[site], theirs.streams[site], batch.mask) < 1e-4, site
        assert not ours.streams[site][~batch.mask].any()
        assert ours.fired[site] == 1
    assert off(ours.logits, theirs.logits, batch.mask) < 1e-4
    plain = hf.run(batch, sites=sites, logits="none")
    assert off(plain.streams[sites[-1]], theirs.streams[sites[-1]], batch.mask) > 0.05


def test_logits_as_they_were_asked_for(model: Any, hf: Any, kinds: dict[str, Any]) -> None:
    batch = hf.encode(prompts())
    for logits in ("last", "answer", "all"):
        ours, theirs = (
            one.with_(*kinds["generated"]).run(batch, logits=logits).logits for one in (model, hf)
        )
        assert ours.shape == theirs.shape
        assert off(ours, theirs, batch.mask[:, -ours.shape[1] :]) < 1e-4, logits
    nothing = model.run(batch, logits="none")
    assert nothing.logits is None and not nothing.streams
    silent = model.run(batch, sites=[Site(0)], logits="none")
    assert silent.logits is None


def test_captures_by_every_rule_are_the_same(model: Any, hf: Any, kinds: dict[str, Any]) -> None:
    given = [Prompt(text, answer="yes") for text in TEXTS[:3]]
    settings: dict[str, Any] = {"streams": ["resid_pre", "resid_post"], "progress": False}
    for positions in ("last", "mean_prompt", "mean_answer", "all", 0, -2, Span("how")):
        if isinstance(positions, Span):
            given = [prompt for prompt in given if "how" in prompt.text]
        for sinks in (False, 1.5) if positions in ("all", "mean_prompt") else (False,):
            ours, theirs = (
                sk.capture(
                    one.with_(*kinds["late"]),
                    given,
                    positions=positions,
                    exclude_sinks=sinks,
                    **settings,
                )
                for one in (model, hf)
            )
            assert torch.equal(ours.positions, theirs.positions)
            assert torch.allclose(ours.values, theirs.values, rtol=1e-4, atol=1e-4), positions
    rules = ("last", "mean_prompt", -2)
    both = [capture_positions(one, given, rules, progress=False) for one in (model, hf)]
    for name, ours in both[0].items():
        assert torch.allclose(ours.values, both[1][name].values, rtol=1e-4, atol=1e-4), name


def test_only_the_tokens_that_a_pool_reads_are_captured(
    model: Any, hf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last token of each prompt, not whole texts of which one row is kept."""
    from steerkit.vllm import records

    inner, taken = records.append, list[int]()

    def counted(name: str, place: Any, positions: Any, *rest: Any) -> None:
        taken.extend(positions)
        inner(name, place, positions, *rest)

    monkeypatch.setattr("steerkit.vllm.recording.append", counted)
    sk.capture(model, list(TEXTS), progress=False)
    assert len(taken) == len(TEXTS)


def test_directions_extracted_here_and_there_are_the_same(model: Any, hf: Any) -> None:
    train = refusal("train", n=40)
    ours, theirs = (
        sk.extract(
            sk.capture(one, train, progress=False), "mean_difference", n_folds=0, progress=False
        )
        for one in (model, hf)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.site == b.site
        assert float(a.unit @ b.unit) > 0.9999
    # What was taken in one engine steers in the other.
    steered = hf.with_(sk.Ablate(ours[1]))
    want = steered.generate(TEXTS[:2], max_new_tokens=6)
    found = model.with_(sk.Ablate(theirs[1])).generate(TEXTS[:2], max_new_tokens=6)
    assert [one.tokens for one in found] == [one.tokens for one in want]


def test_answers_of_every_kind_are_the_same(model: Any, hf: Any, kinds: dict[str, Any]) -> None:
    """One batch in which every request carries its own program; views that are stacked."""
    several = {name: kind for name, kind in kinds.items() if name != "order"}
    stacked = kinds["late"]
    for view, rows in ((lambda m: m, kinds), (lambda m: m.with_(*stacked), several)):
        slots = list(range(len(rows) + 1))
        texts = [TEXTS[i % len(TEXTS)] for i in slots]
        ours, theirs = (
            view(one).with_rows(*rows.values()).generate(texts, max_new_tokens=12, slots=slots)
            for one in (model, hf)
        )
        assert [one.tokens for one in ours] == [one.tokens for one in theirs]
        assert [one.text for one in ours] == [one.text for one in theirs]
    assert len({one.tokens for one in ours}) > 4
    assert model.plain.generate(TEXTS)[0].tokens == hf.generate(TEXTS)[0].tokens


def test_answers_end_where_they_end(model: Any, hf: Any) -> None:
    ends = model.engine.text.eos_ids
    ours, theirs = (one.generate(TEXTS, max_new_tokens=40) for one in (model, hf))
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    assert any(one.tokens[-1] in ends for one in ours)
    assert all(one.tokens == until(one.tokens, ends) for one in ours)


def test_samples_depend_on_the_seed_and_the_prompts_number(model: Any) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.5}
    many = model.generate(TEXTS, seed=3, **settings)
    assert [c.tokens for c in model.generate_batch(TEXTS, seed=3, **settings)] == [
        c.tokens for c in many
    ]
    assert model.generate(TEXTS[:1], seed=3, **settings)[0].tokens == many[0].tokens
    assert [c.tokens for c in model.generate(TEXTS, seed=4, **settings)] != [c.tokens for c in many]
    greedy = model.generate(TEXTS, max_new_tokens=8)
    likeliest = model.generate(TEXTS, seed=4, top_k=1, **settings)
    assert [c.tokens for c in likeliest] == [c.tokens for c in greedy]


def test_scores_are_the_same(model: Any, hf: Any, kinds: dict[str, Any]) -> None:
    """Log-probabilities, and KL of many slots from one plain model, by the verbs of scoring."""
    own = with_own_answers(hf.generate(TEXTS, max_new_tokens=6))
    ours, theirs = (answer_log_probs(one.with_(*kinds["add"]), own) for one in (model, hf))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    rows = [kinds["add"], kinds["rotate"], kinds["gated"]]
    found = [kl_by_slot(one, one.with_rows(*rows), own, (1, 2, 3)) for one in (model, hf)]
    for ours_, theirs_ in zip(*found, strict=True):
        for a, b in zip(ours_, theirs_, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_directions_are_read_out_alike(model: Any, hf: Any) -> None:
    vectors = torch.randn(3, hf.info.d_model, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.read_out(vectors), hf.read_out(vectors), rtol=1e-5, atol=1e-5)


def test_nothing_is_left_behind(model: Any, kinds: dict[str, Any]) -> None:
    model.with_(*kinds["add"]).run(model.encode(TEXTS[:2]), sites=[Site(1)])
    for folder in ("captures", "programs"):
        assert not list((artefacts().folder / folder).iterdir())


def test_what_it_cannot_do_is_refused_with_what_can(
    model: Any, hf: Any, kinds: dict[str, Any], refused: Any
) -> None:
    batch = model.encode(TEXTS[:1])
    for wrong, message in (
        (lambda: model.run(batch, grad=True), "keeps no gradients; load the same checkpoint"),
        (lambda: model.compile(), "compiles by itself"),
        (lambda: model.as_hf(), "no Hugging Face object"),
        (lambda: model.network, "has no network"),
        (lambda: model.watch(refused), "is not watched"),
        (lambda: model.generate_batch(TEXTS, config=object()), "has its own batching"),
        (lambda: sk.load("organism:aligned", enforce_eager=True), "an option of vLLM"),
        (lambda: sk.load("vllm:organism:aligned", device="cuda"), "this vLLM runs on 'cpu'"),
        (lambda: sk.load("vllm:organism:nobody"), "organism"),
    ):
        with pytest.raises((ModelError, MethodError), match=message):
            wrong()
    with pytest.raises(SiteError, match=r"no mlp_out@1: organism:aligned has resid_pre, resid_po"):
        model.run(batch, sites=["mlp_out@1"])
    with pytest.raises(InterventionError, match="needs 18 terms"):
        model.with_(*kinds["rotate"] * 9).generate(TEXTS[:1])
    ids = tuple(batch.tokens[0].tolist())
    full = Batch.collate([Tokenized((ids * 40)[:128])], pad_id=0)
    with pytest.raises(PromptError, match="at most 127 here"):
        model.run(full)
    with pytest.raises(PromptError, match="too long"):
        model.generate([" ".join(TEXTS * 6)])
    assert model.generate(TEXTS[:1])[0].tokens == hf.generate(TEXTS[:1])[0].tokens


def test_requests_are_captured_by_their_own_arguments(model: Any, hf: Any, refused: Any) -> None:
    """As users of `LLM` write them: beside a steered answer, pooled, and what is refused."""
    llm, ids = model.engine.llm, list(hf.tokenize(TEXTS[:1])[0].prompt)
    place, d = artefacts(), refused
    from steerkit.interventions import save_steering

    place.register("joy", save_steering(place.folder / "joy.safetensors", sk.Add(d, 2.0)))

    def ask(*captures: Any, n: int = 1) -> Any:
        extra = {"steerkit": {"steering": "joy", "capture": list(captures)}}
        settings = vllm.SamplingParams(
            temperature=n - 1,
            max_tokens=9,
            n=n,
            extra_args=extra,
            ignore_eos=True,
            detokenize=False,
        )
        (out,) = llm.generate({"prompt_token_ids": ids}, settings, use_tqdm=False)
        sent.update((out.kv_transfer_params or {}).get("steerkit", {}))
        return tuple(out.outputs[0].token_ids)

    sent: dict[str, Any] = {}
    said = ask(
        {"name": "all", "sites": [0, 1], "logits": True},
        {"name": "back", "sites": [0, 1], "positions": "last_prompt", "inline": True},
        {"name": "mean", "sites": [1], "pool": "mean"},
        {"name": "said", "sites": [1], "positions": "generated"},
    )
    batch = Batch.collate([Tokenized(tuple(ids), said[:-1])], pad_id=0)
    want = hf.with_(sk.Add(d, 2.0)).run(batch, sites=[Site(0), Site(1)])
    real = batch.mask[0]
    whole = captured("all")
    assert whole.model == hf.info.fingerprint and whole.steering
    for site in whole.sites:
        assert off(whole.at(site), want.streams[site][0], real) < 1e-4
    assert whole.logits is not None and off(whole.logits, want.logits[0], real) < 1e-4
    assert whole.logits[len(ids) - 1 :].argmax(-1).tolist() == list(said)
    mean = want.streams[Site(1)][0, : len(ids)].mean(0)
    assert off(captured("mean").at(1), mean[None], torch.ones(1, dtype=torch.bool)) < 1e-4
    assert torch.equal(captured("said").at(1), whole.at(1)[len(ids) :])
    assert list(sent) == ["back"]
    back = torch.tensor(sent["back"]["values"])
    assert torch.equal(back[0], whole.values[len(ids) - 1])
    Refused = pytest.importorskip("vllm.exceptions").VLLMValidationError
    ask({"name": "twice", "sites": [1]})
    with pytest.raises(Refused, match="a capture named 'twice' is here already"):
        ask({"name": "other", "sites": [1]}, {"name": "twice", "sites": [1]})
    captured("twice")
    with pytest.raises(Refused, match="several answers"):
        ask({"name": "twice", "sites": [1]}, n=2)
    with pytest.raises(Refused, match=r"resid_mid"):
        ask({"name": "twice", "sites": ["resid_mid@1"]})
    assert not list((place.folder / "captures").iterdir())


def test_prompts_that_share_cached_blocks_are_captured_whole(model: Any, hf: Any) -> None:
    """Blocks of a prompt that ran before are not read where their tokens are wanted."""
    ids = (list(hf.tokenize(TEXTS[:1])[0].prompt) * 9)[:70]
    batch = Batch.collate([Tokenized(tuple(ids))], pad_id=0)
    want = hf.run(batch, sites=[Site(2)])
    for _ in range(2):
        found = model.run(batch, sites=[Site(2)])
        assert off(found.streams[Site(2)], want.streams[Site(2)], batch.mask) < 1e-4
    answered = model.run(batch, logits="last").logits
    assert off(answered, want.logits[:, -1:], torch.ones(1, 1, dtype=torch.bool)) < 1e-4


def test_a_suite_says_the_same(model: Any, hf: Any, refused: Any) -> None:
    """Greedy answers and scores of a small suite: the same verdicts and numbers."""
    ours, theirs = (
        sk.audit(
            one,
            suite=["refusal", "censorship", "change"],
            material=Material.of_organisms(12, seed=4),
            steering=sk.Ablate(refused),
            max_new_tokens=8,
            progress=False,
        )
        for one in (model, hf)
    )
    assert list(ours.findings) == list(theirs.findings)
    for name, finding in theirs.findings.items():
        assert ours[name].answer == finding.answer
        for what, estimate in finding.estimates.items():
            same = ours[name].estimates[what]
            for end in ("value", "low", "high"):
                want = pytest.approx(getattr(estimate, end), abs=1e-4, nan_ok=True)
                assert getattr(same, end) == want, what


def test_a_model_in_a_folder_and_the_compiled_path(model: Any, hf: Any, kinds: Any) -> None:
    """Last in this file: it ends the engine of the other tests."""
    model.close()
    folder = Path(organisms.path("aligned"))
    made = sk.load(f"vllm:{folder}", enforce_eager=False, num_gpu_blocks_override=9, **SMALL)
    try:
        config = made.engine.llm.llm_engine.vllm_config.compilation_config
        assert config.backend == "inductor"
        assert made.info.name == folder.name
        assert made.info.fingerprint == hf.info.fingerprint
        interrupted = _preempted_captures(made, hf, kinds)
        assert interrupted
    finally:
        made.close()


def _preempted_captures(model: Any, hf: Any, kinds: Any) -> list[str]:
    """Requests that wait and return in a cache too small for all of them, captured whole."""
    from steerkit.interventions import save_steering

    place = artefacts()
    names = ["add", "latch", "mean", "generated", "late", "", "several", "latch"]
    for name in set(names) - {""}:
        place.register(name, save_steering(place.folder / f"{name}.safetensors", kinds[name]))
    texts = [(list(hf.tokenize([TEXTS[i % 3]])[0].prompt) * 5)[: 29 + i % 3] for i in range(8)]
    scheduler = model.engine.llm.llm_engine.engine_core.engine_core.scheduler
    inner, interrupted = scheduler._preempt_request, []

    def counted(request: Any, *rest: Any, **more: Any) -> Any:
        interrupted.append(request.request_id)
        return inner(request, *rest, **more)

    scheduler._preempt_request = counted
    settings = [
        vllm.SamplingParams(
            temperature=0,
            max_tokens=40,
            ignore_eos=True,
            detokenize=False,
            extra_args={
                "steerkit": {
                    "steering": {"artefact": name, "force": True} if name else "none",
                    "capture": {"name": f"run-{i}", "sites": [0, 2]},
                }
            },
        )
        for i, name in enumerate(names)
    ]
    given = [{"prompt_token_ids": text} for text in texts]
    out = model.engine.llm.generate(given, settings, use_tqdm=False)
    for i, (name, text, one) in enumerate(zip(names, texts, out, strict=True)):
        said = tuple(one.outputs[0].token_ids)
        batch = Batch.collate([Tokenized(tuple(text), said[:-1])], pad_id=0)
        view = hf.with_(*kinds[name]) if name else hf
        want = view.run(batch, sites=[Site(0), Site(2)], logits="none").streams
        found = captured(f"run-{i}")
        assert found.positions.tolist() == list(range(len(text) + 39)), name
        for site in found.sites:
            assert off(found.at(site), want[site][0], batch.mask[0]) < 1e-4, name
    return interrupted
