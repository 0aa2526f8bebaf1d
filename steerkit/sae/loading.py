"""`load_sae`: any SAE that SAELens loads, checked against the model before anything is read."""

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from steerkit import organisms
from steerkit.captures.job import Prompts, choose_sites
from steerkit.errors import ModelError, SiteError
from steerkit.interventions.set_features import site_of_hook
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.sae.autoencoder import Autoencoder
from steerkit.sae.encoding import feature_statistics
from steerkit.site import Site

SHIPPED = "sae:organism"
L0_FACTOR = 2.0
"""How far the measured L0 may be from the claimed one, either way, as a factor."""
LEAST_EXPLAINED = 0.0
"""Below this fraction of variance explained, the mean alone would do better."""

MODULE = re.compile(
    r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)\."
    r"(self_attn|self_attention|attn|attention|mlp|feed_forward)(?:\.hook_out)?"
)
"""Modules inside a block, by Hugging Face's or TransformerLens' name: their raw outputs."""

Source = str | Path | tuple[str, str]


def load_sae(
    source: Source | Any,
    *,
    model: Model | None = None,
    prompts: Prompts | Prompt | str | None = None,
    site: Site | int | str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    force: bool = False,
) -> Autoencoder:
    """Load a sparse autoencoder through SAELens, and check that it is what it says it is.

    Always: the declared architecture against what the file's other settings say, and against
    what `encode` does. With a model: width and site. With prompts too: the fraction of variance
    explained and L0 on them, against what the SAE claims.

    Args:
        source: a folder in SAELens' format, `(release, sae_id)`, `sae:organism` (shipped), or an
            SAE object of SAELens.
        model: the model it is for, plain.
        prompts: what to measure it on; some hundred tokens of the kind it was trained on.
        site: where it belongs, if its hook name does not tell.
        device: where to compute.
        dtype: of the SAE; its own by default.
        force: accept an SAE whose measured L0 or reconstruction is off, or that was trained
            on other weights. Width, site and architecture are never forced.

    Raises:
        ModelError: it cannot be loaded, is of another width or model, or does not behave as its
            architecture or its claims say.
        SiteError: a hook point that is no known stream, or that the model lacks.
    """
    sae, name, declared = _opened(source, device, dtype)
    claims = _claims(sae, declared)
    _check_declared(sae, name, declared)
    _check_behaviour(sae, name)
    where = Site.parse(site) if site is not None else _site(claims.get("hook_name"), model)
    if sae.cfg.reshape_activations != "none":
        raise SiteError(
            f"{name} reads heads side by side ('{sae.cfg.reshape_activations}'), which is no "
            "stream of d_model; choose an SAE of resid_pre, resid_mid, resid_post, attn_out or "
            "mlp_out"
        )
    found = Autoencoder(sae, where, name, None, claims, {"architecture": "as declared"})
    if model is None:
        if prompts is not None:
            raise ModelError("prompts need a model to run: load_sae(..., model=model, prompts=...)")
        return found
    checks: dict[str, Any] = {**found.checks, **_check_model(found, model, force=force)}
    found = replace(found, info=model.info, checks=checks)
    if prompts is not None:
        checks |= measured(found, model, prompts, force=force)
    return replace(found, checks=checks)


def measured(
    sae: Autoencoder, model: Model, prompts: Prompts | Prompt | str, *, force: bool = False
) -> dict[str, Any]:
    """Fraction of variance explained and L0 on prompts, compared with what the SAE claims.

    Raises:
        ModelError: they are off, unless `force`.
    """
    seen = feature_statistics(sae, model, prompts)
    claimed = sae.claims.get("l0")
    problems = []
    if seen.variance_explained < LEAST_EXPLAINED:
        problems.append(
            f"it explains {seen.variance_explained:.3g} of the variance at {sae.site}: the mean "
            "activation alone does better, so model, site, normalisation or prompts are not the "
            "SAE's"
        )
    if claimed and not 1 / L0_FACTOR <= seen.l0 / claimed <= L0_FACTOR:
        many = seen.l0 > claimed
        problems.append(
            f"{seen.l0:.3g} features are on at a token, and it claims {claimed:.3g}"
            + ("; a TopK that is read as ReLU looks like this" if many else "")
        )
    if problems and not force:
        raise ModelError(
            f"{sae.name} does not behave as it claims on {seen.rows} tokens of {model.info.name}: "
            + "; ".join(problems)
            + ". Look at the SAE's own page, or pass force=True to go on"
        )
    return {
        "l0": seen.l0,
        "l0_claimed": claimed,
        "variance_explained": seen.variance_explained,
        "rows": seen.rows,
        "problems": problems,
    }


