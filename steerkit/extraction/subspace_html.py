"""Subspaces as HTML in Jupyter: what they are, what they score beside chance, their axes."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerkit.extraction.subspace import Subspace

FONT = "font-family:system-ui,-apple-system,sans-serif;font-size:13px;line-height:1.45"
CELL = "padding:2px 14px 2px 0;background:transparent;text-align:left;vertical-align:top"
TABLE = "border-collapse:collapse;background:transparent;color:inherit"
LONGEST = 80
"""Characters of a prompt that are shown."""


def subspace_card(s: "Subspace") -> str:
    """One subspace: scores beside their nulls, then every axis with its class means."""
    head = (
        f"<div style='font-size:17px;font-weight:600'>{escape(s.concept)}, k = {s.k}</div>"
        f"<div style='opacity:.68'><b>{escape(s.method)}</b> · <code>{escape(str(s.site))}</code> "
        f"· read at {escape(s.pooling)} · {escape(s.model.name)}</div>"
    )
    axes = _table(
        ("axis", "scale", "positive mean", "negative mean", "projects highest", "lowest"),
        (
            (
                str(number),
                f"{axis.scale:.3g}",
                f"{axis.positive_mean:.3g}",
                f"{axis.negative_mean:.3g}",
                *(_short(side[0][0]) if side else "" for side in axis.examples),
            )
            for number, axis in enumerate(s)
        ),
    )
    return (
        f"<div style='{FONT};max-width:860px;display:grid;gap:10px;overflow-x:auto'>"
        f"{head}{_scores(s)}{axes}</div>"
    )


def subspaces_table(items: Sequence["Subspace"]) -> str:
    """A row a site."""
    names = ("site", "method", "k", "held-out AUC", "p", "p, all tried", "random, 95%", "words")
    rows = []
    for s in items:
        found = s.scores
        told = ("not scored", "", "", "", "")
        if found:
            told = (
                str(found.auc),
                f"{found.permutation.p:.2g}",
                f"{found.family.p:.2g}" if found.family else "",
                f"{found.random.q95:.3f}",
                f"{found.text.value:.2f}" if found.text else "",
            )
        rows.append((str(s.site), s.method, str(s.k), *told))
    return f"<div style='{FONT};overflow-x:auto'>{_table(names, rows)}</div>"


def _scores(s: "Subspace") -> str:
    if not s.scores:
        return "<div style='opacity:.68'>never scored</div>"
    found = s.scores
    rows = [("probe inside, held-out AUC", str(found.auc), "")]
    if len(s.tried) > 1:
        each = ", ".join(f"k {k}: {auc.value:.3f}" for k, auc in sorted(s.tried.items()))
        rows.append(("k was chosen by it", each, ""))
    if found.text:
        rows.append(("words alone", str(found.text), ""))
    for n in (found.permutation, found.family, found.random, found.shaped):
        if n is not None and n.n:
            rows.append((n.name, f"{n.q95:.3f} (95th percentile of {n.n})", f"p {n.p:.2g}"))
    return _table(("", "", ""), rows)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        inside = "".join(f"<{tag} style='{CELL}'>{escape(cell)}</{tag}>" for cell in cells)
        return f"<tr style='background:transparent'>{inside}</tr>"

    top = line("th", names) if any(names) else ""
    body = "".join(line("td", row) for row in rows)
    return f"<table style='{TABLE}'>{top}{body}</table>"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
