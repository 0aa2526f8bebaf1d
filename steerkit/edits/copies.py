"""Copies of networks that may be edited, and heads that share their weights."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from steerkit.edits.writers import Writer
from steerkit.errors import InterventionError, ModelError
from steerkit.models import LanguageModel


def check_plain(model: LanguageModel) -> None:
    """Refuse what is no plain Hugging Face model with weights of its own.

    Raises:
        InterventionError: a steered view, a TransformerLens model, one with an adapter, or
            one that is in use.
    """
    from steerkit.models.huggingface import HuggingFaceEngine

    if not isinstance(model, LanguageModel):
        raise InterventionError(
            f"weights are edited in a model made by load or wrap; got a {type(model).__name__}"
        )
    network = model.network
    what = ""
    if model.table is not None:
        what = "it is a steered view; give model.plain, or steer the edited model"
    elif not isinstance(model.engine, HuggingFaceEngine) or any(
        "_original_component" in name for name, _ in network.named_parameters()
    ):
        what = "it is a TransformerLens model; load the Hugging Face model instead"
    elif hasattr(network, "get_base_model"):
        what = "it carries an adapter; merge that first (merge_and_unload)"
    elif any(
        getattr(hook, "__module__", "").startswith("steerkit.")
        for module in network.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ):
        what = "it is being steered or captured right now; leave that context first"
    if what:
        raise InterventionError(f"the weights of {model.info.name} cannot be edited: {what}")


def copied(model: LanguageModel) -> Any:
    """A deep copy of a model's network."""
    with model.engine.turns.taken():
        return copy.deepcopy(model.network)


def tokenizer_of(model: LanguageModel) -> Any:
    """The tokenizer, or None where the model was wrapped without one."""
    try:
        return model.tokenizer
    except ModelError:
        return None


def untie(network: Any, writers: Sequence[Writer]) -> tuple[str, ...]:
    """Give the unembedding weights of its own where it shares an edited parameter's.

    Raises:
        InterventionError: another module shares an edited parameter.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    head = network.get_output_embeddings()
    shared = names.get(id(head.weight), [])
    edited = {w.name for w in writers}
    for several in names.values():
        if len(several) > 1 and edited & set(several) and several is not shared:
            raise InterventionError(
                f"{' and '.join(several)} of {type(network).__name__} are one tensor, so editing "
                "one edits the other; only a tied unembedding can be untied"
            )
    if not edited & set(shared):
        return ()
    old = head.weight
    head.weight = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
    say_tied(network, False)
    return tuple(
        name for name, p in network.named_parameters(remove_duplicate=False) if p is head.weight
    )


def say_tied(network: Any, tied: bool) -> None:
    """Make the config, which decides what is saved and loaded, say whether the head is tied."""
    inner = network.config.get_text_config()
    for config in {id(c): c for c in (network.config, inner)}.values():
        config.tie_word_embeddings = tied
    if hasattr(network, "get_expanded_tied_weights_keys"):
        network.all_tied_weights_keys = network.get_expanded_tied_weights_keys(all_submodels=True)