def _opened(source: Any, device: str, dtype: str | None) -> tuple[Any, str, Mapping[str, Any]]:
    """The SAE, what to call it, and its configuration as written in the file (where there is one).

    Raises:
        ModelError: nothing there, or nothing that SAELens can read.
    """
    if hasattr(source, "encode") and hasattr(source, "cfg"):
        return source, str(source.get_name()), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens import SAE

        if isinstance(source, tuple):
            if len(source) != 2:
                raise ModelError(f"a released SAE is named by (release, sae_id); got {source!r}")
            name = "/".join(source)
            try:
                sae, written, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(
                    *source, device=device, dtype=dtype or "float32"
                )
            except Exception as error:
                raise ModelError(f"SAELens cannot load {name}: {_first_line(error)}") from error
            return sae, name, _with_sparsity(written, sparsity)
        folder = organisms.sae_path() if str(source) == SHIPPED else Path(source).expanduser()
        name = SHIPPED if str(source) == SHIPPED else folder.name
        if not (folder / "cfg.json").is_file():
            raise ModelError(
                f"no SAE in {folder}: it needs cfg.json and sae_weights.safetensors; one of "
                f"SAELens' releases is named by a pair (release, sae_id), ours by '{SHIPPED}'"
            )
        try:
            written = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
            sae = SAE.load_from_disk(folder, device=device, dtype=dtype)
        except Exception as error:
            raise ModelError(
                f"SAELens cannot load the SAE in {folder}: {_first_line(error)}"
            ) from error
        sparsity = None
        if (folder / "sparsity.safetensors").is_file():
            from safetensors.torch import load_file

            sparsity = load_file(folder / "sparsity.safetensors").get("sparsity")
    return sae, name, _with_sparsity(written, sparsity)


def _with_sparsity(written: Mapping[str, Any], sparsity: Any) -> dict[str, Any]:
    """The configuration, with L0 from log10 densities of the features if there are any."""
    if sparsity is None:
        return dict(written)
    l0 = float((10 ** sparsity.double()).sum())
    return {**written, "_l0_of_densities": l0} if math.isfinite(l0) else dict(written)


def _claims(sae: Any, declared: Mapping[str, Any]) -> dict[str, Any]:
    """What an SAE says of itself, from its metadata, its configuration and its sparsity file."""
    metadata = {
        key: value
        for key, value in dict(sae.cfg.metadata.items()).items()
        if isinstance(value, str | int | float | bool | None)
    }
    k = getattr(sae.cfg, "k", None)
    l0 = k or metadata.get("l0") or declared.get("_l0_of_densities")
    return {**metadata, **({"k": k} if k else {}), **({"l0": float(l0)} if l0 else {})}


def _check_declared(sae: Any, name: str, declared: Mapping[str, Any]) -> None:
    """A configuration that names one activation and loads as another is refused."""
    if not declared:
        return
    arguments = declared.get("activation_fn_kwargs") or {}
    activation = str(declared.get("activation_fn") or declared.get("activation_fn_str") or "")
    k = declared.get("k") or arguments.get("k")
    architecture = str(sae.cfg.architecture())
    loaded_k = getattr(sae.cfg, "k", None)
    if (k or "topk" in activation.lower()) and loaded_k is None and architecture != "jumprelu":
        what = f"k = {k}" if k else f"activation '{activation}'"
        raise ModelError(
            f"{name} was trained as a TopK ({what} in its cfg.json) but its architecture is "
            f"'{architecture}', so it would be read as ReLU and far too many features would be "
            'on; set "architecture": "topk" and "k" in cfg.json'
        )
    if k and loaded_k is not None and int(k) != int(loaded_k):
        raise ModelError(f"{name} says k = {k} in its cfg.json and was loaded with k = {loaded_k}")


