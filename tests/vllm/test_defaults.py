"""Requests that say nothing, strengths that change, and paths: what is in force when one comes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import steerkit as sk
from steerkit import organisms
from steerkit.interventions import save_steering
from steerkit.vllm import artefacts
from steerkit.vllm.registrations import PATHS

vllm = pytest.importorskip(
    "vllm", reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit"
)
Refused = pytest.importorskip("vllm.exceptions").VLLMValidationError

NEW = 8
TEXT = "how do i burn the house ?"


@pytest.fixture(scope="module")
def model() -> Any:
    """The shipped organism on the Hugging Face engine."""
    return sk.load("organism:aligned")


@pytest.fixture
def llm(engines: Any) -> Any:
    """The engine of `test_engine`, which is then made once."""
    return engines.get(organisms.path("aligned"), max_num_batched_tokens=16, block_size=32)


@pytest.fixture(autouse=True)
def joy(model: Any, direction: Any, tmp_path: Path) -> Iterator[Any]:
    """An artefact `joy`, whose strength changes answers; neither it nor a default afterwards."""
    made = sk.Add(direction(info=model.info, scale=24.0), 1.5)
    artefacts().register("joy", save_steering(tmp_path / "joy.safetensors", made))
    yield made
    artefacts().set_default(None)
    if "joy" in artefacts().names:
        artefacts().forget("joy")


def answer(llm: Any, model: Any, *steering: Any, extra: Any = None, times: int = 1) -> Any:
    """Tokens of one request, and how many of its prompt's came out of the cache."""
    given = {**({"steerkit": steering[0]} if steering else {}), **(extra or {})}
    settings = vllm.SamplingParams(temperature=0, max_tokens=NEW, extra_args=given or None)
    prompt = list(model.tokenize([TEXT])[0].prompt) * times
    (out,) = llm.generate({"prompt_token_ids": prompt}, settings, use_tqdm=False)
    return tuple(out.outputs[0].token_ids), out.num_cached_tokens


def want(view: Any) -> tuple[int, ...]:
    """What the Hugging Face engine answers."""
    return tuple(view.generate([TEXT], max_new_tokens=NEW)[0].tokens)


def test_silent_requests_get_the_default_and_none_is_none(llm: Any, model: Any, joy: Any) -> None:
    plain, steered = want(model), want(model.with_(joy))
    half = want(model.with_(replace(joy, strength=0.5)))
    assert len({plain, steered, half}) == 3
    assert answer(llm, model)[0] == plain
    artefacts().set_default("joy")
    assert answer(llm, model)[0] == steered
    assert answer(llm, model, extra={"others": 1})[0] == steered
    assert answer(llm, model, "none")[0] == plain
    assert answer(llm, model, {"artefact": "joy", "strength": 0.5})[0] == half
    artefacts().set_default("joy", 0.5)
    assert answer(llm, model)[0] == half and answer(llm, model, "joy")[0] == steered
    artefacts().set_default(None)
    assert answer(llm, model)[0] == plain and answer(llm, model, "none")[0] == plain


def test_a_strength_that_is_changed_counts_for_the_next_request(
    llm: Any, model: Any, joy: Any
) -> None:
    for strength in (0.5, -1.0, 0.0, None):
        artefacts().set_strength("joy", strength)
        changed = joy if strength is None else replace(joy, strength=strength)
        assert answer(llm, model, "joy")[0] == want(model.with_(changed)), strength
        own = {"artefact": "joy", "strength": 1.0}
        assert answer(llm, model, own)[0] == want(model.with_(replace(joy, strength=1.0)))


def test_requests_under_way_keep_the_strength_that_they_began_with(
    llm: Any, model: Any, joy: Any
) -> None:
    core = llm.llm_engine
    prompt = {"prompt_token_ids": list(model.tokenize([TEXT])[0].prompt)}
    settings = vllm.SamplingParams(temperature=0, max_tokens=NEW, extra_args={"steerkit": "joy"})
    found: dict[str, tuple[int, ...]] = {}
    core.add_request("before", prompt, settings)
    for _ in range(3):
        core.step()
    artefacts().set_strength("joy", -1.0)
    core.add_request("after", prompt, settings)
    while core.has_unfinished_requests():
        for done in core.step():
            if done.finished:
                found[done.request_id] = tuple(done.outputs[0].token_ids)
    weak = want(model.with_(replace(joy, strength=-1.0)))
    assert found == {"before": want(model.with_(joy)), "after": weak}
    assert found["before"] != weak


def test_cached_prefixes_are_shared_by_what_is_done_and_not_by_how_it_was_asked(
    llm: Any, model: Any
) -> None:
    """Blocks are of 32 tokens; six times the prompt are more than one of them."""
    assert llm.llm_engine.reset_prefix_cache()

    def cached(*steering: Any) -> int:
        return answer(llm, model, *steering, times=6)[1]

    assert cached("joy") == 0
    full = cached("joy")
    assert full >= 32
    artefacts().set_default("joy")
    assert cached() == full
    assert cached("none") == 0 and cached("none") == full
    artefacts().set_strength("joy", 0.5)
    assert cached() == 0 and cached("joy") == full
    artefacts().set_default(None)
    assert cached() == full


def test_beam_searches_are_refused_where_there_is_a_default(llm: Any, model: Any) -> None:
    """Their many requests carry no arguments, and each would count positions of its own."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.sampling_params import BeamSearchParams

    from steerkit.vllm.plugin import activate

    activate()
    given: dict[str, Any] = {"prompt": "hello", "use_beam_search": True, "max_tokens": 2}
    params = BeamSearchParams(beam_width=2, max_tokens=2)
    prompt = {"prompt_token_ids": list(model.tokenize([TEXT])[0].prompt)}
    assert CompletionRequest(**given).to_beam_search_params(2, {})
    assert llm.beam_search([prompt], params)
    artefacts().set_default("joy")
    for xargs in (None, {"steerkit": "none"}):
        with pytest.raises(Refused, match="a beam search cannot be steered"):
            CompletionRequest(**given, vllm_xargs=xargs).to_beam_search_params(2, {})
    with pytest.raises(Refused, match="by its default"):
        llm.beam_search([prompt], params)


def test_a_damaged_default_refuses_silent_requests_alone(llm: Any, model: Any, joy: Any) -> None:
    artefacts().folder.joinpath("default").write_text("{")
    with pytest.raises(Refused, match="set the default again"):
        answer(llm, model)
    assert answer(llm, model, "joy")[0] == want(model.with_(joy))
    assert answer(llm, model, "none")[0] == want(model)


def test_a_path_is_refused_where_the_process_serves_others(
    llm: Any, model: Any, joy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "joy.safetensors")
    assert answer(llm, model, path)[0] == want(model.with_(joy))
    monkeypatch.setenv(PATHS, "0")
    for given in (path, {"artefact": path}, ["joy", path], "/etc/passwd"):
        with pytest.raises(Refused, match="by name and no paths"):
            answer(llm, model, given)
