"""Where a suite's time goes, and what it saves that model and steered model answer in one batch.

    python benchmarks/suite.py [--quick] [--threads 1] [--repeats 11] [--parts ...]

Two models: the shipped organism, and a random Llama with its tokenizer and chat template that is
wide enough to be bound by arithmetic. `share` runs the suite `behaviour` with steering and counts
the calls of `generate` and the wall time within them. `together` times greedy answers of model and
steered model to the same prompts, asked apart and in one batch, after checking that their tokens
are the same. Writes `results/suite.json`.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import timing
import torch

import steerkit as sk
from steerkit.models import LanguageModel
from steerkit.models.together import generate_together
from steerkit.prompts import Prompt
from steerkit.suites import Material

APART, AGAIN, TOGETHER = "model, then steered", "model, then steered (again)", "in one batch"
LONGEST = 32


def random_chat(hidden: int, layers: int) -> LanguageModel:
    """A random network that reads the organism's chat; its answers run to their full length."""
    from transformers import LlamaConfig, LlamaForCausalLM

    organism = sk.load("organism:aligned")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=organism.info.d_vocab,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return sk.wrap(LlamaForCausalLM(config).eval(), organism.tokenizer, name="random chat model")


def steered(model: LanguageModel) -> LanguageModel:
    """The model with a direction of its own ablated in the middle, at every token."""
    contrast = Material.of_organisms(20, split="train").contrasts["refusal"]
    layer = model.info.n_layers // 2
    acts = sk.capture(model, contrast, layers=layer, progress=False)
    return model.with_(sk.Ablate(sk.extract(acts, n_folds=0, progress=False).at(layer)))


def share_part(model: LanguageModel, n: int) -> dict[str, Any]:
    """Wall time of the suite `behaviour`, and how much of it is spent in `generate`."""
    view = steered(model)
    calls: list[tuple[int, float]] = []
    generate = LanguageModel.generate

    def timed(self: LanguageModel, prompts: Any, **options: Any) -> Any:
        began = time.perf_counter()
        said = generate(self, prompts, **options)
        calls.append((len(prompts), time.perf_counter() - began))
        return said

    LanguageModel.generate = timed  # type: ignore[method-assign]
    try:
        began = time.perf_counter()
        report = sk.audit(
            model, suite="behaviour", steering=view, material=Material.of_organisms(n),
            max_new_tokens=LONGEST, progress=False,
        )  # fmt: skip
        whole = time.perf_counter() - began
    finally:
        LanguageModel.generate = generate  # type: ignore[method-assign]
    inside = sum(seconds for _, seconds in calls)
    note = (
        f"{whole:.1f} s, {100 * inside / whole:.0f}% of it in {len(calls)} calls of generate for "
        f"{sum(asked for asked, _ in calls)} answers"
    )
    row = {
        "arm": f"behaviour, {n} prompts a role",
        "seconds": whole,
        "seconds_in_generate": inside,
        "share": inside / whole,
        "calls": len(calls),
        "answers": sum(asked for asked, _ in calls),
        "not_measured": dict(report.not_measured),
        "note": note,
    }
    return {"machine": timing.machine(), "rows": [row]}


def together_part(model: LanguageModel, n: int, given: argparse.Namespace) -> dict[str, Any]:
    """Both arms' answers to `n` prompts, apart and together."""
    view = steered(model)
    prompts: tuple[Prompt, ...] = Material.of_organisms(n).contrasts["refusal"].positive
    options = {"max_new_tokens": LONGEST, "token_budget": 4096}

    def apart() -> list[Any]:
        return [*model.generate(prompts, **options), *view.generate(prompts, **options)]  # type: ignore[arg-type]

    def together() -> list[Any]:
        asked = [(one, p) for p in prompts for one in (model, view)]
        said = generate_together(asked, **options)
        return [*said[::2], *said[1::2]]

    same = [a.tokens == b.tokens for a, b in zip(apart(), together(), strict=True)]
    arms: dict[str, Callable[[], Any]] = {APART: apart, AGAIN: apart, TOGETHER: together}
    times = timing.measure(arms, repeats=2 if given.quick else given.repeats, warmup=1)
    return {
        "machine": timing.machine(),
        "prompts": n,
        "same_answers": f"{sum(same)} of {len(same)}",
        "rows": timing.rows(times, APART),
    }


def main() -> None:
    """Check, time, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny and few; proves it runs")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeats", type=int, default=11)
    options.add_argument("--parts", nargs="+", choices=("share", "together"), default=None)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    name = "suite-quick" if given.quick else "suite"
    wide = (64, 2) if given.quick else (512, 8)
    models = {"organism": sk.load("organism:aligned"), "random_chat": random_chat(*wide)}
    for part in given.parts or ("share", "together"):
        for who, model in models.items():
            found: dict[str, dict[str, Any]] = {}
            if part == "share":
                found["share"] = share_part(model, 8 if given.quick else 60)
            else:
                for n in (8,) if given.quick else (16, 64, 200):
                    found[f"together_{n}"] = together_part(model, n, given)
            for title, measured in found.items():
                timing.show(f"{title}, {who}, {given.threads} thread(s)", measured["rows"])
                print(f"  same answers: {measured.get('same_answers', 'not compared')}")
                path = timing.update(name, {f"{title}_{who}": measured})
    print(path)


if __name__ == "__main__":
    main()
