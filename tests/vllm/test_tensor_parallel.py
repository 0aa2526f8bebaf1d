"""Two ranks on a CPU: each applies the same programs to its replica of the stream."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.interventions import save_steering

pytest.importorskip(
    "vllm", reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit"
)

NEW = 10
PROMPTS = [[5, 17, 42, 8, 91, 33, 20], [9, 14, 77], [64, 5, 5, 28, 13], [3, 1, 4, 1, 5, 9, 2, 6]]
KINDS = ("add", "ablate", "generated", "latch", "mean", "order", "rotate", "gated")
WATCHED = "several"
TWO_RANKS = """
import json, os, sys
from pathlib import Path
from safetensors.torch import save_file
from vllm import LLM, SamplingParams

def watch(worker):
    from steerkit.vllm.worker import watching
    worker.steerkit_watching = watching()
    worker.steerkit_seen = worker.steerkit_watching.__enter__()

def seen(worker, folder):
    import torch
    worker.steerkit_watching.__exit__(None, None, None)
    found = {
        str(site): torch.stack([there[i][1] for i in sorted(there)]).contiguous()
        for site, there in worker.steerkit_seen.items()
    }
    save_file(found, Path(folder) / f"rank_{worker.rank}.safetensors")
    return worker.rank, os.getpid()

if __name__ == "__main__":
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    llm = LLM(str(folder / "model"), tensor_parallel_size=2, dtype="float32", enforce_eager=True,
              max_model_len=64, max_num_seqs=4, block_size=32, disable_log_stats=True,
              skip_tokenizer_init=True, distributed_executor_backend="mp")
    def settings(kind):
        extra = {"steerkit": kind} if kind else None
        return SamplingParams(temperature=0, max_tokens=10, detokenize=False, extra_args=extra)
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in given]
    out = llm.generate(prompts, [settings(kind) for _, kind in given], use_tqdm=False)
    llm.collective_rpc(watch)
    (one,) = llm.generate(prompts[:1], settings("several"), use_tqdm=False)
    ranks = llm.collective_rpc(seen, args=(str(folder),))
    print(json.dumps({
        "tokens": [list(each.outputs[0].token_ids) for each in out],
        "watched": list(one.outputs[0].token_ids),
        "ranks": ranks,
    }))
"""


@pytest.mark.slow
def test_two_ranks_answer_as_one_and_both_steer(
    tmp_path: Path, steerings: Any, direction: Any
) -> None:
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=128,
        initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = transformers.LlamaForCausalLM(config).eval()
    network.save_pretrained(tmp_path / "model")
    model = sk.wrap(network, name="model")
    made = steerings(partial(direction, info=model.info, scale=6.0), model.info.n_layers - 1)
    files = {
        name: save_steering(tmp_path / f"{name}.safetensors", made[name])
        for name in (*KINDS, WATCHED)
    }
    kinds = [None, *KINDS, None]
    given = [(PROMPTS[i % len(PROMPTS)], kind) for i, kind in enumerate(kinds)]
    done = subprocess.run(
        [sys.executable, "-c", TWO_RANKS, str(tmp_path), json.dumps(given)],
        capture_output=True, text=True, timeout=900,
        env={
            **os.environ,
            "STEERKIT_VLLM_FOLDER": str(tmp_path / "artefacts"),
            "STEERKIT_VLLM_ARTEFACTS": ";".join(f"{k}={path}" for k, path in files.items()),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "OMP_NUM_THREADS": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])

    def want(kind: str | None, prompt: list[int]) -> list[int]:
        view = model.with_(*made[kind]) if kind else model
        batch = Batch.collate([Tokenized(tuple(prompt))], pad_id=0)
        (tokens,) = view.engine.complete(
            batch, view.table, [int(bool(kind))], max_new_tokens=NEW, temperature=0.0, seed=0
        )
        return list(tokens)

    for (prompt, kind), got in zip(given, found["tokens"], strict=True):
        assert got == want(kind, prompt), kind
    assert sum(want(kind, prompt) != want(None, prompt) for prompt, kind in given) >= 4
    # Each rank in a process of its own, with the steered streams of the Hugging Face engine.
    assert sorted(rank for rank, _ in found["ranks"]) == [0, 1]
    assert len({process for _, process in found["ranks"]}) == 2
    view = model.with_(*made[WATCHED])
    batch = Batch.collate([Tokenized(tuple(PROMPTS[0]), tuple(found["watched"][:-1]))], pad_id=0)
    streams = view.run(batch, sites=view.table.sites, logits="none").streams
    before = view.run(batch, sites=view.table.sites, logits="none", before=True).streams
    for rank in (0, 1):
        seen = load_file(tmp_path / f"rank_{rank}.safetensors")
        for site in view.table.sites:
            size = streams[site][0].norm(dim=-1)
            gap = (seen[str(site)] - streams[site][0]).norm(dim=-1) / size
            without = (before[site][0] - streams[site][0]).norm(dim=-1) / size
            assert float(gap.max()) < 1e-4 < 1e-2 < float(without.max()), (rank, site)
