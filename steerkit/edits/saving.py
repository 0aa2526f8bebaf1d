"""Edited models on disk: an ordinary Hugging Face folder, or the linear part as a LoRA."""

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from steerkit.edits.receipt import EditReceipt
from steerkit.errors import InterventionError, ModelError, OutputError
from steerkit.files import write_text
from steerkit.models import LanguageModel

RECEIPT = "edit/receipt.safetensors"
"""In a folder of its own: loaders take every safetensors file beside config.json for weights."""


def save_folder(model: LanguageModel, receipt: EditReceipt, folder: str | Path) -> Path:
    """Write an edited model as an ordinary Hugging Face folder; it appears whole or not at all.

    Weights, config (untied where the edit untied) and tokenizer are the library's own files;
    the receipt lies beside them in `edit/receipt.safetensors`.

    Raises:
        OutputError: the folder is not empty or cannot be written, or the receipt is of
            another model.
    """
    if receipt.edited.fingerprint != model.info.fingerprint:
        raise OutputError(
            f"this receipt is of {receipt.edited.name} ({receipt.edited.fingerprint[:12]}), not "
            f"of {model.info.name} ({model.info.fingerprint[:12]}); save the two that "
            "orthogonalize returned together"
        )
    with _whole(Path(folder)) as temporary:
        model.network.save_pretrained(temporary)
        try:
            tokenizer = model.tokenizer
        except ModelError:
            tokenizer = None
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        receipt.save(temporary / RECEIPT)
    return Path(folder)


def save_lora(receipt: EditReceipt, folder: str | Path, *, partial: bool = False) -> Path:
    """Write the linear part of an edit as a rank-k LoRA of the unedited model, in PEFT's format.

    W - u u^T W is W + B A with B = -u `[out k]` and A = u^T W `[k in]`, at scale 1
    (lora_alpha = r). Embeddings, biases and fused experts are no LoRA: an adapter without
    them does not take the direction out of what they write, so it has to be asked for.

    Args:
        receipt: of the edit.
        folder: a new or empty one, for adapter_config.json and adapter_model.safetensors.
        partial: write the adapter although it is not the whole edit.

    Raises:
        InterventionError: parts that are no LoRA, without `partial`; or no linear part.
        OutputError: the folder is not empty or cannot be written.
    """
    linear = [edit for edit in receipt.edits if edit.part == "linear"]
    rest = [edit.writer.name for edit in receipt.edits if edit.part != "linear"]
    if not linear:
        raise InterventionError(
            f"the edit of {receipt.model.name} has no linear part, so there is no LoRA to write; "
            "use save_folder"
        )
    if rest and not partial:
        raise InterventionError(
            f"{len(rest)} of the {len(receipt.edits)} edited parameters of {receipt.model.name} "
            f"are no LoRA ({', '.join(rest[:6])}{', ...' if len(rest) > 6 else ''}): use "
            "save_folder for the whole edit, or partial=True for the linear part alone"
        )
    if len({edit.conv1d for edit in linear}) > 1:
        raise InterventionError(
            f"{receipt.model.name} stores some weights [in out] and some [out in], which one "
            "adapter cannot say; use save_folder"
        )
    tensors: dict[str, Tensor] = {}
    for edit in linear:
        basis, dtype = receipt.bases[edit.writer.norm], edit.removal.values.dtype
        key = f"base_model.model.{edit.writer.name.removesuffix('.weight')}"
        tensors[f"{key}.lora_A.weight"] = edit.removal.removed.mT.to(dtype).contiguous()
        tensors[f"{key}.lora_B.weight"] = (-basis.writes).to(dtype).contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": receipt.model.name,
        "r": receipt.rank,
        "lora_alpha": receipt.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": linear[0].conv1d,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted(e.writer.name.removesuffix(".weight") for e in linear),
        "modules_to_save": None,
        "inference_mode": True,
    }
    from safetensors.torch import save_file

    with _whole(Path(folder)) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        write_text(temporary / "adapter_config.json", json.dumps(config, indent=2) + "\n")
        missing = {"of": receipt.model.to_json(), "not_in_this_adapter": rest}
        write_text(temporary / "edit.json", json.dumps(missing, indent=2) + "\n")
    return Path(folder)


def lora_delta(folder: str | Path) -> dict[str, Tensor]:
    """What an adapter adds to each weight, `[out in]` (`[in out]` for GPT-2's), in float64.

    Raises:
        OutputError: no adapter there.
    """
    from safetensors.torch import load_file

    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise OutputError(f"no readable LoRA adapter at {folder} ({error})") from error
    scale = config["lora_alpha"] / config["r"]
    deltas = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            b = tensors[key.replace(".lora_A.", ".lora_B.")]
            delta = scale * b.double() @ a.double()
            name = key.removeprefix("base_model.model.").replace(".lora_A.", ".")
            deltas[name] = delta.mT if config["fan_in_fan_out"] else delta
    return deltas


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` only if all went well."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputError(f"{folder} is there and not empty; choose a new folder")
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}; choose a folder that is "
            "writable and has space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
