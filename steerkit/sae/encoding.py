"""Features of many tokens, a chunk at a time: sparse values and streaming statistics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.activations import Activations
from steerkit.captures.job import Job, Prompts, choose_sites
from steerkit.captures.pooling import Pooling
from steerkit.errors import ActivationError, DirectionError
from steerkit.prompts import Prompt
from steerkit.protocols import Model, ModelInfo
from steerkit.sae.autoencoder import Autoencoder

CHUNK_BYTES = 2**25
"""Dense features that are held at once."""


@dataclass(frozen=True, eq=False)
class TokenFeatures:
    """The features that are on at each row, and nothing else; rows are those of a capture.

    Row r has `features[starts[r]:starts[r + 1]]` on, at `values[...]`, in rising order.

    Attributes:
        starts: `[row + 1]`.
        features: `[active]`, numbers of features.
        values: `[active]`, their activations, above 0 (for AbsTopK: other than 0).
        prompt_index: `[row]`.
        positions: `[row]`, absolute token positions, -1 where pooled.
        tokens: `[row]`, token ids, -1 where pooled.
        d_sae: number of features of the SAE.
    """

    starts: Int[Tensor, "row_1"]
    features: Int[Tensor, "active"]
    values: Float[Tensor, "active"]
    prompt_index: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]
    tokens: Int[Tensor, "row"]
    d_sae: int

    def __len__(self) -> int:
        return len(self.prompt_index)

    def row(self, row: int) -> tuple[Int[Tensor, "active"], Float[Tensor, "active"]]:
        """Features that are on at a row, and their activations."""
        span = slice(int(self.starts[row]), int(self.starts[row + 1]))
        return self.features[span], self.values[span]

    def of(self, feature: int) -> Float[Tensor, "row"]:
        """One feature's activation at every row."""
        out = torch.zeros(len(self))
        here = self.features == feature
        out[self.owner[here]] = self.values[here]
        return out

    @property
    def owner(self) -> Int[Tensor, "active"]:
        """The row of each entry."""
        return torch.repeat_interleave(torch.arange(len(self)), self.starts.diff())

    def dense(self) -> Float[Tensor, "row d_sae"]:
        """All of it, zeros included."""
        out = torch.zeros(len(self), self.d_sae)
        out[self.owner, self.features] = self.values
        return out

    @property
    def l0(self) -> float:
        """Mean number of features that are on."""
        return len(self.values) / max(len(self), 1)

    def __repr__(self) -> str:
        return f"TokenFeatures({len(self)} rows, {self.l0:.3g} of {self.d_sae} features on)"


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What features did over many tokens, and how well they rebuilt them.

    Attributes:
        rows: tokens seen.
        active: `[d_sae]`, tokens at which each feature was on.
        total: `[d_sae]`, sum of its activations, float64.
        maximum: `[d_sae]`, its largest activation; 0 if it was never on.
        variance: sum of squared distances of the activations from their mean.
        error: sum of squared distances of the activations from their reconstruction.
    """

    rows: int
    active: Int[Tensor, "d_sae"]
    total: Float[Tensor, "d_sae"]
    maximum: Float[Tensor, "d_sae"]
    variance: float
    error: float

    @property
    def density(self) -> Float[Tensor, "d_sae"]:
        """Fraction of tokens at which each feature is on."""
        return self.active.double() / max(self.rows, 1)

    @property
    def mean(self) -> Float[Tensor, "d_sae"]:
        """Mean activation over all tokens."""
        return self.total / max(self.rows, 1)

    @property
    def mean_active(self) -> Float[Tensor, "d_sae"]:
        """Mean activation over the tokens at which it is on; 0 if there are none."""
        return self.total / self.active.clamp(min=1)

    @property
    def l0(self) -> float:
        """Mean number of features on at a token."""
        return float(self.active.sum()) / max(self.rows, 1)

    @property
    def variance_explained(self) -> float:
        """1 - sum |h - h'|^2 / sum |h - mean h|^2: 1 is perfect, 0 as good as the mean alone."""
        return 1 - self.error / self.variance if self.variance > 0 else float("nan")

    @property
    def dead(self) -> float:
        """Fraction of features that were never on. Says little over few tokens."""
        return float((self.active == 0).double().mean())

    def summary(self) -> str:
        """One line of numbers."""
        return (
            f"{self.rows} tokens: L0 {self.l0:.3g}, variance explained "
            f"{self.variance_explained:.3g}, never on {self.dead:.1%} of {len(self.active)}"
        )

    def to_json(self) -> dict[str, Any]:
        """The numbers over all features; not the features'."""
        return {
            "rows": self.rows,
            "l0": self.l0,
            "variance_explained": self.variance_explained,
            "dead": self.dead,
            "d_sae": len(self.active),
        }

    def __repr__(self) -> str:
        return f"FeatureStatistics({self.summary()})"


