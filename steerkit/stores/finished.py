"""What of a store is finished: the records of each group of sites, and its shards as one table."""

import hashlib
from functools import cached_property

from steerkit.errors import OutputError
from steerkit.site import Site
from steerkit.stores.description import worst_errors
from steerkit.stores.executor import Record
from steerkit.stores.manifest import Folder, Manifest
from steerkit.stores.shards import Shards
from steerkit.stores.spec import Spec


class Finished:
    """The finished shards of a store, as they were when this was made.

    Attributes:
        records: of every shard of every group, in order; None where one is missing.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._path = folder.path
        self._manifest = manifest
        there = folder.finished()
        self._of = {
            spec.sha256: [there.get(task.name) for task in manifest.tasks([spec])]
            for spec in manifest.groups
        }
        self.records = [record for records in self._of.values() for record in records]
        self._tables: dict[str, Shards] = {}

    @property
    def missing(self) -> tuple[str, ...]:
        """Files that are not finished."""
        tasks = self._manifest.tasks()
        pairs = zip(tasks, self.records, strict=True)
        return tuple(task.name for task, record in pairs if record is None)

    @property
    def sha256(self) -> str:
        """Hash over the files of all shards, in order.

        Raises:
            OutputError: one is missing.
        """
        digest = hashlib.sha256()
        for spec in self._manifest.groups:
            for record in self.table(spec).records:
                digest.update(f"{record.name} {record.sha256}\n".encode())
        return digest.hexdigest()

    @property
    def errors(self) -> dict[Site, dict[str, float]]:
        """Bounds on what storing lost at each site."""
        return {Site.parse(site): bound for site, bound in worst_errors(self.records).items()}

    @cached_property
    def rows(self) -> Shards:
        """The table of the first group: rows are the same in all."""
        return self.table(self._manifest.groups[0])

    def at(self, site: str) -> Shards:
        """The table that a site is in."""
        return self.table(next(spec for spec in self._manifest.groups if site in spec.sites))

    def table(self, spec: Spec) -> Shards:
        """The shards of one group.

        Raises:
            OutputError: they are not all there.
        """
        if spec.sha256 not in self._tables:
            records: list[Record | None] = self._of[spec.sha256]
            whole = [record for record in records if record is not None]
            if len(whole) < len(records):
                raise OutputError(
                    f"the store in {self._path} is not finished: {len(whole)} of {len(records)} "
                    f"shards of {spec.sites[0]} are there; run the same capture again to go on"
                )
            self._tables[spec.sha256] = Shards(self._path, spec, whole)
        return self._tables[spec.sha256]
