"""What is known of a checkpoint without loading it: its sizes, and which weights it holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.errors import ModelError
from steerkit.models.blocks import layer_list
from steerkit.models.fingerprint import fingerprint
from steerkit.models.huggingface import context_length, last_norm, own_names
from steerkit.protocols import ModelInfo
from steerkit.site import Stream


def checkpoint_info(
    name_or_path: str | Path,
    *,
    streams: tuple[Stream, ...],
    dtype: str,
    device: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ModelInfo:
    """The information that `load` would give, with the same fingerprint, in little memory.

    For engines that hold weights in a form of their own. Values are read from memory-mapped
    files, a few of each parameter; no network is built but an empty one.

    Args:
        name_or_path: a folder, or a name whose files are in the hub's cache.
        streams: those that the engine has.
        dtype: in which it holds them.
        device: where.
        revision: of a hub model.
        trust_remote_code: run model code that comes with the checkpoint.

    Raises:
        ModelError: no safetensors there, or parameters of other names than the library's.
    """
    folder = _folder(name_or_path, revision)
    network, inner = _empty(folder, trust_remote_code)
    name = folder.resolve().name if Path(name_or_path).is_dir() else str(name_or_path)
    names = [parameter for parameter, _ in own_names(network)]
    return ModelInfo(
        name=name,
        model_type=inner.model_type,
        n_layers=int(inner.num_hidden_layers),
        d_model=int(inner.hidden_size),
        d_vocab=int(inner.vocab_size),
        n_ctx=context_length(inner),
        streams=streams,
        dtype=dtype,
        device=device,
        fingerprint=fingerprint(_parameters(folder, names), inner.to_dict()),
    )


def read_out_parts(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module | None, Tensor]:
    """The final norm and the unembedding's weight of a checkpoint, in the dtype of its files.

    Raises:
        ModelError: no safetensors there, or parameters of other names than the library's.
    """
    folder = _folder(name_or_path, revision)
    network, inner = _empty(folder, trust_remote_code)
    backbone, _ = layer_list(network, int(inner.num_hidden_layers))
    norm, head = last_norm(backbone), network.get_output_embeddings()
    # One parameter may have several names, where embeddings are tied: the first is in the file.
    names = {id(parameter): name for name, parameter in own_names(network)}
    own = {} if norm is None else {names[id(p)]: name for name, p in norm.named_parameters()}
    wanted = names.get(id(getattr(head, "weight", None)))
    if wanted is None:
        raise ModelError(f"{folder} has no unembedding by a name that is known; use sk.load")
    found = dict(_parameters(folder, [wanted, *own]))
    if norm is not None:
        norm = norm.to_empty(device="cpu").requires_grad_(False)
        for name, inside in own.items():
            norm.get_parameter(inside).data = found[name].clone()
    return norm, found[wanted]


def _empty(folder: Path, trust_remote_code: bool) -> tuple[Any, Any]:
    """The checkpoint's network without weights, and the configuration of its text part."""
    from transformers import AutoConfig, AutoModelForCausalLM

    given: dict[str, Any] = {"trust_remote_code": trust_remote_code} if trust_remote_code else {}
    config = AutoConfig.from_pretrained(folder, **given)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, **given)
    return network, config.get_text_config()


def _folder(name_or_path: str | Path, revision: str | None) -> Path:
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    from transformers.utils import cached_file

    try:
        found = cached_file(str(name_or_path), "config.json", revision=revision)
    except OSError as error:
        raise ModelError(f"no checkpoint of '{name_or_path}' is here: {error}") from error
    return Path(str(found)).parent


def _parameters(folder: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The named parameters, mapped from the folder's files."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} has no weights in safetensors, so it cannot be told which model it is; "
            "save it again with save_pretrained"
        )
    missing = set(names)
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                if name in missing:
                    missing.discard(name)
                    yield name, tensors.get_tensor(name)
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of its parameters by the names that the transformers "
            f"library gives them, such as {min(missing)}, so it cannot be told which model it "
            "is; load it with sk.load and save it with its network's save_pretrained"
        )
