"""Architectures that vLLM runs, eager and compiled, against the Hugging Face engine."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.vllm import artefacts
from steerkit.vllm.certificate import certified
from steerkit.vllm.layers import ARCHITECTURES

vllm = pytest.importorskip(
    "vllm", reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit"
)

NEW = 10
PROMPTS = [[5, 17, 42, 8, 91, 33, 20], [9, 14, 77], [64, 5, 5, 28, 13], [3, 1, 4, 1, 5, 9, 2, 6]]
TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**TINY, "sliding_window": 64, "query_pre_attn_scalar": 32}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", "LlamaForCausalLM", TINY),
    "MistralForCausalLM": ("MistralConfig", "MistralForCausalLM", {**TINY, "sliding_window": None}),
    "Qwen2ForCausalLM": ("Qwen2Config", "Qwen2ForCausalLM", TINY),
    "Qwen3ForCausalLM": ("Qwen3Config", "Qwen3ForCausalLM", TINY),
    "Gemma2ForCausalLM": ("Gemma2Config", "Gemma2ForCausalLM", GEMMA),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA),
    "GPT2LMHeadModel": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 128, "n_embd": 64, "n_layer": 3, "n_head": 2, "n_positions": 128}
        | {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2},
    ),
}
KINDS = ("add", "ablate", "several", "generated", "latch", "order", "rotate", "gated")


def saved(folder: Path, architecture: str, **changes: Any) -> Any:
    """A random network of an architecture, in a folder; gives the Hugging Face view of it."""
    import transformers

    config, network, settings = FAMILIES[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = getattr(transformers, network)(
            getattr(transformers, config)(**{**settings, **changes})
        )
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1:
                # Fresh norms are all ones, which would hide mix-ups.
                noise = torch.randn(parameter.shape) * 0.2
                parameter.data += noise if "bias" in name or "norm" in name else 0
    made.save_pretrained(folder)
    return sk.wrap(made.eval(), name=folder.name)


def requests(kinds: Any, prompts: Any) -> tuple[list[Any], list[Any]]:
    """What vLLM is given: prompts, and greedy sampling with each its steering."""
    return [{"prompt_token_ids": list(prompt)} for prompt in prompts], [
        vllm.SamplingParams(
            temperature=0,
            max_tokens=NEW,
            extra_args={"steerkit": kind} if kind else None,
            detokenize=False,
        )
        for kind in kinds
    ]


def compare(llm: Any, model: Any, steerings: dict[str, Any], several: Path) -> int:
    """Tokens of a mixed batch are equal, a file holds its certificate; gives how many moved."""
    given = [None, *KINDS, None]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(given))]
    out = llm.generate(*requests(given, prompts), use_tqdm=False)
    moved = 0
    for kind, prompt, one in zip(given, prompts, out, strict=True):
        view = model.with_(*steerings[kind]) if kind else model
        batch = Batch.collate([Tokenized(tuple(prompt))], pad_id=0)
        settings: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 0.0, "seed": 0}
        (want,) = view.engine.complete(batch, view.table, [int(bool(kind))], **settings)
        (plain,) = model.engine.complete(batch, None, [0], **settings)
        assert tuple(one.outputs[0].token_ids) == want, kind
        moved += want != plain
    parity = certified(llm, model, several, [tuple(p) for p in PROMPTS[:2]], max_new_tokens=NEW)
    assert parity.holds, parity.summary()
    assert parity.logits < 1e-4 < 1e-2 < parity.logits_without
    for site in parity.sites:
        assert site.difference < 1e-4 < 1e-2 < site.without
        assert site.decoded_matched == site.decoded == 2 * (NEW - 1)
    return moved


@pytest.fixture
def made(
    request: Any, tmp_path: Path, steerings: Any, direction: Any, register: Any
) -> tuple[Path, Any, dict[str, Any]]:
    """A folder, the Hugging Face view of it, and steerings of every kind for it."""
    architecture, changes = request.param
    folder = tmp_path / architecture
    model = saved(folder, architecture, **changes)
    # Gemma's streams are long: embeddings are scaled up.
    scale = 60.0 if "Gemma" in architecture else 6.0
    steered = steerings(partial(direction, info=model.info, scale=scale), model.info.n_layers - 1)
    register(artefacts(), steered, tmp_path)
    return folder, model, steered


@pytest.mark.parametrize(
    "made", [(name, {}) for name in FAMILIES], indirect=True, ids=list(FAMILIES)
)
def test_each_architecture_streams_and_answers_as_the_hugging_face_engine(
    made: Any, engines: Any
) -> None:
    folder, model, steered = made
    llm = engines.get(folder, skip_tokenizer_init=True, logprobs_mode="raw_logits")
    assert compare(llm, model, steered, folder.parent / "several.safetensors") >= 3


@pytest.mark.parametrize(
    "made", [("LlamaForCausalLM", {"num_hidden_layers": 2})], indirect=True, ids=["llama"]
)
def test_compiled_engines_answer_as_eager_ones(made: Any, engines: Any) -> None:
    """vLLM's compiled path for a CPU, the operation in its graph."""
    folder, model, steered = made
    llm = engines.get(
        folder, skip_tokenizer_init=True, logprobs_mode="raw_logits", enforce_eager=False
    )
    assert llm.llm_engine.vllm_config.compilation_config.backend == "inductor"
    assert compare(llm, model, steered, folder.parent / "several.safetensors") >= 3


