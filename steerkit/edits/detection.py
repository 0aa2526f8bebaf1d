"""Was a direction written out of a model's weights? The defence beside the edit.

Weight orthogonalisation leaves a mark: a direction that no writer of the stream can produce,
to the precision of the weights. The stacked, normalised writers of an ordinary model have no
such singular value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.edits.writers import Writer, find_writers
from steerkit.errors import ModelError
from steerkit.models import LanguageModel
from steerkit.models.readout import through_norm

ROUNDING = 8.0
"""Machine epsilons, in units of a typical singular value, that count as nothing."""
FLOOR = 1e-5
"""Below it a float64 Gram matrix does not tell singular values apart."""
GAP = 0.1
"""A removed direction is at most this fraction of the next singular value."""
IS_MEAN = 0.999
"""Cosine with the all-ones direction above which centring explains a missing direction."""


@dataclass(frozen=True, eq=False)
class OrthogonalityFinding:
    """What `find_orthogonalized` saw. Singular values are relative to their root mean square.

    Attributes:
        directions: `[k d_model]` float64 orthonormal: what no writer in the scope writes
            beyond rounding; no rows where nothing was found.
        scope: the writers that lack them: `all`, `blocks` (all but the embeddings), or
            `changed` (those that differ from `before`); with ` before norms` where it holds
            for post-norm projections as they are stored. Of all writers where none was found.
        singular: the largest singular value of a removed direction, or the smallest of all.
        following: the next larger one.
        limit: what rounding in the weights' own precision explains.
        leaks: for each matrix in the scope, the part of its Frobenius norm along the
            directions, times sqrt(d_model): 1 is what a random direction has.
        centred: whether all writers lack the all-ones direction, which processing for
            LayerNorm models removes and which is not counted among `directions`.
        dead: coordinates that no writer writes at all; not counted either.
        changed: writers that differ from `before`.
        explained: the part of the change, as squared norm over the changed writers, that
            lies along the directions; None without `before` or without a finding.
    """

    directions: Float[Tensor, "k d_model"]
    scope: str
    singular: float
    following: float
    limit: float
    leaks: Mapping[str, float]
    centred: bool
    dead: tuple[int, ...]
    changed: tuple[str, ...]
    explained: float | None

    @property
    def found(self) -> bool:
        """Whether a direction is missing that rounding, centring and dead coordinates leave."""
        return len(self.directions) > 0

    def __str__(self) -> str:
        numbers = (
            f"singular value {self.singular:.2g}, next {self.following:.2g}, "
            f"rounding {self.limit:.2g}"
        )
        if not self.found:
            return f"no direction is missing from the writers ({numbers})"
        k = len(self.directions)
        known = "" if self.explained is None else f"; {self.explained:.1%} of the change is theirs"
        return (
            f"{k} direction{'s' * (k > 1)} missing from {self.scope} writers ({numbers}){known}: "
            "the weights were orthogonalised"
        )

    __repr__ = __str__


def find_orthogonalized(
    model: LanguageModel, before: LanguageModel | None = None
) -> OrthogonalityFinding:
    """Look for directions that were written out of a model's weights.

    Without `before` it finds directions missing from all writers, or from all but the
    embeddings; with it also those missing only from the writers that changed. An edit that
    was followed by training, scaled below 1, or different in each layer leaves no common
    direction: silence is not proof.

    Args:
        model: a plain Hugging Face model, under suspicion.
        before: the model that it is said to come from.

    Raises:
        InterventionError: a model whose writers cannot be told apart.
        ModelError: `before` has other parameters.

    Source: the mark of weight orthogonalisation, Arditi et al. 2024 (arXiv:2406.11717).
    """
    writers = [w for w in find_writers(model.plain, through_norms=True) if _is_matrix(model, w)]
    changed = _changed(model, before, writers)
    scopes = {"all": writers, "blocks": [w for w in writers if w.site.stream != "resid_pre"]}
    if changed:
        scopes["changed"] = [w for w in writers if w.name in changed]
    grams = {w.name: _gram(_rows(model, w)) for w in writers}
    limit = max(FLOOR, ROUNDING * max(_precision(model, w) for w in writers))
    findings = []
    for suffix in ("", " before norms"):
        gains = _gains(model, writers) if not suffix else {}
        if suffix and not any(w.norm for w in writers):
            break
        for scope, chosen in scopes.items():
            seen = {w.name: _through(grams[w.name], gains.get(w.norm)) for w in chosen}
            found = _missing(seen, scope + suffix, limit, tuple(changed))
            if found.found and before is not None:
                found = _explained(found, model, before, chosen, gains)
            findings.append(found)
    # Of a stack of few rows something is always missing: it counts if the change is that.
    real = [
        f for f in findings if f.found and (f.scope[:7] != "changed" or (f.explained or 0) > 0.5)
    ]
    return real[0] if real else _nothing(findings[0])


def _is_matrix(model: LanguageModel, writer: Writer) -> bool:
    return model.network.get_parameter(writer.name).ndim > 1


def _rows(model: LanguageModel, writer: Writer) -> Float[Tensor, "row d_model"]:
    parameter = model.network.get_parameter(writer.name).detach()
    rows = parameter.movedim(writer.axis, -1)
    return rows.reshape(-1, rows.shape[-1])


def _gram(rows: Float[Tensor, "row d_model"], chunk: int = 1 << 13) -> Float[Tensor, "d d"]:
    """rows^T rows in float64, on the CPU."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in rows.split(chunk):
        wide = part.double()
        total += (wide.mT @ wide).cpu()
    return total


