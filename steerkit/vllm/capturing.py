"""What a request may ask to be captured, and which tokens of it that is.

    {"name": "run-17", "sites": ["resid_post@12"], "positions": "prompt"}

`positions` are a rule or indices as everywhere (`all`, `prompt`, `last_prompt`, `generated`,
`[0, -1]`); `"pool": "mean"` keeps one mean over the prompt instead of its tokens; `before`
reads the stream before this request's own steering at each site; `logits` keeps the model's own
logits of the same tokens too, and then `sites` may be left out. What is captured lies in a file
(`steerkit.vllm.captured`); `"inline": true` sends a few tokens back with the answer instead, in
its `kv_transfer_params["steerkit"][name]`, in Python and over HTTP.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from steerkit.batch import Positions
from steerkit.errors import InterventionError
from steerkit.models.checks import checked_sites
from steerkit.protocols import ModelInfo
from steerkit.registry import suggest
from steerkit.site import Site

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
_FIELDS = ("name", "sites", "positions", "pool", "before", "logits", "inline")
INLINE = 16
"""Tokens that may come back with an answer."""


@dataclass(frozen=True)
class Capture:
    """One capture of one request.

    Attributes:
        name: under which it is found afterwards; no two are called alike.
        sites: whose streams are kept, in forward order.
        positions: a rule, or indices.
        pool: `mean` for one mean over the prompt's tokens; empty for the tokens themselves.
        before: read streams before the request's steering at each site.
        logits: keep the model's logits too.
        inline: send it back with the answer.
    """

    name: str
    sites: tuple[str, ...] = ()
    positions: str | tuple[int, ...] = "all"
    pool: str = ""
    before: bool = False
    logits: bool = False
    inline: bool = False

    @classmethod
    def read(cls, value: Any, info: ModelInfo) -> "Capture":
        """What a request asks for, checked against its model.

        Raises:
            InterventionError: something else than the module says.
            SiteError: a site that the model lacks, or that lies inside a layer.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise InterventionError(
                "a capture is a dictionary with a 'name' and 'sites', such as "
                f"{{'name': 'run-17', 'sites': ['resid_post@12']}}; got {str(value)[:120]}"
            )
        for field in value:
            if field not in _FIELDS:
                raise InterventionError(
                    f"a capture has no field '{field}'; {suggest(str(field), _FIELDS)}"
                )
        if not _NAME.fullmatch(value["name"]):
            raise InterventionError(
                "a capture's name is made of letters, digits, '.', '_' and '-'; got "
                f"'{value['name'][:80]}'"
            )
        sites = value.get("sites", ())
        given = [sites] if isinstance(sites, str | int) else list(sites)
        found = sorted(checked_sites(given, info))
        logits, pool = bool(value.get("logits", False)), value.get("pool") or ""
        if not found and not logits:
            raise InterventionError(
                f"capture '{value['name']}' names no sites and no logits: nothing would be kept"
            )
        if pool not in ("", "mean"):
            raise InterventionError(f"a capture's pool is 'mean' or left out; got '{pool}'")
        rule = Positions.of(value.get("positions", "prompt" if pool else "all"))
        if rule.rule == "mask":
            raise InterventionError("positions of a capture are a rule or indices, not a mask")
        if pool and (rule.rule != "prompt" or logits or not found):
            raise InterventionError(
                "a mean is taken of streams over the tokens of the prompt: leave positions out "
                "or give 'prompt', name sites, and ask for logits in a capture of their own"
            )
        inline = bool(value.get("inline", False))
        few = pool or rule.rule == "last_prompt" or 0 < len(rule.indices) <= INLINE
        if inline and (logits or not few):
            raise InterventionError(
                f"only means, the last token of a prompt and at most {INLINE} indices come back "
                "with an answer, without logits; leave 'inline' out and read the file"
            )
        return cls(
            name=value["name"],
            sites=tuple(str(site) for site in found),
            positions=rule.indices if rule.rule == "indices" else rule.rule,
            pool=pool,
            before=bool(value.get("before", False)),
            logits=logits,
            inline=inline,
        )

    @property
    def where(self) -> tuple[Site, ...]:
        """The sites."""
        return tuple(Site.parse(site) for site in self.sites)

    @property
    def rule(self) -> Positions:
        """The positions."""
        given = self.positions
        return Positions.of(given if isinstance(given, str) else list(given))

    def first(self, prompt_len: int) -> int:
        """The first position that it may take: all before it may come out of a cache."""
        rule = self.rule
        if rule.rule == "indices":
            return min(i if i >= 0 else prompt_len + i for i in rule.indices)
        return {"last_prompt": prompt_len - 1, "generated": prompt_len}.get(rule.rule, 0)

    def taken(self, first: int, end: int, prompt_len: int) -> list[int]:
        """Those of the positions `first` to `end - 1` that are to be kept."""
        absolute = torch.arange(first, end)[None]
        zero = torch.zeros(1, dtype=torch.long)
        chosen = self.rule.select(absolute, torch.tensor([prompt_len]), zero)
        found: list[int] = absolute[chosen].tolist()
        return found

    def to_wire(self) -> dict[str, Any]:
        """Plain values that processes can send each other."""
        return asdict(self)

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> "Capture":
        """The inverse of `to_wire`; lists are what tuples become on the way."""
        tupled: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return cls(**tupled)
