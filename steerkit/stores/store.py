"""`ActivationStore`: what a capture at dataset scale has left in a folder, to be read."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from steerkit.activations import Activations
from steerkit.errors import ActivationError, OutputError
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.stores.description import as_html, describe
from steerkit.stores.encoding import DTYPES
from steerkit.stores.exports import export_dataset, export_saelens, to_activations
from steerkit.stores.finished import Finished
from steerkit.stores.manifest import Folder, Manifest
from steerkit.stores.prompt_files import PromptFiles
from steerkit.stores.selection import Rows, Where, index_of, rows_where
from steerkit.stores.shuffling import batches
from steerkit.stores.verification import Verification, verify


class ActivationStore:
    """A store's rows, site by site, mapped from disk: nothing is read before it is asked for.

    A row is a prompt, or a token where the store was captured with `positions="all"`. Rows are
    in the dataset's order, and row i is the same prompt and token at every site.

    Raises:
        OutputError: no store in that folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Folder(Path(folder))
        self.manifest: Manifest = self._folder.read()
        kept = self.manifest.groups[0].dtype
        if kept not in DTYPES:
            raise OutputError(
                f"{folder} holds {kept} and no rows: read its moments.safetensors with "
                "GroupMoments.load, or capture the rows into another folder"
            )
        self.finished = Finished(self._folder, self.manifest)
        """The shards that are there, as tables of rows."""
        self._prompts = PromptFiles(self.path, self.manifest)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def info(self) -> ModelInfo:
        """The model that the activations are of."""
        return self.manifest.info

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site, in forward order."""
        return tuple(sorted(Site.parse(s) for spec in self.manifest.groups for s in spec.sites))

    @property
    def pooling(self) -> str:
        """How tokens became rows: `last`, `mean_prompt`, `all`, ..."""
        return self.manifest.groups[0].rule.name

    @property
    def n_prompts(self) -> int:
        """Prompts, which are as many as the dataset had usable rows, up to the limit."""
        return len(self._prompts)

    @property
    def missing(self) -> tuple[str, ...]:
        """Files that are not finished; empty for a complete store."""
        return self.finished.missing

    @property
    def complete(self) -> bool:
        """Whether every shard of every site is there."""
        return not self.missing

    @property
    def sha256(self) -> str:
        """Hash over the files of all shards, in order: equal for equal stores.

        Raises:
            OutputError: the store is not complete.
        """
        return self.finished.sha256

    @property
    def errors(self) -> dict[Site, dict[str, float]]:
        """Bounds on what storing lost at each site, over all finished shards.

        `max_abs` of any element, in activation units; `max_relative` of any row, |x - y| / |x|.
        """
        return self.finished.errors

    def __len__(self) -> int:
        return len(self.finished.rows)

    def at(self, site: Site | str | int, rows: Rows = slice(None)) -> Float32[Tensor, "row d"]:
        """Rows at one site, as float32: all of them, or some in the order asked.

        Memory: what is asked for.

        Raises:
            ActivationError: a site that is not in the store, or rows beyond its end.
            OutputError: a shard that is not there.
        """
        name = self._name(site)
        return self.finished.at(name).gather(name, self._index(rows))

    def prompt_index(self, rows: Rows = slice(None)) -> Int[Tensor, "row"]:
        """Which prompt each row belongs to."""
        return self.finished.rows.column("prompt", self._index(rows))

    def positions(self, rows: Rows = slice(None)) -> Int[Tensor, "row"]:
        """Position of each row's token in its prompt; -1 where pooled over several."""
        return self.finished.rows.column("position", self._index(rows))

    def tokens(self, rows: Rows = slice(None)) -> Int[Tensor, "row"]:
        """Token id of each row; -1 where pooled over several."""
        return self.finished.rows.column("token", self._index(rows))

    def token_ids(self, prompt: int) -> tuple[Int[Tensor, "pos"], int]:
        """Token ids of a prompt with its answer, and how many of them are the prompt."""
        number = self._prompts.part_of(prompt)
        tensors = self.finished.rows.open(number)
        local = prompt - self.manifest.parts[number].start
        first, end = tensors["ids_start"][local : local + 2].tolist()
        return tensors["ids"][first:end].long(), int(tensors["prompt_len"][local])

    def prompt(self, number: int) -> Prompt:
        """One prompt."""
        return self._prompts[number]

    def prompts(self) -> Iterator[tuple[Prompt, Mapping[str, Any]]]:
        """Every prompt with its metadata, in order, a shard at a time."""
        return iter(self._prompts)

    def rows(self, where: Where | None = None) -> Int[Tensor, "row"]:
        """Indices of the rows whose prompt's metadata are as asked, in order.

        Args:
            where: values of columns (`{"language": "en", "label": [0, 1]}`; a list means any of
                them), or a function of a prompt's metadata.

        Raises:
            ActivationError: a column that the dataset did not have.
        """
        if where is None:
            return torch.arange(len(self))
        columns = self.manifest.dataset["columns"]
        return rows_where(where, columns, self._prompts, self.finished.rows)

    def batches(
        self,
        size: int,
        site: Site | str | int | None = None,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        held_out: float = 0.0,
        held: bool = False,
    ) -> Iterator[Float32[Tensor, "row d"]]:
        """Every row of a site once, in batches, shuffled: what training reads.

        Blocks of neighbouring rows are drawn at random over the whole store, and the rows of
        many blocks are mixed: rows of one prompt are spread over tens of thousands of others,
        while the disk is read in long runs. Memory: the mixed rows (64 MiB), for as long as one
        of their batches is kept.

        Args:
            size: rows a batch; the last may have fewer.
            site: where; needed if the store has several.
            shuffle: False gives the rows in order.
            seed: of the order.
            drop_last: leave a smaller last batch out.
            held_out: fraction of the blocks of rows that are left out, the same whatever the seed.
            held: give those instead.

        Raises:
            ActivationError: a size below 1, several sites and none named, or rows held out of
                batches that are not shuffled.
        """
        if size < 1:
            raise ActivationError(f"a batch has at least one row; got size={size}")
        if not 0 <= held_out < 1 or ((held or held_out) and not (shuffle and held_out)):
            raise ActivationError(
                f"held_out is at least 0 and below 1, and for shuffled batches; got {held_out}, "
                f"held={held}, shuffle={shuffle}"
            )
        if site is None and len(self.sites) > 1:
            raise ActivationError(
                f"the store has {len(self.sites)} sites: say which, such as {self.sites[-1]}"
            )
        name = self._name(self.sites[0] if site is None else site)
        return batches(
            self.finished.at(name),
            name,
            size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            held_out=held_out,
            held=held,
        )

    def to_activations(
        self,
        sites: Iterable[Site | str | int] | Site | str | int | None = None,
        *,
        rows: Rows | None = None,
        where: Where | None = None,
        label: str = "label",
    ) -> Activations:
        """The rows in memory, as `extract`, `probe` and `compare_criteria` take them.

        Args:
            sites: some sites; all by default.
            rows: some rows, by index.
            where: only rows whose prompt's metadata are as asked (see `rows`).
            label: the metadata column that holds 1 or 0 for each prompt; where there is no such
                column, there are no labels.

        Raises:
            ActivationError: no such site, column or row, or labels that are not 0 and 1.
        """
        return to_activations(
            self, self._sites(sites), self.rows(where) if rows is None else self._index(rows), label
        )

    def export_saelens(
        self,
        out: str | Path,
        sites: Iterable[Site | str | int] | Site | str | int | None = None,
        *,
        context_size: int | None = None,
    ) -> int:
        """Write the cached activations that SAELens trains from; how many rows they hold.

        A dataset of windows of `context_size` neighbouring rows, with a column for each site
        under its TransformerLens hook name, and `token_ids`. SAELens takes whole windows only:
        the rows after the last one are left out, and there are fewer than `context_size`.

        Args:
            out: a new or empty folder: SAELens' `cached_activations_path`.
            sites: some sites; all by default.
            context_size: rows a window; where every prompt has as many rows, that is the default.

        Raises:
            OutputError: prompts of different lengths and no context_size, or an unusable folder.
        """
        return export_saelens(self, Path(out), self._sites(sites), context_size)

    def export_dataset(
        self,
        out: str | Path,
        sites: Iterable[Site | str | int] | Site | str | int | None = None,
    ) -> int:
        """Write a Hugging Face dataset with one row for each of the store's; how many.

        Columns: `prompt` (its number), `text`, `position`, `token`, the scalar columns of the
        dataset, and one for each site (float32) under its name, such as `resid_post@3`. Read it
        by `datasets.load_from_disk`.

        Args:
            out: a new or empty folder.
            sites: some sites; all by default.

        Raises:
            OutputError: an unusable folder.
        """
        return export_dataset(self, Path(out), self._sites(sites))

    def verify(self, *, mark: bool = True) -> Verification:
        """Read every shard and compare its hash with its record's.

        Args:
            mark: note what is damaged, so that the next run of the same capture makes it anew;
                not possible while another capture is writing to the folder.
        """
        return verify(self._folder, self.manifest, mark=mark)

    def to_json(self) -> dict[str, Any]:
        """What the store is, as a plain dictionary."""
        return describe(self, self.finished.records)

    def __repr__(self) -> str:
        state = f"{len(self):,} rows" if self.complete else f"{len(self.missing)} shards missing"
        return (
            f"ActivationStore('{self.path}', {state} of {self.n_prompts:,} prompts, "
            f"{len(self.sites)} sites, pooling '{self.pooling}', {self.info.name})"
        )

    def _repr_html_(self) -> str:
        return as_html(self.to_json())

    def _sites(
        self, sites: Iterable[Site | str | int] | Site | str | int | None
    ) -> tuple[Site, ...]:
        """The sites named, in forward order; all for None."""
        if sites is None:
            return self.sites
        given = [sites] if isinstance(sites, Site | str | int) else sites
        return tuple(sorted({Site.parse(self._name(site)) for site in given}))

    def _name(self, site: Site | str | int) -> str:
        wanted = Site.parse(site)
        if wanted not in self.sites:
            raise ActivationError(
                f"{wanted} is not in the store; it holds {', '.join(map(str, self.sites))}. "
                "capture_dataset on the same folder adds sites"
            )
        return str(wanted)

    def _index(self, rows: Rows) -> Int[Tensor, "row"]:
        return index_of(rows, len(self))
