"""Names to objects: registering is writing a file; looking up a typo says what was meant."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar, cast

from steerkit.errors import MethodError, SteerkitError

T = TypeVar("T")
E = TypeVar("E")


def suggest(name: str, options: Iterable[str]) -> str:
    """A sentence naming the closest options to `name`, or all of them.

    >>> suggest("mean_diference", ["mean_difference", "pca"])
    "did you mean 'mean_difference'? Known: mean_difference, pca"
    """
    known = sorted(options)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    listing = f"Known: {', '.join(known)}"
    return f"did you mean '{close[0]}'? {listing}" if close else listing


class Registry(Generic[T]):
    """The objects of one kind, keyed by name, found by importing a package's modules."""

    def __init__(self, kind: str, package: str, error: type[SteerkitError] = MethodError) -> None:
        self.kind = kind
        self.package = package
        self.error = error
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[E], E]:
        """Decorator: make the object known as `name`; a second one of that name is an error."""

        def keep(entry: E) -> E:
            if name in self._entries:
                raise self.error(f"{self.kind} '{name}' is registered twice; rename one of them")
            self._entries[name] = cast(T, entry)
            return entry

        return keep

    def names(self) -> tuple[str, ...]:
        """All known names, sorted."""
        self._load()
        return tuple(sorted(self._entries))

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._entries:
            raise self.error(f"no {self.kind} named '{name}'; {suggest(name, self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def _load(self) -> None:
        # Siblings register themselves when imported, so a new file is enough to add one.
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._loaded = True
