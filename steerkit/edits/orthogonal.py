"""`orthogonalize`: directional ablation written into the weights; `undo` takes it back."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerkit.direction import Direction
from steerkit.edits.copies import check_plain, copied, say_tied, tokenizer_of, untie
from steerkit.edits.receipt import Edit, EditReceipt
from steerkit.edits.removal import Basis, remove, restore, sha256
from steerkit.edits.twin import check_streams, check_twin, twin_error
from steerkit.edits.writers import Writer, find_writers, probe_batch
from steerkit.errors import InterventionError, ModelError, OutputError
from steerkit.interventions import Ablate
from steerkit.models import LanguageModel, wrap
from steerkit.models.readout import through_norm
from steerkit.prompts import Prompt

SMALLEST_GAIN = 1e-4
"""Of a norm after a projection, relative to its median gain."""

CHECK_SEED = 1000
"""Of the tokens that an edit is checked on; writers are found on others."""


class Edited(NamedTuple):
    """An edited model and what was done to it."""

    model: LanguageModel
    receipt: EditReceipt


def orthogonalize(
    model: LanguageModel,
    direction: Direction | Sequence[Direction],
    *,
    prompts: Sequence[Prompt | str] | None = None,
    approximate: bool = False,
    reversible: bool = True,
    force: bool = False,
    name: str | None = None,
) -> Edited:
    """Ablation written into the weights: a new model that cannot write along the directions.

    Every parameter W that writes the stream (token and position embeddings, attention and
    MLP output projections, experts, their biases) becomes W - u u^T W, for the orthonormal
    span u of the directions. A tied unembedding is untied first and keeps its weights. The
    result equals `Ablate(direction, "zero", positions="all")` at resid_pre@0 and at every
    attn_out and mlp_out, which is measured; no hook is left to pay for. The given model is
    not touched: the new one is a copy, so memory must hold both.

    Writers are found by their gradients, not by their names, and afterwards every
    contribution is checked to have no component along the directions.

    Args:
        model: a plain Hugging Face model.
        direction: one, or several whose span is taken out.
        prompts: what the twin is measured on; random tokens by default.
        approximate: edit a post-norm model (Gemma 2 and 3, OLMo 2) too. There the
            projections lose what would come out of the norm along the direction, so the
            stream loses it exactly, but the norm rescales what is left: the receipt says
            `exact=False` and how large the error is.
        reversible: keep what `undo` needs to restore every bit; otherwise it restores up
            to rounding.
        force: allow directions that were taken from another model of this width.
        name: of the new model.

    Raises:
        InterventionError: a steered view, a post-norm model without `approximate`, weights
            that are quantised, or dependent directions.
        DirectionError: a direction of another model.
        ModelError: an edit that failed its checks; nothing is returned.

    Source: Arditi et al. 2024, weight orthogonalisation (arXiv:2406.11717).
    """
    check_plain(model)
    directions = tuple(direction) if isinstance(direction, Sequence) else (direction,)
    for item in directions:
        item.check(model.info, force=force)
    # Refuses dependent directions, in the words of run-time ablation.
    Ablate(directions)
    span = _orthonormal(torch.stack([d.unit for d in directions]))
    writers = find_writers(model, through_norms=approximate)
    exact = not any(w.norm for w in writers)
    bases = {"": Basis(span, span), **_seen_through(model, writers, span)}
    network = copied(model)
    untied = untie(network, writers)
    with torch.inference_mode(False):
        edits = tuple(_edit(network, w, bases[w.norm], reversible) for w in writers)
    label = name or f"{model.info.name} (orthogonalized)"
    edited = wrap(network, tokenizer_of(model), name=label)
    probe = probe_batch(model, CHECK_SEED)
    batches = model.batches(prompts) if prompts is not None else [probe]
    leak = check_streams(edited, span, [probe, *batches[prompts is None :]])
    error = twin_error(
        model,
        edited,
        directions,
        batches,
        prompts="probe" if prompts is None else "given",
        force=force,
    )
    if not approximate:
        check_twin(edited, error)
    receipt = EditReceipt(
        directions=directions,
        bases=bases,
        edits=edits,
        untied=untied,
        exact=exact,
        error=error,
        leak=leak,
        reversible=reversible,
        model=model.info,
        edited=edited.info,
    )
    return Edited(edited, receipt)


def undo(model: LanguageModel, receipt: EditReceipt) -> LanguageModel:
    """The model before the edit, bit for bit: a new model; the given one is not touched.

    A receipt made with `reversible=False` restores up to rounding in the weights' dtype.

    Raises:
        OutputError: a model that is not what the edit made, or that changed since.
        ModelError: the restored bits are not those that were edited.
    """
    check_plain(model)
    here = dict(model.network.named_parameters())
    for edit in receipt.edits:
        found = here.get(edit.writer.name)
        if found is None or sha256(found) != edit.removal.after:
            raise OutputError(
                f"{model.info.name} is not what this edit of {receipt.model.name} made: "
                f"{edit.writer.name} {'is missing' if found is None else 'has other values'}; "
                "give the edited model as it was, in the dtype it was edited in"
            )
    network = copied(model)
    parameters = dict(network.named_parameters())
    for edit in receipt.edits:
        parameter = parameters[edit.writer.name]
        basis = receipt.bases[edit.writer.norm]
        with torch.inference_mode(False):
            restore(parameter, edit.writer.axis, basis, edit.removal)
        if receipt.reversible and sha256(parameter) != edit.removal.before:
            raise ModelError(
                f"{edit.writer.name} of {model.info.name} was not restored to its old bits; "
                "load the original model instead"
            )
    if receipt.untied:
        network.get_output_embeddings().weight = network.get_input_embeddings().weight
        say_tied(network, True)
    return wrap(network, tokenizer_of(model), name=receipt.model.name)


def _orthonormal(rows: Float[Tensor, "k d_model"]) -> Float[Tensor, "d_model k"]:
    return torch.linalg.qr(rows.double().mT)[0]


def _seen_through(
    model: LanguageModel, writers: Sequence[Writer], span: Float[Tensor, "d_model k"]
) -> dict[str, Basis]:
    """For each norm, what to take out of its input so that its output loses just the span.

    For c = g * x / rms(x) with gains g that is x - (u / g) (g * u)^T x: then c becomes
    (c - u u^T c) times the ratio of the two rms, the only error that is left.

    Raises:
        InterventionError: a norm that centres its input, or has a gain of 0.
    """
    bases = {}
    for name in dict.fromkeys(w.norm for w in writers if w.norm):
        norm = model.network.get_submodule(name)
        ones = torch.ones(1, span.shape[0])
        with torch.no_grad():
            gain = through_norm(norm, ones, next(norm.parameters())).double().cpu().mT
        if float(gain.abs().min()) < SMALLEST_GAIN * float(gain.abs().median()):
            raise InterventionError(
                f"the norm {name} of {model.info.name} centres its input or has gains close to "
                "0, so the direction cannot be taken out before it; use run-time Ablate instead"
            )
        bases[name] = Basis(span * gain, span / gain)
    return bases


def _edit(network: nn.Module, writer: Writer, basis: Basis, reversible: bool) -> Edit:
    owner = network.get_submodule(writer.name.rpartition(".")[0])
    parameter = network.get_parameter(writer.name)
    removal = remove(parameter, writer.axis, basis, reversible=reversible)
    part, conv1d = _part(owner, parameter, writer)
    return Edit(writer, part, conv1d, removal)


def _part(owner: nn.Module, parameter: Tensor, writer: Writer) -> tuple[str, bool]:
    """What kind of writer a parameter is, and whether it is stored `[in out]`."""
    kinds: Mapping[int, str] = {1: "bias", 3: "experts"}
    if parameter.ndim != 2:
        return kinds.get(parameter.ndim, "other"), False
    if isinstance(owner, nn.Embedding):
        return "embedding", False
    if isinstance(owner, nn.Linear):
        return "linear", False
    if any(p.ndim == 3 for p in owner.parameters(recurse=False)):
        return "experts", False
    # Known by name alone, since only models import the library that defines it.
    if type(owner).__name__ == "Conv1D" and writer.name.endswith(".weight"):
        return "linear", True
    return "other", False