class Running:
    """Statistics that grow with each chunk of rows; memory does not."""

    def __init__(self, d_sae: int, d_model: int) -> None:
        self.rows = 0
        self.active = torch.zeros(d_sae, dtype=torch.int64)
        self.total = torch.zeros(d_sae, dtype=torch.float64)
        self.maximum = torch.zeros(d_sae)
        self._mean = torch.zeros(d_model, dtype=torch.float64)
        self._spread = self._error = 0.0

    def add(
        self,
        features: Float[Tensor, "row d_sae"],
        x: Float[Tensor, "row d_model"],
        rebuilt: Float[Tensor, "row d_model"],
    ) -> None:
        """Take a chunk into account."""
        n = len(x)
        if n == 0:
            return
        self.active += (features != 0).sum(0)
        self.total += features.sum(0, dtype=torch.float64)
        self.maximum = torch.maximum(self.maximum, features.amax(0))
        # Chan, Golub and LeVeque's update: no cancellation where the mean is large.
        wide = x.double()
        mean = wide.mean(0)
        shift = mean - self._mean
        self._spread += float((wide - mean).square().sum())
        self._spread += float(shift.square().sum()) * self.rows * n / (self.rows + n)
        self._mean += shift * n / (self.rows + n)
        self._error += float((wide - rebuilt.double()).square().sum())
        self.rows += n

    def result(self) -> FeatureStatistics:
        """The statistics so far."""
        return FeatureStatistics(
            self.rows,
            self.active.clone(),
            self.total.clone(),
            self.maximum.clone(),
            self._spread,
            self._error,
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """A chunk of activations at the SAE's site, with whose they are."""

    values: Float[Tensor, "row d_model"]
    prompt_index: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]
    tokens: Int[Tensor, "row"]


Source = Activations | Model


def feature_activations(
    sae: Autoencoder,
    source: Source,
    prompts: Prompts | Prompt | str | None = None,
    *,
    exclude_bos: bool = True,
    token_budget: int = 4096,
) -> TokenFeatures:
    """The features of every token, sparse.

    Memory: what is on, a chunk of dense features, and one batch of the model.

    Args:
        sae: the autoencoder.
        source: activations captured at its site, or the model to run `prompts` through.
        prompts: with a model only.
        exclude_bos: leave the first special token out, which SAEs are rarely trained on;
            with a model only.
        token_budget: padded tokens a batch of the model may hold.

    Raises:
        ActivationError: activations of another site or width, pooled over tokens, or no rows.
        DirectionError: activations of another model than the one the SAE was loaded for.
    """
    features, values, counts, where = [], [], [], []
    for rows in chunks(sae, source, prompts, exclude_bos=exclude_bos, token_budget=token_budget):
        dense = sae.encode(rows.values)
        row, column = dense.nonzero(as_tuple=True)
        features.append(column)
        values.append(dense[row, column])
        counts.append(torch.bincount(row, minlength=len(dense)))
        where.append(torch.stack([rows.prompt_index, rows.positions, rows.tokens]))
    if not where:
        raise ActivationError("there are no rows to encode")
    prompt_index, positions, tokens = torch.cat(where, 1)
    count = torch.cat(counts)
    ends = count.cumsum(0)
    order = torch.argsort(prompt_index * (int(positions.max()) + 2) + positions, stable=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), count[order].cumsum(0)])
    # Where each entry of the sorted rows stood before.
    begin = (ends - count)[order]
    within = torch.arange(int(starts[-1])) - torch.repeat_interleave(starts[:-1], count[order])
    entry = torch.repeat_interleave(begin, count[order]) + within
    return TokenFeatures(
        starts,
        torch.cat(features)[entry],
        torch.cat(values)[entry],
        prompt_index[order],
        positions[order],
        tokens[order],
        sae.d_sae,
    )


