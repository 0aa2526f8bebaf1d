"""Features of many tokens: sparse values, and streaming statistics."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.errors import ActivationError
from steerkit.sae.autoencoder import Autoencoder
from steerkit.sae.rows import Source, Texts, chunks
from steerkit.sae.running import FeatureStatistics, Running


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


def feature_activations(
    sae: Autoencoder,
    source: Source,
    prompts: Texts | None = None,
    *,
    exclude_bos: bool = True,
    token_budget: int = 4096,
) -> TokenFeatures:
    """The features of every token, sparse.

    Memory: what is on, a chunk of dense features, and one batch of the model.

    Args:
        sae: the autoencoder.
        source: activations captured at its site, or the model to run `prompts` through.
        prompts: with a model only. An iterator is read a block at a time, so that neither
            texts nor tokens pile up; batches are then made within blocks.
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
    prompts: Texts | None = None,
    *,
    exclude_bos: bool = True,
    token_budget: int = 4096,
) -> FeatureStatistics:
    """Density, mean and largest activation of every feature, L0 and variance explained.

    One pass; memory does not grow with the number of tokens, but for the prompts themselves:
    give an iterator where there are very many.
    Arguments and errors are those of `feature_activations`.
    """
    running = Running(sae.d_sae, sae.d_model)
    for rows in chunks(sae, source, prompts, exclude_bos=exclude_bos, token_budget=token_budget):
        features, rebuilt = sae.reconstruct(rows.values)
        running.add(features, rows.values, rebuilt)
    if not running.rows:
        raise ActivationError("there are no rows to encode")
    return running.result()