def test_every_known_architecture_is_tested() -> None:
    assert set(FAMILIES) == ARCHITECTURES


ALONE = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=8,
              disable_log_stats=True, skip_tokenizer_init=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in json.loads(sys.argv[2])]
    settings = SamplingParams(temperature=0, max_tokens=10, logprobs=3, detokenize=False)
    out = [one.outputs[0] for one in llm.generate(prompts, settings, use_tqdm=False)]
    print(json.dumps([[
        list(one.token_ids),
        [sorted((t, p.logprob) for t, p in step.items()) for step in one.logprobs],
    ] for one in out]))
"""


@pytest.mark.parametrize("made", [("LlamaForCausalLM", {})], indirect=True, ids=["llama"])
def test_without_steering_nothing_is_other_than_without_the_plugin(
    made: Any, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and logprobs, bit for bit, with an engine whose process never loaded the plugin."""
    folder, _, _ = made
    monkeypatch.setenv("VLLM_PLUGINS", "")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), json.dumps(PROMPTS)],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    want = json.loads(done.stdout.strip().splitlines()[-1])
    monkeypatch.delenv("VLLM_PLUGINS")
    llm = engines.get(folder, skip_tokenizer_init=True)
    settings = vllm.SamplingParams(temperature=0, max_tokens=10, logprobs=3, detokenize=False)
    given = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    found = [one.outputs[0] for one in llm.generate(given, settings, use_tqdm=False)]
    assert [[list(one.token_ids), _logprobs(one)] for one in found] == want


def _logprobs(one: Any) -> list[Any]:
    return [sorted([t, p.logprob] for t, p in step.items()) for step in one.logprobs]


def test_an_architecture_that_is_not_known_is_not_steered(
    engines: Any, tmp_path: Path, steerings: Any, direction: Any, register: Any
) -> None:
    """OPT works as it does without the plugin; a request for steering is refused."""
    import transformers

    sizes = {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.OPTConfig(
        **sizes, vocab_size=128, max_position_embeddings=128, word_embed_proj_dim=64
    )
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    register(artefacts(), {"add": steerings()["add"]}, tmp_path)
    llm = engines.get(tmp_path / "opt", skip_tokenizer_init=True)
    assert llm.generate(*requests([None], PROMPTS[:1]), use_tqdm=False)
    with pytest.raises(Exception, match="OPTForCausalLM is not among the architectures"):
        llm.generate(*requests(["add"], PROMPTS[:1]), use_tqdm=False)
