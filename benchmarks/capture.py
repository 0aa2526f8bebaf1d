"""What capture costs: against a bare backbone forward, raw hooks and other toolkits.

    python benchmarks/capture.py [--quick] [--threads 2] [--repeats 15] [--parts ...]

Everything runs in one process, in rotated order, on one random Llama-style model (hidden
512, 8 layers, vocabulary 2,000, float32). The baseline is the backbone without its LM head,
because a capture computes no logits. Peak memory is measured in fresh processes, above what
was resident before the call and without the result that is returned. Outputs of every arm
are compared before anything is timed. Writes `results/capture.json`.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import timing
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized, plan
from steerkit.captures.assembly import in_memory
from steerkit.captures.job import Job
from steerkit.captures.pooling import Pooling
from steerkit.prompts import Prompt
from steerkit.site import Site

HIDDEN, LAYERS, VOCAB = 512, 8, 2000
SHAPE = (16, 128)
TIME_GOAL, MEMORY_GOAL, MIDDLE_GOAL, MIXED_GOAL = 1.03, 1.05, 0.6, 2.5
SITES = tuple(Site(layer) for layer in range(LAYERS))
MIDDLE = (Site(LAYERS // 2 - 1),)


def network() -> Any:
    """The random model under test."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def prompts_of(lengths: Sequence[int], seed: int = 0) -> list[Tokenized]:
    """Random prompts of the given lengths."""
    rng = np.random.default_rng(seed)
    return [Tokenized(tuple(rng.integers(3, VOCAB, n).tolist())) for n in lengths]


def job(
    model: Any,
    items: Sequence[Tokenized],
    groups: Sequence[Sequence[int]],
    sites: Sequence[Site],
    positions: str = "last",
) -> Job:
    """A capture of token ids in given batches: what `capture` runs once it has tokenized."""
    pooling = Pooling.of(positions)
    prompts = tuple(Prompt(f"prompt {i}") for i in range(len(items)))
    batches = tuple(Batch.collate([items[i] for i in g], pad_id=0, rows=g) for g in groups)
    return Job(
        model,
        prompts,
        (),
        tuple(p.text for p in prompts),
        "",
        tuple(sites),
        pooling,
        False,
        0,
        batches,
        tuple(pooling.select(batch, prompts, lambda ids: "x") for batch in batches),
    )


def run_job(work: Job) -> torch.Tensor:
    """Everything the verb does after tokenizing."""
    return in_memory(work, (piece for _, piece in work.pieces()))["values"]


def uniform_arms(
    net: Any, shape: tuple[int, int], peers: bool, only: str = ""
) -> tuple[dict[str, Any], dict]:
    """Arms on one batch without padding, and why some peers are missing."""
    n, width = shape
    items = prompts_of([width] * n)
    model = sk.wrap(net)
    whole = [list(range(n))]
    last, mean = job(model, items, whole, SITES), job(model, items, whole, SITES, "mean_prompt")
    every, middle = job(model, items, whole, SITES, "all"), job(model, items, whole, MIDDLE)
    (batch,) = last.batches
    ids = batch.tokens
    inputs = {
        "input_ids": ids,
        "attention_mask": batch.mask.long(),
        "position_ids": batch.position_ids,
        "use_cache": False,
    }

    @torch.no_grad()
    def backbone() -> Any:
        # One row a prompt, as captures return: the stream itself is work, not a result.
        return net.model(**inputs).last_hidden_state[:, -1].clone()

    def hooked(keep: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], torch.Tensor]:
        @torch.no_grad()
        def run() -> torch.Tensor:
            kept: list[torch.Tensor] = []

            def hook(module: Any, args: Any, out: Any) -> None:
                kept.append(keep(out[0] if isinstance(out, tuple) else out))

            handles = [layer.register_forward_hook(hook) for layer in net.model.layers]
            try:
                net.model(**inputs)
            finally:
                for handle in handles:
                    handle.remove()
            return torch.stack(kept, 1)

        return run

    @torch.no_grad()
    def hidden_states() -> Any:
        out = net.model(**inputs, output_hidden_states=True)
        return torch.stack([h[:, -1] for h in out.hidden_states[1:]], 1)

    arms: dict[str, Callable[[], Any]] = {
        "backbone": backbone,
        "backbone again (A/A)": backbone,
        "steerkit last, all layers": lambda: run_job(last),
        "steerkit mean, all layers": lambda: run_job(mean),
        "steerkit every token, all layers": lambda: run_job(every),
        "steerkit last, middle layer": lambda: run_job(middle),
        "raw hooks, last, all layers": hooked(lambda h: h[:, -1].clone()),
        "raw hooks, whole streams, all layers": hooked(lambda h: h.clone()),
        "output_hidden_states": hidden_states,
    }
    missing: dict[str, str] = {}
    if peers:
        for name, build in PEERS.items():
            if only and name != only:
                continue
            try:
                arms[name] = build(net, ids)
                arms[name]()
            except Exception as error:
                arms.pop(name, None)
                missing[name] = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    return arms, missing


