"""What came before the audit, as parts of its report: prompts, directions, search."""

from typing import TYPE_CHECKING

from steerkit.audits import Section
from steerkit.cards import direction_card
from steerkit.plotting import extraction, sweep

if TYPE_CHECKING:
    from steerkit.activations import Activations
    from steerkit.direction import Directions
    from steerkit.pipeline.parts import Parts
    from steerkit.searches import Sweep, SweepRow

MOST = 10
"""Rows of a table."""


def sections(
    parts: "Parts", activations: "Activations", directions: "Directions", found: "Sweep"
) -> tuple[Section, ...]:
    """The story of the job, in its order."""
    return (
        search_section(found),
        null_section(found),
        direction_section(directions, found),
        prompt_section(parts, activations),
    )


def search_section(found: "Sweep") -> Section:
    """Which candidate was chosen, and on what grounds."""
    best, final = found.best, found.final
    # As the search ranks them: of equal effects the least damage.
    ranked = found.ranked
    text = (
        f"{len(found.rows)} candidates were tried on prompts that no direction was fitted on. "
        f"Of those that keep the KL on guarded prompts below {found.guard_max:g} nats per token "
        f"the one with the largest effect was chosen: {best}. The figure compares the others at "
        "its strength."
    )
    if final:
        text += (
            f"\n\nOn prompts that the search did not see either, {found.objective} goes from "
            f"{final.plain} to {final.steered}, and on the other side of the contrast from "
            f"{final.other_plain} to {final.other_steered}."
        )
    text += f"\n\n{_reference_sentence(found)}"
    return Section(
        "Where it works",
        text.strip(),
        figure=sweep.by_layer(found),
        columns=("candidate", f"{found.objective} ({found.unit})", "KL (nats/token)", "guard"),
        rows=tuple(
            (
                str(r),
                str(r.value),
                str(r.guard) if r.guard else "not guarded",
                "met" if r.allowed else "broken",
            )
            for r in ranked[:MOST]
        ),
        data={"best": best.to_json(), "candidates": len(found.rows)},
    )


def null_section(found: "Sweep") -> Section:
    """Whether any direction would have done."""
    final = found.final
    nulls = final.nulls if final else ()
    tried = (*nulls, *((found.searched,) if found.searched else ()))
    text = (
        "Random directions act at the same place with the same operator, resized so that they "
        "change the stream as much as the chosen one does. Isotropic ones point anywhere; "
        "covariance-shaped ones point where the activations vary, which is the harder test: where "
        "the concept itself makes them vary, these are copies of it, and the orthogonal ones, "
        "which have nothing of the chosen direction, say what others do. Searches over random "
        "directions run through the whole search with nothing of any direction tried, so that "
        "the best of many tries is compared with the best of many tries."
    )
    return Section(
        "Against chance",
        text,
        figure=sweep.against_chance(found) if nulls else None,
        columns=("directions", "chosen", "mean", "95%", "largest", "p", "draws"),
        rows=tuple(
            (
                n.name,
                f"{n.observed:.3g}",
                f"{n.null.mean:.3g}",
                f"{n.null.q95:.3g}",
                f"{n.null.maximum:.3g}",
                f"{n.null.p:.3g}",
                str(n.null.n),
            )
            for n in tried
        ),
        data={"nulls": [n.to_json() for n in tried]},
    )


def direction_section(directions: "Directions", found: "Sweep") -> Section:
    """The chosen direction's card, and how every direction separates."""
    text = (
        f"{len(directions)} directions were fitted. The figure shows how well each separates "
        "held-out prompts; a good probe need not be a good handle, which is why the search and "
        "not this score decides. The card is the chosen direction's."
    )
    scored = any(d.scores for d in directions)
    return Section(
        "The directions",
        text,
        figure=extraction.auc_by_layer(directions) if scored else None,
        html=direction_card(found.best.direction),
    )


def prompt_section(parts: "Parts", activations: "Activations") -> Section:
    """Which prompts each step saw."""
    steps = (("fit", parts.fit), ("search", parts.search), ("audit", parts.audit))
    return Section(
        "The prompts",
        "No group (pair, template) stands in two steps.",
        columns=("step", "positive", "negative", "groups", "sha256"),
        rows=tuple(
            (
                name,
                str(len(c.positive)),
                str(len(c.negative)),
                str(len(set(c.groups))),
                c.sha256[:12],
            )
            for name, c in steps
        ),
        data={
            "sites": [str(site) for site in activations.sites],
            "pooling": activations.pooling,
            **{name: c.sha256 for name, c in steps},
        },
    )


def _reference_sentence(found: "Sweep") -> str:
    """Whether zero was neutral: what each reference point reached, where several were tried."""
    reached: dict[tuple[str, str], SweepRow] = {}
    for row in found.rows:
        if row.allowed and row.reference:
            best = reached.get((row.reference, row.positions))
            if best is None or row.merit > best.merit:
                reached[row.reference, row.positions] = row
    if len(reached) < 2:
        return ""
    words = [
        f"to {reference} at {positions}: {found.objective} {row.value.value:.2f}"
        + (f" at a KL of {row.guard.value:.2g}" if row.guard else "")
        for (reference, positions), row in reached.items()
    ]
    return (
        "The reference point and the position rule belong to the method. The best that each "
        f"reached within the guard: {'; '.join(words)}."
    )
