"""Checks: evidence in, one value a prompt out, NaN where a check does not apply.

A new check is one file here:

    @register("shouting", unit="fraction", law="The answer is in upper case.", source="...")
    def shouting(evidence):
        return [float(i.output.isupper()) if i.answered else nan for i in evidence.items]
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerkit.audits.evidence import Evidence
from steerkit.errors import MethodError
from steerkit.judges import Counted
from steerkit.registry import Registry

Values = Callable[[Evidence], Sequence[float]]


@dataclass(frozen=True)
class ItemCheck:
    """A check with what a reader has to know about it.

    Attributes:
        name: as in tables and files.
        unit: of one value.
        law: what a value says, in one sentence.
        source: where the definition comes from.
        values: evidence -> one value a prompt.
        needs: measurement without which it cannot be taken, or empty.
        per_token: measurement whose pooled tokens also give a 95th percentile, or empty.
        tested: whether a difference of zero is a hypothesis; False where the value is a
            distance from the plain model, which no change makes negative.
        judge: whose failures are counted, where the values are a judge's.
    """

    name: str
    unit: str
    law: str
    source: str
    values: Values
    needs: str = ""
    per_token: str = ""
    tested: bool = True
    judge: Counted | None = None

    def __call__(self, evidence: Evidence) -> NDArray[np.float64]:
        """One value per prompt of the evidence."""
        found = np.asarray(self.values(evidence), dtype=np.float64)
        if found.shape != (len(evidence.items),):
            raise MethodError(
                f"the check '{self.name}' gave values of shape {found.shape} for "
                f"{len(evidence.items)} prompts; return one value a prompt, NaN where it "
                "does not apply"
            )
        if np.isinf(found).any():
            row = int(np.isinf(found).argmax())
            raise MethodError(
                f"the check '{self.name}' gave an infinite value for prompt {row} of the arm "
                f"'{evidence.arm}'; return NaN where it does not apply"
            )
        return found


registry: Registry[ItemCheck] = Registry("check", __name__)


def register(
    name: str,
    *,
    unit: str,
    law: str,
    source: str,
    needs: str = "",
    per_token: str = "",
    tested: bool = True,
) -> Callable[[Values], ItemCheck]:
    """Decorator: make a function of the evidence the check called `name`."""

    def keep(values: Values) -> ItemCheck:
        check = ItemCheck(name, unit, law, source, values, needs, per_token, tested)
        return registry.register(name)(check)

    return keep


def chosen(checks: Iterable[str | ItemCheck] | None = None) -> tuple[ItemCheck, ...]:
    """The named or given checks; all registered ones by default.

    Raises:
        MethodError: an unknown name, or two checks of one name.
    """
    wanted = registry.names() if checks is None else tuple(checks)
    found = tuple(registry[c] if isinstance(c, str) else c for c in wanted)
    names = [c.name for c in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise MethodError(f"two checks are called '{twice[0]}'; give each a name of its own")
    return tuple(sorted(found, key=lambda c: (c.name not in _ORDER, _rank(c.name), c.name)))


_ORDER = ("refusal", "compliance", "correct", "kl", "perplexity", "degeneration", "projection")


def _rank(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else 0
