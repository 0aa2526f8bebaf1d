"""`train_sae`: a small SAE on a model's activations, by SAELens' trainer, in SAELens' format."""

import contextlib
import io
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.activations import Activations
from steerkit.captures.verbs import capture
from steerkit.errors import ActivationError, MethodError, OutputError
from steerkit.protocols import Model, ModelInfo
from steerkit.registry import suggest
from steerkit.sae.autoencoder import Autoencoder
from steerkit.sae.loading import load_sae
from steerkit.sae.sources import FromStore, InMemory, Live, Rows
from steerkit.site import Site
from steerkit.stores.store import ActivationStore

ARCHITECTURES = ("batchtopk", "topk")
"""Those whose sparsity is set outright by `k`. BatchTopK is saved as JumpReLU, whose features
do not depend on each other, so that single ones can be clamped exactly."""
FILES = ("cfg.json", "sae_weights.safetensors")


def train_sae(
    source: Activations | ActivationStore | Model,
    prompts: Any = None,
    *,
    site: Site | int | str | None = None,
    live: bool = False,
    d_sae: int | None = None,
    k: float | None = None,
    architecture: str = "batchtopk",
    n_tokens: int = 1_000_000,
    batch_size: int = 1024,
    lr: float = 3e-3,
    out: str | Path | None = None,
    exclude_bos: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Autoencoder:
    """Train a sparse autoencoder at one site, save it, and load it back.

    Memory: all captured rows, float32; from a store, or live, a few times 64 MiB. Inputs are
    scaled to a mean norm of sqrt(d_model) while training; the scale is folded into the weights
    that are saved.

    Args:
        source: activations of one token a row (`positions="all"`), a store of such, or a model
            to run `prompts` through.
        prompts: with a model only; with `live`, any dataset that `capture_dataset` takes.
        site: where; needed with a model, or where several sites were captured.
        live: run the model while training, and keep no activations. Texts that can be read again
            are, as often as `n_tokens` needs.
        d_sae: features; 8 x d_model by default.
        k: features on at a token, on average (`batchtopk`) or exactly at most (`topk`);
            d_model / 8, at least 4, by default.
        architecture: `batchtopk` or `topk`.
        n_tokens: rows to train on, counting a row each time it is seen.
        batch_size: rows a step.
        lr: Adam's step size; falls linearly to a tenth over the last fifth of the steps.
        out: a new or empty folder to save to; otherwise nothing stays on disk.
        exclude_bos: leave the first special token of a prompt out.
        seed: of initial weights, of the held-out rows and of the order of rows.
        progress: show bars on stderr.

    Raises:
        ActivationError: too few rows, rows pooled over tokens, several sites and none named.
        MethodError: an unknown architecture, numbers out of range.
        OutputError: `out` holds an SAE already.
    """
    if architecture not in ARCHITECTURES:
        raise MethodError(
            f"no SAE architecture named '{architecture}' to train; "
            f"{suggest(architecture, ARCHITECTURES)}"
        )
    folder = None if out is None else Path(out)
    if folder is not None and any((folder / name).exists() for name in FILES):
        raise OutputError(f"{folder} holds an SAE already; choose another folder or remove it")
    rows, at = _rows(source, prompts, site, live, exclude_bos, seed, progress)
    d_model = rows.info.d_model
    width = d_sae or 8 * d_model
    chosen = k or max(4, d_model // 8)
    _require(width, chosen, n_tokens, batch_size, lr)
    sae = _fit(
        rows,
        architecture=architecture,
        d_sae=width,
        k=chosen,
        n_tokens=n_tokens,
        batch_size=batch_size if rows.count is None else min(batch_size, rows.count),
        lr=lr,
        metadata=_metadata(rows.info, at, chosen, n_tokens, seed, architecture),
        seed=seed,
        progress=progress,
    )
    with contextlib.ExitStack() as stack:
        to = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sae.save_inference_model(to)
        _state(to, rows.held)
        model = None if isinstance(source, Activations | ActivationStore) else source
        found = load_sae(to, model=model)
    return found if folder else replace(found, name=f"SAE of {rows.info.name}")


def _fit(
    rows: Rows,
    *,
    architecture: str,
    d_sae: int,
    k: float,
    n_tokens: int,
    batch_size: int,
    lr: float,
    metadata: dict[str, Any],
    seed: int,
    progress: bool,
) -> Any:
    """SAELens' trainer on shuffled rows."""
    x = rows.sample
    estimated = 20 if rows.count is None else min(20, max(1, rows.count // batch_size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.sae import SAEMetadata
        from sae_lens.training.sae_trainer import SAETrainer

        kinds = {
            "batchtopk": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig),
            "topk": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig),
        }
        make, config = kinds[architecture]
        steps = max(1, n_tokens // batch_size)
        hush = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())
        with torch.random.fork_rng(devices=[]), hush:
            torch.manual_seed(seed)
            # The threshold that stands for "among the k" follows slowly by default: a short
            # training would end with one that is far too low.
            extra = {"topk_threshold_lr": 0.05} if architecture == "batchtopk" else {}
            sae = make(
                config(
                    d_in=x.shape[1],
                    d_sae=d_sae,
                    k=k if architecture == "batchtopk" else int(k),
                    normalize_activations="expected_average_only_in",
                    metadata=SAEMetadata(**metadata),
                    **extra,
                )
            )
            # Started at the mean of the (scaled) rows, features need not learn it (Bricken et al.
            # 2023, "Towards Monosemanticity").
            with torch.no_grad():
                sae.b_dec.copy_(x.mean(0) * x.shape[1] ** 0.5 / x.norm(dim=1).mean())
            trainer = SAETrainer(
                SAETrainerConfig(
                    total_training_samples=steps * batch_size,
                    train_batch_size_samples=batch_size,
                    lr=lr,
                    lr_end=lr / 10,
                    lr_decay_steps=steps // 5,
                    lr_warm_up_steps=min(100, steps // 20),
                    # After so many steps without firing a feature is given the residual to learn.
                    dead_feature_window=max(10, min(1000, steps // 10)),
                    n_batches_for_norm_estimate=estimated,
                    device="cpu",
                    logger=LoggingConfig(log_to_wandb=False),
                ),
                sae=sae,
                data_provider=rows.batches(batch_size),
            )
            return trainer.fit()


def _rows(
    source: Activations | ActivationStore | Model,
    prompts: Any,
    site: Site | int | str | None,
    live: bool,
    exclude_bos: bool,
    seed: int,
    progress: bool,
) -> tuple[Rows, Site]:
    """What is learnt from, and at which site."""
    if isinstance(source, Activations | ActivationStore):
        if prompts is not None or live:
            raise ActivationError(
                "give activations or a store alone, or a model and prompts, not both"
            )
        if source.pooling != "all":
            raise ActivationError(
                f"an SAE is trained on single tokens, and these rows are '{source.pooling}'; "
                "capture with positions='all'"
            )
        if site is None and len(source.sites) != 1:
            raise ActivationError(f"{len(source.sites)} sites were captured; say which with site=")
        at = source.sites[0] if site is None else Site.parse(site)
        kind = InMemory if isinstance(source, Activations) else FromStore
        return kind(source, at, seed), at  # type: ignore[arg-type]
    if prompts is None or site is None:
        raise ActivationError("a model needs texts and a site: train_sae(model, texts, site=3)")
    at = Site.parse(site)
    if live:
        return Live(source, prompts, at, exclude_bos=exclude_bos, seed=seed), at
    acts = capture(
        source,
        prompts,
        sites=[at],
        positions="all",
        exclude_bos=exclude_bos,
        progress=progress,
    )
    return InMemory(acts, at, seed), at


def _require(d_sae: int, k: float, n_tokens: int, batch_size: int, lr: float) -> None:
    for name, value, fits in (
        ("d_sae", d_sae, d_sae >= 2),
        ("k", k, 1 <= k <= d_sae),
        ("n_tokens", n_tokens, n_tokens >= batch_size),
        ("batch_size", batch_size, batch_size >= 1),
        ("lr", lr, lr > 0),
    ):
        if not fits:
            raise MethodError(
                f"{name} = {value} is out of range: d_sae is at least 2, k from 1 to d_sae, "
                "n_tokens at least batch_size, lr above 0"
            )


def _metadata(
    info: ModelInfo, site: Site, k: float, n_tokens: int, seed: int, architecture: str
) -> dict[str, Any]:
    """What the file says of the SAE, in the words that SAELens and TransformerLens use."""
    from steerkit import __version__

    return {
        "model_name": info.name,
        "hook_name": f"blocks.{site.layer}.hook_{site.stream}",
        "steerkit_fingerprint": info.fingerprint,
        "steerkit_version": __version__,
        "trained_as": architecture,
        "trained_k": k,
        "training_tokens": n_tokens,
        "seed": seed,
    }


def _state(folder: Path, held: Float[Tensor, "row d_model"]) -> None:
    """Write L0 and variance explained on rows that no step saw into the saved configuration."""
    found = load_sae(folder, force=True)
    features, rebuilt = found.reconstruct(held)
    file = folder / "cfg.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    error = float((held - rebuilt).double().square().sum())
    spread = float((held - held.mean(0)).double().square().sum())
    written["metadata"] |= {
        "l0": float((features != 0).sum(1).double().mean()),
        "variance_explained": 1 - error / spread,
    }
    file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
