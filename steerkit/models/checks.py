"""What is asked of a model, checked: sites, slots of a table, prompts, interventions."""

from collections.abc import Sequence
from typing import get_args

import torch

from steerkit.batch import Batch
from steerkit.errors import DirectionError, InterventionError, PromptError, SiteError
from steerkit.program import Program
from steerkit.prompts import Prompt
from steerkit.protocols import Intervention, Logits, ModelInfo
from steerkit.registry import suggest
from steerkit.site import STREAMS, Site

_LOGITS: tuple[str, ...] = get_args(Logits)


def check_logits(logits: str) -> None:
    """Complain about a name that no choice of logits has.

    Raises:
        InterventionError: with the names that there are.
    """
    if logits not in _LOGITS:
        raise InterventionError(f"no logits named '{logits}'; {suggest(str(logits), _LOGITS)}")


def check_site(site: Site, info: ModelInfo) -> None:
    """Refuse a layer or stream that the model lacks."""
    if site.layer >= info.n_layers:
        raise SiteError(
            f"no {site}: {info.name} has layers 0..{info.n_layers - 1}; "
            f"the last is {Site(info.n_layers - 1, site.stream)}"
        )
    if site.stream not in info.streams:
        missing = ", ".join(s for s in STREAMS if s not in info.streams)
        why = (
            "its blocks run attention and MLP in parallel, so there is no stream between them"
            if missing == "resid_mid"
            else f"its blocks do not expose {missing}"
        )
        raise SiteError(f"no {site}: {info.name} has {', '.join(info.streams)}; {why}")


def batch_on(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    if batch.tokens.device == device:
        return batch
    return Batch(
        batch.tokens.to(device),
        batch.mask.to(device),
        batch.prompt_len.to(device),
        batch.rows.to(device),
    )


def listed(prompts: Sequence[Prompt | str]) -> Sequence[Prompt | str]:
    """Prompts as a list, and not a single one."""
    if isinstance(prompts, str | Prompt):
        raise PromptError("give a list of prompts, not a single one: [prompt]")
    if not prompts:
        raise PromptError("no prompts were given; give at least one")
    return prompts


def checked_sites(sites: Sequence[Site | str | int], info: ModelInfo) -> tuple[Site, ...]:
    """Sites that the model has, each once."""
    found = tuple(Site.parse(site) for site in sites)
    for site in found:
        check_site(site, info)
    if len(set(found)) != len(found):
        raise SiteError(f"a site is asked for twice: {', '.join(map(str, found))}")
    return found


def lowered(
    interventions: Sequence[Intervention], info: ModelInfo, *, force: bool
) -> dict[Site, Program]:
    """The program of each site, after checking that they belong to this model."""
    for intervention in interventions:
        if not isinstance(intervention, Intervention):
            raise InterventionError(
                f"with_ takes interventions, got a {type(intervention).__name__}; "
                "wrap a direction in Add, Ablate or Clamp"
            )
        _check_origin(intervention, info, force)
        for site in intervention.sites:
            check_site(site, info)
    sites = sorted({site for i in interventions for site in i.sites})
    lowered = {
        site: Program.parallel([i.lower(site) for i in interventions if site in i.sites])
        for site in sites
    }
    widths = {group.d_model for program in lowered.values() for group in program.groups}
    if widths - {info.d_model}:
        raise InterventionError(
            f"an intervention has vectors of width {min(widths - {info.d_model})}; "
            f"{info.name} has {info.d_model}. Was it made for this model?"
        )
    return lowered


def _check_origin(intervention: Intervention, info: ModelInfo, force: bool) -> None:
    for direction in getattr(intervention, "directions", ()):
        direction.check(info, force=force)
    taken = intervention.fingerprint
    if taken is not None and taken != info.fingerprint and not force:
        raise DirectionError(
            f"this direction was taken on another model ({taken[:12]}), not on "
            f"{info.name} ({info.fingerprint[:12]}); extract it again there, or "
            "pass force=True to study transfer"
        )