def check(arms: dict[str, Callable[[], Any]]) -> None:
    """Every arm that returns the last token at all layers must return the same numbers.

    The last entry of `output_hidden_states` is after the final norm, so it is left out.
    """
    want = arms["raw hooks, last, all layers"]()
    for name, arm in arms.items():
        if not any(word in name for word in ("last, all", "output_hidden", "resid only")):
            continue
        got = arm()
        depth = LAYERS - 1 if name == "output_hidden_states" else LAYERS
        error = (got - want)[:, :depth].norm() / want[:, :depth].norm()
        if not error < 1e-4:
            raise SystemExit(f"'{name}' disagrees with raw hooks by {error:.2g}")


def hooked_transformer(net: Any, ids: torch.Tensor) -> Callable[[], Any]:
    """TransformerLens' own implementation, with the same weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    c = net.config
    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=HIDDEN,
        n_ctx=512,
        d_head=HIDDEN // 8,
        n_heads=8,
        n_key_value_heads=8,
        d_mlp=c.intermediate_size,
        d_vocab=VOCAB,
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=HIDDEN // 8,
        rotary_base=10000,
        final_rms=True,
        gated_mlp=True,
        eps=c.rms_norm_eps,
        original_architecture="LlamaForCausalLM",
        default_prepend_bos=False,
        device="cpu",
    )
    lens = HookedTransformer(config)
    lens.load_state_dict(convert_llama_weights(net, config), strict=False)
    names = [f"blocks.{i}.hook_resid_post" for i in range(LAYERS)]

    @torch.no_grad()
    def run() -> torch.Tensor:
        _, cache = lens.run_with_cache(
            ids, names_filter=lambda name: name in names, stop_at_layer=LAYERS
        )
        return torch.stack([cache[name][:, -1] for name in names], 1)

    return run


def bridge(net: Any, ids: torch.Tensor) -> Callable[[], Any]:
    """TransformerLens' bridge over the same kind of network."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        save_with_tokenizer(net, Path(folder))
        lens = TransformerBridge.boot_transformers(folder, device="cpu")
    names = [f"blocks.{i}.hook_out" for i in range(LAYERS)]

    @torch.no_grad()
    def run() -> torch.Tensor:
        _, cache = lens.run_with_cache(ids, names_filter=lambda name: name in names)
        return torch.stack([cache[name][:, -1] for name in names], 1)

    return run


def nnsight_trace(net: Any, ids: torch.Tensor) -> Callable[[], Any]:
    """nnsight around the backbone, all layers saved in one trace."""
    import nnsight

    wrapped = nnsight.NNsight(net.model)

    @torch.no_grad()
    def run() -> torch.Tensor:
        with wrapped.trace(ids, use_cache=False):
            kept = nnsight.save([])
            for layer in wrapped.layers:
                out = layer.output
                kept.append((out[0] if isinstance(out, tuple) else out)[:, -1])
        return torch.stack(list(kept), 1)

    return run


PEERS = {
    "TransformerLens HookedTransformer, resid only": hooked_transformer,
    "TransformerLens TransformerBridge, resid only": bridge,
    "nnsight trace, last, all layers": nnsight_trace,
}


