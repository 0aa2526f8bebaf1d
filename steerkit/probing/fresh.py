"""The same architecture with weights that learnt nothing."""

from copy import deepcopy

import torch

from steerkit.activations import Activations
from steerkit.captures import capture
from steerkit.errors import ActivationError, ModelError
from steerkit.extraction.labelled import Labelled
from steerkit.models import LanguageModel, wrap
from steerkit.protocols import Model


def untrained(model: LanguageModel, *, seed: int = 0) -> LanguageModel:
    """The model's architecture, configuration and tokenizer, its weights drawn afresh.

    As its library initialises them before training. What a probe reads there, it reads from
    the words and the architecture. The model itself is not touched; memory: a second copy.

    Args:
        model: a Hugging Face model behind the protocol, plain or steered (read as plain).
        seed: of the weights.

    Raises:
        ModelError: a TransformerLens or quantised model, which cannot be drawn afresh.
    """
    network = model.network
    config = getattr(network, "config", None)
    if not hasattr(network, "init_weights") or getattr(config, "model_type", None) is None:
        raise ModelError(
            f"a {type(network).__name__} cannot be drawn afresh; load {model.info.name} through "
            "Hugging Face, or capture an untrained model yourself and give its activations"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{model.info.name} is quantised and cannot be drawn afresh; load it unquantised, or "
            "capture an untrained model yourself and give its activations"
        )
    first = next(network.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = type(network)(deepcopy(config))
    drawn = drawn.to(device=first.device, dtype=first.dtype).eval()
    return wrap(drawn, model.tokenizer, name=f"{model.info.name}, untrained")


def activations_of(control: "Model | Activations", data: Labelled, *, progress: bool) -> Labelled:
    """A control's activations on the same prompts, at the same sites, read the same way.

    Raises:
        ModelError: the model that the activations came from, which is no control.
        ActivationError: other prompts or sites, or a pooling that cannot be repeated.
    """
    acts = data.acts
    if isinstance(control, Activations):
        found = control
    else:
        if control.info.fingerprint == acts.info.fingerprint:
            raise ModelError(
                f"{control.info.name} is the model that the activations came from; give "
                "untrained(model), whose weights are drawn afresh"
            )
        found = capture(
            control,
            data.prompts,
            sites=acts.sites,
            positions=_positions(acts.pooling),
            exclude_bos=bool(acts.provenance.get("exclude_bos", False)),
            exclude_sinks=acts.provenance.get("sink_ratio") or False,
            before=bool(acts.provenance.get("before", False)),
            progress=progress,
        )
    theirs = [found.prompts[int(i)] for i in found.prompt_index]
    if theirs != list(data.prompts):
        raise ActivationError(
            f"a control is read on the same prompts in the same order; got {len(theirs)} rows of "
            f"'{found.info.name}' against {len(data.prompts)} that differ: capture it on the "
            "same contrast"
        )
    if found.sites != acts.sites:
        raise ActivationError(
            f"a control is read at the same sites; got {', '.join(map(str, found.sites))} "
            f"against {', '.join(map(str, acts.sites))}"
        )
    return Labelled(found, data.prompts, data.labels, data.groups, data.owner)


def _positions(pooling: str) -> str | int:
    """The position rule that a pooling's name stands for."""
    if pooling.startswith("index("):
        return int(pooling.removeprefix("index(").removesuffix(")"))
    if pooling.startswith("span("):
        raise ActivationError(
            f"activations pooled by {pooling} cannot be captured again from their name; capture "
            "the control with the same Span and give its activations"
        )
    return pooling