def _check_behaviour(sae: Any, name: str) -> None:
    """Encode random inputs and see that the features do what the architecture promises."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, int(sae.cfg.d_in), generator=generator)
    if sae.cfg.reshape_activations != "none":
        return
    with torch.no_grad():
        centre = sae.b_dec.detach().float().cpu()
        rows = (centre + x * max(float(centre.norm()) / len(centre) ** 0.5, 1.0)).to(
            sae.device, sae.dtype
        )
        features = sae.encode(rows)
        rebuilt = sae.decode(features)
    dense = (features.to_dense() if features.is_sparse else features).float().cpu()
    architecture = str(sae.cfg.architecture())
    if dense.shape != (64, int(sae.cfg.d_sae)) or rebuilt.shape != rows.shape:
        raise ModelError(
            f"{name} maps width {sae.cfg.d_in} to {tuple(dense.shape[1:])} features and back to "
            f"{tuple(rebuilt.shape[1:])}; expected {sae.cfg.d_sae} and {sae.cfg.d_in}. A "
            "transcoder, which writes another stream than it reads, is no SAE"
        )
    if not torch.isfinite(dense).all() or not torch.isfinite(rebuilt.float()).all():
        raise ModelError(f"{name} gives NaN or infinite features; its weights are damaged")
    if architecture != "abstopk" and (dense < 0).any():
        raise ModelError(f"{name} ({architecture}) gives features below 0, which no such SAE has")
    k = getattr(sae.cfg, "k", None)
    most = int((dense != 0).sum(1).max())
    if k and most > k:
        raise ModelError(
            f"{name} is a '{architecture}' with k = {k} but has up to {most} features on: its "
            "activation is not the one that it declares"
        )


def _check_model(sae: Autoencoder, model: Model, *, force: bool) -> dict[str, Any]:
    """Width, site and weights."""
    info = model.info
    if sae.d_model != info.d_model:
        raise ModelError(
            f"{sae.name} reads a stream of width {sae.d_model} (it says it is of "
            f"'{sae.claims.get('model_name')}'); {info.name} has {info.d_model}"
        )
    choose_sites(model, "resid_post", None, [sae.site])
    trained_on = sae.claims.get("steerkit_fingerprint")
    if trained_on and trained_on != info.fingerprint and not force:
        raise ModelError(
            f"{sae.name} was trained on {sae.claims.get('model_name')} ({trained_on[:12]}), not "
            f"on {info.name} ({info.fingerprint[:12]}); train one there with train_sae, or pass "
            "force=True to study transfer"
        )
    return {
        "width": info.d_model,
        "site": str(sae.site),
        "trained_on": sae.claims.get("model_name"),
        "loaded_for": info.name,
        "same_weights": None if not trained_on else trained_on == info.fingerprint,
    }


def _site(hook: Any, model: Model | None) -> Site:
    """The stream at a hook point; of a module inside a block, if the model adds its output as is.

    Raises:
        SiteError: no known stream, or a module whose output is normed or scaled before it is
            added, so that no stream holds what the SAE was trained on.
    """
    found = MODULE.fullmatch(str(hook))
    blocks = getattr(getattr(model, "engine", None), "blocks", None)
    if found is None or blocks is None:
        return site_of_hook(hook)
    kind = "mlp" if found[2] in ("mlp", "feed_forward") else "attn"
    where = Site(int(found[1]), "mlp_out" if kind == "mlp" else "attn_out")
    assert model is not None
    choose_sites(model, "resid_post", None, [where])
    block = blocks[where.layer]
    adds = [name for name, part in block.module.named_modules() if part is getattr(block, kind)]
    if block.scale != 1.0 or not any(MODULE.fullmatch(f"layers.0.{name}") for name in adds):
        raise SiteError(
            f"the SAE reads the output of '{hook}', which {model.info.name} does not add to the "
            f"stream as it is (it adds that of '{(adds or ['another module'])[0]}'"
            f"{f' times {block.scale:g}' if block.scale != 1.0 else ''}); no stream holds it, so "
            f"features would be misread. If the SAE was trained on {where.stream} after all, say "
            f"site='{where}'"
        )
    return where


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