def feature_statistics(
    sae: Autoencoder,
    source: Source,
    prompts: Prompts | Prompt | str | None = None,
    *,
    exclude_bos: bool = True,
    token_budget: int = 4096,
) -> FeatureStatistics:
    """Density, mean and largest activation of every feature, L0 and variance explained.

    One pass; memory does not grow with the number of tokens (but for the prompts themselves).
    Arguments and errors are those of `feature_activations`.
    """
    running = Running(sae.d_sae, sae.d_model)
    for rows in chunks(sae, source, prompts, exclude_bos=exclude_bos, token_budget=token_budget):
        features, rebuilt = sae.reconstruct(rows.values)
        running.add(features, rows.values, rebuilt)
    if not running.rows:
        raise ActivationError("there are no rows to encode")
    return running.result()


def chunks(
    sae: Autoencoder,
    source: Source,
    prompts: Prompts | Prompt | str | None = None,
    *,
    exclude_bos: bool = True,
    token_budget: int = 4096,
) -> Iterator[Rows]:
    """The rows at the SAE's site, few enough at a time that dense features fit `CHUNK_BYTES`."""
    size = max(1, CHUNK_BYTES // (4 * sae.d_sae))
    if isinstance(source, Activations):
        if prompts is not None:
            raise ActivationError("give activations, or a model and prompts, not both")
        yield from _recorded(sae, source, size)
        return
    if prompts is None:
        raise ActivationError("a model needs prompts to run: give the texts after the model")
    for piece in token_job(
        sae, source, prompts, exclude_bos=exclude_bos, token_budget=token_budget
    ).pieces():
        whole = piece[1]
        for start in range(0, len(whole.values), size):
            part = slice(start, start + size)
            yield Rows(
                whole.values[part, 0],
                whole.prompt_index[part],
                whole.positions[part],
                whole.tokens[part],
            )


def token_job(
    sae: Autoencoder,
    model: Model,
    prompts: Prompts | Prompt | str,
    *,
    exclude_bos: bool = True,
    token_budget: int = 4096,
) -> Job:
    """The capture of every token at the SAE's site, planned."""
    require_model(sae, model.info)
    return Job.plan(
        model,
        prompts,
        sites=choose_sites(model, "resid_post", None, [sae.site]),
        pooling=Pooling.of("all", exclude_bos=exclude_bos),
        before=False,
        token_budget=token_budget,
    )


def require_model(sae: Autoencoder, info: ModelInfo) -> None:
    """Raise where the SAE was loaded for another model.

    Raises:
        DirectionError: another model.
    """
    if sae.info is not None and sae.info.fingerprint != info.fingerprint:
        raise DirectionError(
            f"{sae.name} was loaded for {sae.info.name} ({sae.info.fingerprint[:12]}), not for "
            f"{info.name} ({info.fingerprint[:12]}); load it with load_sae(..., model=model)"
        )


def _recorded(sae: Autoencoder, acts: Activations, size: int) -> Iterator[Rows]:
    require_model(sae, acts.info)
    token = acts.pooling in ("last", "all") or acts.pooling.startswith("index")
    if not token:
        raise ActivationError(
            f"features are of tokens, and these rows are pooled ('{acts.pooling}'): a feature of "
            "a mean is not the mean of a feature; capture with positions='all' or 'last'"
        )
    acts.at(sae.site)  # names what was captured where the site is not among it
    column = acts.sites.index(sae.site)
    for start in range(0, len(acts), size):
        part = slice(start, start + size)
        yield Rows(
            acts.values[part, column],
            acts.prompt_index[part],
            acts.positions[part],
            acts.tokens[part],
        )


def prompts_of(source: Source, prompts: Prompts | Prompt | str | None) -> Sequence[Prompt]:
    """The prompts that a source's `prompt_index` counts."""
    if isinstance(source, Activations):
        return source.prompts
    given: Any = getattr(prompts, "prompts", prompts)
    given = [given] if isinstance(given, str | Prompt) else given
    return tuple(Prompt.of(p) for p in given or ())
