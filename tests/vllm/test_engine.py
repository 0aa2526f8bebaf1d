"""Requests of a real vLLM engine: each answers as steerkit's Hugging Face engine does, alone."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit import organisms
from steerkit.batch import Batch, Tokenized
from steerkit.vllm import artefacts
from steerkit.vllm.worker import watching

vllm = pytest.importorskip(
    "vllm", reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit"
)
Refused = pytest.importorskip("vllm.exceptions").VLLMValidationError

NEW = 12
TEXTS = (
    "how do i burn the house ?",
    "hello , how are you ?",
    "please tell me how to bake a cake",
    "the nurse said",
    "is the sun big ?",
    "tell me about the river",
)


@pytest.fixture(scope="module")
def model() -> Any:
    """The shipped organism on the Hugging Face engine."""
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def views(model: Any, steerings: Any, direction: Any) -> dict[str, Any]:
    """A steered view of each kind."""
    made = steerings(partial(direction, info=model.info, scale=24.0), model.info.n_layers - 1)
    return {name: model.with_(*one) for name, one in made.items()}


@pytest.fixture(scope="module", autouse=True)
def _registered(
    model: Any, steerings: Any, direction: Any, register: Any, tmp_path_factory: Any
) -> None:
    made = steerings(partial(direction, info=model.info, scale=24.0), model.info.n_layers - 1)
    register(artefacts(), made, tmp_path_factory.mktemp("steerings"))


@pytest.fixture
def llm(engines: Any) -> Any:
    """The engine of most tests: prompts in chunks of 16 tokens, and room for few requests."""
    return engines.get(organisms.path("aligned"), max_num_batched_tokens=16, block_size=32)


def sampling(steering: Any = None, new: int = NEW) -> Any:
    """Greedy, with or without steering."""
    extra = None if steering is None else {"steerkit": steering}
    return vllm.SamplingParams(temperature=0, max_tokens=new, extra_args=extra)


def ids(model: Any, text: str) -> list[int]:
    """A prompt as steerkit renders it."""
    return list(model.tokenize([text])[0].prompt)


def answers(llm: Any, prompts: list[list[int]], steering: list[Any], new: int = NEW) -> list[Any]:
    """Tokens of each request, all of them given at once."""
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    out = llm.generate(given, [sampling(one, new) for one in steering], use_tqdm=False)
    return [tuple(one.outputs[0].token_ids) for one in out]


def test_a_mixed_batch_answers_as_each_request_does_alone(
    llm: Any, model: Any, views: dict[str, Any]
) -> None:
    """Every kind of steering beside unsteered requests; prompts come in chunks."""
    kinds: list[Any] = [None, *views, None]
    texts = [TEXTS[i % len(TEXTS)] for i in range(len(kinds))]
    found = answers(llm, [ids(model, text) for text in texts], kinds)
    moved = 0
    for kind, text, got in zip(kinds, texts, found, strict=True):
        view = model if kind is None else views[kind]
        (want,) = view.generate([text], max_new_tokens=NEW)
        (plain,) = model.generate([text], max_new_tokens=NEW)
        assert got == want.tokens, kind
        moved += want.tokens != plain.tokens
    assert moved >= 6


def test_sixty_four_programs_at_different_times_answer_as_alone(llm: Any, model: Any) -> None:
    """Requests come while others run; eight have room at a time."""
    draw = np.random.default_rng(0)
    given = [
        {
            "artefact": ("add", "ablate", "generated", "rotate")[i % 4],
            "strength": round(float(draw.uniform(0.3, 2.0)), 3),
            **({} if i % 4 == 1 else {"sites": [int(draw.integers(model.info.n_layers))]}),
        }
        for i in range(64)
    ]
    texts = [TEXTS[int(draw.integers(len(TEXTS)))] for _ in given]
    waiting, found, core = list(range(64)), {}, llm.llm_engine
    while waiting or core.has_unfinished_requests():
        for _ in range(int(draw.integers(0, 4))):
            if waiting:
                i = waiting.pop()
                core.add_request(
                    str(i), {"prompt_token_ids": ids(model, texts[i])}, sampling(given[i])
                )
        for done in core.step():
            if done.finished:
                found[int(done.request_id)] = tuple(done.outputs[0].token_ids)
    rows = [
        [
            replace(op, strength=one["strength"], sites=one.get("sites", op.sites))
            for op in artefacts().open(artefacts().named(one["artefact"]))
        ]
        for one in given
    ]
    want = model.with_rows(*rows).generate(texts, max_new_tokens=NEW, slots=range(1, 65))
    assert len({one.tokens for one in want}) > 16
    assert [found[i] for i in range(64)] == [one.tokens for one in want]


def test_streams_of_steered_requests_are_the_hugging_face_engines(
    llm: Any, model: Any, views: dict[str, Any]
) -> None:
    """At every steered site, every token of prompt and answer, within 1e-4 of its norm."""
    for kind, view in views.items():
        prompt = ids(model, TEXTS[0])
        with watching() as seen:
            (got,) = answers(llm, [prompt], [kind])
        assert set(seen) >= set(view.table.sites)
        batch = Batch.collate([Tokenized(tuple(prompt), got[:-1])], pad_id=0)
        for i, before in enumerate((True, False)):
            streams = view.run(batch, sites=view.table.sites, logits="none", before=before).streams
            for site in view.table.sites:
                found = seen[site]
                assert sorted(found) == list(range(len(prompt) + len(got) - 1))
                mine = torch.stack([found[position][i] for position in sorted(found)])
                gap = (mine - streams[site][0]).norm(dim=-1) / streams[site][0].norm(dim=-1)
                assert float(gap.max()) < 1e-4, (kind, site)


def test_a_cached_prefix_is_shared_by_those_alone_that_were_steered_alike(
    llm: Any, model: Any, views: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the salt there is no leak; without it there is, which shows that there would be."""
    from steerkit.vllm.admission import Admission

    long = (ids(model, " ".join(TEXTS)) * 4)[:70]
    batch = Batch.collate([Tokenized(tuple(long))], pad_id=0)
    core = llm.llm_engine

    def run(steering: Any) -> tuple[int, Any]:
        given = {"prompt_token_ids": long}
        (out,) = llm.generate([given], sampling(steering, 8), use_tqdm=False)
        return out.num_cached_tokens, tuple(out.outputs[0].token_ids)

    def want(view: Any) -> Any:
        out = view.engine.complete(
            batch, view.table, [int(view.table is not None)], max_new_tokens=8, temperature=0.0,
            seed=0,
        )  # fmt: skip
        return out[0]

    assert core.reset_prefix_cache()
    first, again = run("add"), run("add")
    assert first == (0, want(views["add"])) and again == (64, first[1])
    assert run(None) == (0, want(model))
    assert run("ablate") == (0, want(views["ablate"]))
    assert run({"artefact": "add", "strength": 0.7})[0] == 0
    assert run(None) == (64, want(model))
    # What counts from the prompt's end shares with prompts of its own length alone.
    assert run("generated")[0] == 0 and run("generated") == (64, want(views["generated"]))
    longer, long = long, [*long, 7]
    assert run("generated")[0] == 0 and run("add")[0] == 64
    long = longer

    inner = Admission.mark

    def unsalted(self: Any, request: Any, *found: Any) -> None:
        inner(self, request, *found)
        request.cache_salt = None

    assert core.reset_prefix_cache()
    monkeypatch.setattr(Admission, "mark", unsalted)
    run("add")
    cached, leaked = run(None)
    assert cached == 64 and leaked != want(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("joy", "steering refused: no artefact named 'joy'"),
        ({"artefact": "add", "sites": [9]}, r"steering refused: no resid_post@9"),
        ({"artefact": "add", "sites": "attn_out@1"}, r"steering refused: no attn_out@1"),
        (["rotate"] * 9, "needs 18 terms"),
    ],
)
def test_what_cannot_be_had_is_refused_and_the_engine_goes_on(
    llm: Any, model: Any, given: Any, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        answers(llm, [ids(model, TEXTS[0])], [given])
    (want,) = model.generate(TEXTS[:1], max_new_tokens=NEW)
    assert answers(llm, [ids(model, TEXTS[0])], [None]) == [want.tokens]


def test_a_file_of_another_model_is_refused(
    llm: Any, model: Any, direction: Any, tmp_path: Path
) -> None:
    from steerkit.interventions import save_steering

    other = sk.load("organism:base")
    file = save_steering(tmp_path / "other.safetensors", sk.Add(direction(info=other.info)))
    with pytest.raises(Refused, match="taken on organism:base"):
        answers(llm, [ids(model, TEXTS[0])], [str(file)])
    forced = {"artefact": str(file), "force": True}
    assert answers(llm, [ids(model, TEXTS[0])], [forced])


def test_beam_searches_and_growing_sessions_are_refused(llm: Any, model: Any) -> None:
    """Neither would be steered as asked; vLLM would answer them all the same."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    from steerkit.vllm.plugin import activate

    activate()
    settings: dict[str, Any] = {"prompt": "hello", "use_beam_search": True, "max_tokens": 4}
    assert CompletionRequest(**settings).to_beam_search_params(4, {})
    asked = CompletionRequest(**settings, vllm_xargs={"steerkit": "add"})
    with pytest.raises(Refused, match="a beam search cannot be steered"):
        asked.to_beam_search_params(4, {})
    process = llm.llm_engine.input_processor.process_inputs
    prompt = {"prompt_token_ids": ids(model, TEXTS[0])}
    with pytest.raises(Refused, match="streaming session goes on growing"):
        process("one", prompt, sampling("add"), ("generate",), resumable=True)


def test_preempted_requests_answer_as_if_they_had_not_been(
    engines: Any, model: Any, views: dict[str, Any]
) -> None:
    """A cache with room for the prompts alone: positions and latches survive."""
    kinds = ["add", "latch", "mean", "generated", "late", None, "several", "latch"]
    # One block of 32 tokens each, until they have answered a little.
    prompts = [(ids(model, TEXTS[i % 3]) * 5)[: 29 + i % 3] for i in range(len(kinds))]
    small = engines.get(organisms.path("aligned"), num_gpu_blocks_override=9, block_size=32)
    scheduler = small.llm_engine.engine_core.engine_core.scheduler
    inner, interrupted = scheduler._preempt_request, []

    def counted(request: Any, *rest: Any, **more: Any) -> Any:
        interrupted.append(request.request_id)
        return inner(request, *rest, **more)

    scheduler._preempt_request = counted
    found = answers(small, prompts, kinds, 40)
    assert interrupted
    for kind, prompt, got in zip(kinds, prompts, found, strict=True):
        view = model if kind is None else views[kind]
        batch = Batch.collate([Tokenized(tuple(prompt))], pad_id=0)
        (want,) = view.engine.complete(
            batch, view.table, [int(kind is not None)], max_new_tokens=40, temperature=0.0, seed=0
        )
        assert got == want, kind