def save_with_tokenizer(net: Any, folder: Path) -> Path:
    """The model as a Hugging Face folder, with a tokenizer of numbered words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>"]
    ids = {word: i for i, word in enumerate(special + [f"w{i}" for i in range(3, VOCAB)])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def large(given: argparse.Namespace) -> dict[str, Any]:
    """Time of pooled and whole capture on one large batch."""
    return uniform((4, 32) if given.quick else SHAPE, given.repeats, given.clock)


def small(given: argparse.Namespace) -> dict[str, Any]:
    """The same on one short prompt, where overhead shows most."""
    return uniform((1, 8), given.repeats if given.quick else 10 * given.repeats, given.clock)


def uniform(shape: tuple[int, int], repeats: int, clock: str) -> dict[str, Any]:
    """Time of pooled and whole capture on one batch without padding."""
    arms, missing = uniform_arms(network(), shape, peers=True)
    check(arms)
    times = timing.measure(arms, repeats=repeats, warmup=1)
    goals = {
        "steerkit last, all layers": TIME_GOAL,
        "steerkit mean, all layers": TIME_GOAL,
        "steerkit last, middle layer": MIDDLE_GOAL,
    }
    notes = {
        "TransformerLens TransformerBridge, resid only": "computes logits too: it cannot stop early"
    }
    table = timing.rows(times, "backbone", goals=goals, clock=clock, notes=notes)
    table += [{"arm": name, "note": f"not run: {why}"} for name, why in missing.items()]
    return {"batch": f"{shape[0]}x{shape[1]}", "rows": table}


def mixed(given: argparse.Namespace) -> dict[str, Any]:
    """Prompts of lognormal length: batches by length under a budget, against random ones."""
    rng = np.random.default_rng(0)
    n, repeats = (32, 2) if given.quick else (384, 7)
    sigma = 0.9
    lengths = np.clip(rng.lognormal(np.log(48) - sigma**2 / 2, sigma, n), 4, 256).astype(int)
    items = prompts_of(lengths.tolist())
    model = sk.wrap(network())
    order = rng.permutation(n).tolist()
    random = job(model, items, [order[i : i + 16] for i in range(0, n, 16)], SITES)
    ours = job(model, items, plan(lengths.tolist(), 4096, max_padding=0.125), SITES)
    error = (run_job(random) - run_job(ours)).norm() / run_job(ours).norm()
    if not error < 1e-5:
        raise SystemExit(f"batches by length change the values by {error:.2g}")
    times = timing.measure(
        {
            "steerkit batches": lambda: run_job(ours),
            "steerkit batches again (A/A)": lambda: run_job(ours),
            "random batches of 16": lambda: run_job(random),
        },
        repeats=repeats,
        warmup=1,
    )
    table = timing.rows(times, "steerkit batches")
    row = table[-1]
    row["goal_at_least"] = MIXED_GOAL
    row["verdict_clock"] = given.clock
    row["verdict"] = timing.verdict(row[f"{given.clock}_ratio"], MIXED_GOAL, at_most=False)
    return {
        "rows": table,
        "mean_length": float(lengths.mean()),
        "max_length": int(lengths.max()),
        "padded_tokens": {
            name: sum(b.tokens.numel() for b in work.batches)
            for name, work in (("steerkit", ours), ("random", random))
        },
    }


def to_disk(given: argparse.Namespace) -> dict[str, Any]:
    """Every token of one layer to disk, per token written: SAELens' runner beside ours."""
    width, layer = 128, 3
    sequences, repeats = (16, 2) if given.quick else (64, 7)
    net = network()
    model = sk.wrap(net)
    items = prompts_of([width] * sequences)
    groups = [list(range(i, min(i + 16, sequences))) for i in range(0, sequences, 16)]
    work = job(model, items, groups, (Site(layer),), "all")
    written: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_with_tokenizer(net, Path(scratch) / "model")
        count = iter(range(10**6))

        def ours() -> None:
            from steerkit.captures.shards import Folder, capture_to

            out = Path(scratch) / f"ours{next(count)}"
            found = capture_to(Folder(out), work, resume=True, tick=lambda n: None)
            written["steerkit to disk"] = len(found)

        def saelens() -> None:
            from datasets import Dataset
            from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

            settings = CacheActivationsRunnerConfig(
                dataset_path="",
                model_name=str(folder),
                model_class_name="AutoModelForCausalLM",
                model_batch_size=16,
                hook_name=f"model.layers.{layer}",
                d_in=HIDDEN,
                training_tokens=sequences * width,
                context_size=width,
                new_cached_activations_path=str(Path(scratch) / f"theirs{next(count)}"),
                shuffle=False,
                prepend_bos=False,
                streaming=False,
                device="cpu",
                buffer_size_gb=sequences * width * HIDDEN * 4 / 1e9,
            )
            data = Dataset.from_dict({"tokens": [list(i.prompt) for i in items]})
            runner = CacheActivationsRunner(settings, override_dataset=data)
            written["SAELens CacheActivationsRunner"] = len(runner.run()) * width

        arms: dict[str, Callable[[], Any]] = {"steerkit to disk": ours}
        arms["steerkit to disk again (A/A)"] = ours
        missing = []
        try:
            saelens()
            arms["SAELens CacheActivationsRunner"] = saelens
        except Exception as error:
            why = f"not run: {type(error).__name__}: {str(error).splitlines()[:1]}"
            missing = [{"arm": "SAELens CacheActivationsRunner", "note": why}]
        table = timing.rows(timing.measure(arms, repeats=repeats, warmup=1), "steerkit to disk")
    for row in table:
        tokens = written[row["arm"].removesuffix(" again (A/A)")]
        row["tokens_asked"], row["tokens_written"] = sequences * width, tokens
        row["tokens_per_second"] = tokens / row["median_s"]
    return {"rows": table + missing}


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of one call above what was there before, less its result."""
    names = [
        "backbone",
        "backbone again (A/A)",
        "steerkit last, all layers",
        "steerkit mean, all layers",
        "steerkit last, middle layer",
        "raw hooks, last, all layers",
        "raw hooks, whole streams, all layers",
        "output_hidden_states",
        *PEERS,
    ]
    found: dict[str, list[int]] = {name: [] for name in names}
    notes: dict[str, str] = {}
    for round_ in range(1 if given.quick else 5):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            if name in notes:
                continue
            done = subprocess.run(
                [sys.executable, __file__, "--peak-of", name],
                check=False,
                capture_output=True,
                text=True,
                # Large blocks go back to the system when freed, so that the peak is the need.
                env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"},
            )
            if done.returncode:
                notes[name] = f"not run: {done.stderr.strip().splitlines()[-1:]}"
            else:
                found[name].append(json.loads(done.stdout.splitlines()[-1])["peak"])
    table: list[dict[str, Any]] = []
    for name in names:
        if name in notes:
            table.append({"arm": name, "note": notes[name]})
            continue
        interval = timing.ratio(found[name], found["backbone"])
        row = {
            "arm": name,
            "median_mib": statistics.median(found[name]) / 2**20,
            "ratio": interval,
            "repeats": len(found[name]),
        }
        if name.startswith("steerkit"):
            row["goal_at_most"] = MEMORY_GOAL
            row["verdict"] = timing.verdict(interval, MEMORY_GOAL)
        table.append(row)
    return {"batch": f"{SHAPE[0]}x{SHAPE[1]}", "rows": table}


def peak_of(name: str) -> None:
    """Run in a process of its own: print the peak of one call of an arm."""
    torch.set_num_threads(1)
    net = network()
    arms, missing = uniform_arms(net, SHAPE, peers=name in PEERS, only=name)
    if name in missing:
        raise SystemExit(missing[name])
    arm = arms[name]
    arm()
    gc.collect()
    resident, _ = timing.hold_peak()
    result = arm()
    peak = timing.peak() - resident
    print(json.dumps({"peak": peak - result.numel() * result.element_size()}))


PARTS = {
    "large_batch": large,
    "small_batch": small,
    "mixed_lengths": mixed,
    "to_disk": to_disk,
    "peak_memory": memory,
}


def main() -> None:
    """Run everything and write the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="few repeats; proves it runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="which clock decides; cpu (with --threads 1) where others share the machine",
    )
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--peak-of", default="", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.peak_of:
        peak_of(given.peak_of)
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(given.threads)
    given.repeats = 2 if given.quick else max(7, given.repeats)
    result: dict[str, Any] = {}
    for part in given.parts:
        before = timing.machine()
        result[part] = PARTS[part](given)
        timing.show(part, result[part]["rows"])
        before["load_average_after"] = list(os.getloadavg())
        result[part] = {"machine": before, **result[part]}
        # Parts measured earlier stay: each carries the machine and load it was measured under.
        print(timing.update("capture-quick" if given.quick else "capture", result))


if __name__ == "__main__":
    main()
