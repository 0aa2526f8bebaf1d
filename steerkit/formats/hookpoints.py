"""Module names as places: what lm-evaluation-harness hooks, as one of our sites."""

import re
from typing import NamedTuple

from steerkit.errors import OutputError
from steerkit.protocols import ModelInfo
from steerkit.site import STREAMS, Site


class Names(NamedTuple):
    """Where a family's blocks are in its base model, and the parts whose outputs are added."""

    blocks: str
    attn: str = ""
    mlp: str = ""


_LLAMA = Names("layers", "self_attn", "mlp")
_GPT2 = Names("h", "attn", "mlp")
NAMES: dict[str, Names] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi": _LLAMA,
    "phi3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "cohere": _LLAMA,
    "gpt_neox": Names("layers", "attention", "mlp"),
    "gpt2": _GPT2,
    "gptj": _GPT2,
    "bloom": Names("h"),
    "falcon": Names("h"),
    "opt": Names("decoder.layers"),
}
"""By `model_type`; any other has its blocks in `layers`. Parts are named only where what they
put out is what is added to the stream: not after a further norm, a factor or the residual."""

_PLACE = re.compile(r"(?:[\w.]+\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.+))?")


def site_of(hookpoint: str, info: ModelInfo | None) -> Site:
    """The site at which a module's output is changed.

    Raises:
        OutputError: a module whose output is none of our streams, or may not be one.
    """
    place = _PLACE.fullmatch(hookpoint)
    if place is None:
        raise OutputError(
            f"the hookpoint '{hookpoint}' is not of a block; expected names such as 'layers.14', "
            "'h.14' or 'layers.14.mlp'"
        )
    layer, part = int(place[1]), place[2]
    if part is None:
        return Site(layer)
    if part.startswith("hook_") and part[5:] in STREAMS:
        return Site.parse(f"{part[5:]}@{layer}")
    if info is None:
        raise OutputError(
            f"whether the output of '{hookpoint}' is added to the stream as it is depends on the "
            "model; say which with model="
        )
    names = NAMES.get(info.model_type, Names("layers"))
    for stream in ("attn_out", "mlp_out"):
        if part and part == {"attn_out": names.attn, "mlp_out": names.mlp}[stream]:
            return Site.parse(f"{stream}@{layer}")
    raise OutputError(
        f"the output of '{hookpoint}' in a {info.model_type} model is none of its streams: a "
        "further norm or factor stands between, or it is of another kind"
    )


def of_site(site: Site, info: ModelInfo) -> str | None:
    """The module whose output is the site, None where there is none."""
    names = NAMES.get(info.model_type, Names("layers"))
    if site.stream == "resid_post":
        return f"{names.blocks}.{site.layer}"
    if site.stream == "resid_pre" and site.layer:
        return f"{names.blocks}.{site.layer - 1}"
    part = {"attn_out": names.attn, "mlp_out": names.mlp}.get(site.stream, "")
    return f"{names.blocks}.{site.layer}.{part}" if part else None