def _gains(model: LanguageModel, writers: Sequence[Writer]) -> dict[str, Tensor]:
    """What each norm after a projection multiplies by."""
    gains = {}
    for name in {w.norm for w in writers if w.norm}:
        norm = model.network.get_submodule(name)
        like = next(norm.parameters())
        with torch.no_grad():
            found = through_norm(norm, torch.ones(1, len(like)), like)
        gains[name] = found.double().cpu().flatten()
    return gains


def _through(gram: Tensor, gain: Tensor | None) -> Tensor:
    seen = gram if gain is None else gain[:, None] * gram * gain
    # Scaled so that the mean eigenvalue is 1, whatever the size of the weights.
    return seen * (len(seen) / seen.trace().clamp(min=1e-300))


def _missing(
    grams: Mapping[str, Tensor], scope: str, limit: float, changed: tuple[str, ...]
) -> OrthogonalityFinding:
    """The directions that a stack of writers lacks."""
    stack = torch.stack(list(grams.values())).mean(0)
    width = len(stack)
    live = stack.diagonal() > 0
    dead = tuple(int(i) for i in (~live).nonzero().flatten())
    values, vectors = torch.linalg.eigh(stack[live][:, live])
    singular = values.clamp(min=0).sqrt()
    count = 0
    for k in range(1, max(2, len(singular) // 4)):
        if singular[k - 1] <= limit and singular[k - 1] <= GAP * singular[k]:
            count = k
    span = torch.zeros(width, count, dtype=torch.float64)
    span[live] = vectors[:, :count]
    span, centred = _without_mean(span)
    edge = max(count, 1)
    leaks = {
        name: float((span.mT @ gram @ span).trace().clamp(min=0).sqrt())
        for name, gram in grams.items()
    }
    return OrthogonalityFinding(
        span.mT.contiguous(),
        scope,
        float(singular[edge - 1]),
        float(singular[edge]),
        limit,
        leaks,
        centred,
        dead,
        changed,
        None,
    )


def _without_mean(span: Float[Tensor, "d k"]) -> tuple[Float[Tensor, "d k"], bool]:
    """The span without the all-ones direction, and whether it held that."""
    width, count = span.shape
    mean = torch.full((width,), width**-0.5, dtype=torch.float64)
    inside = span.mT @ mean
    if not count or float(inside.norm()) < IS_MEAN:
        return span, False
    # The part of the span orthogonal to the mean direction.
    rest = span - mean[:, None] * inside
    return torch.linalg.svd(rest, full_matrices=False)[0][:, : count - 1], True


def _precision(model: LanguageModel, writer: Writer) -> float:
    """Machine epsilon of the coarsest dtype that holds the weights: they may have been cast up."""
    weights = _rows(model, writer)
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(weights.to(dtype).to(weights.dtype), weights):
            return torch.finfo(dtype).eps
    return torch.finfo(weights.dtype).eps


def _changed(
    model: LanguageModel, before: LanguageModel | None, writers: Sequence[Writer]
) -> list[str]:
    """Writers that differ between two models."""
    if before is None:
        return []
    old = dict(before.network.named_parameters())
    changed = []
    for writer in writers:
        new = model.network.get_parameter(writer.name)
        if writer.name not in old or old[writer.name].shape != new.shape:
            raise ModelError(
                f"{before.info.name} has no {writer.name} of shape {tuple(new.shape)}, so "
                f"{model.info.name} does not come from it; give the model it was made from, "
                "or leave `before` out"
            )
        if not torch.equal(old[writer.name].to(new.device, new.dtype), new):
            changed.append(writer.name)
    return changed


def _explained(
    found: OrthogonalityFinding,
    model: LanguageModel,
    before: LanguageModel,
    writers: Sequence[Writer],
    gains: Mapping[str, Tensor],
) -> OrthogonalityFinding:
    """The finding with how much of the change it accounts for."""
    along = total = 0.0
    for writer in writers:
        if writer.name in found.changed:
            delta = _rows(before, writer).cpu().double() - _rows(model, writer).cpu().double()
            delta = delta * gains.get(writer.norm, torch.ones(1, dtype=torch.float64))
            along += float((delta @ found.directions.mT).square().sum())
            total += float(delta.square().sum())
    return OrthogonalityFinding(**{**found.__dict__, "explained": along / total if total else None})


def _nothing(found: OrthogonalityFinding) -> OrthogonalityFinding:
    """The finding of the widest scope, without directions."""
    none = found.directions[:0]
    return OrthogonalityFinding(**{**found.__dict__, "directions": none, "explained": None})
