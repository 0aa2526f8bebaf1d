"""Directions as HTML in Jupyter: strings with inline style, no script, light or dark.

Text inherits the page's colour and every surface is a transparent grey, so a card needs no
theme of its own. Everything that came from prompts or tokens is escaped.
"""

from collections.abc import Iterable, Sequence
from html import escape

from steerkit.direction import Direction, Directions, ProbeScores
from steerkit.effect import HeldOutEffect
from steerkit.statistics import Estimate, Null

SIGNAL, CHANCE, TEXT = "#D55E00", "#8A8A8A", "#E69F00"
"""Colours of the direction itself, of what chance gives, and of what words alone give."""

SURFACE = "rgba(128,128,128,.10)"
LINE = "rgba(128,128,128,.35)"
FONT = "font-family:system-ui,-apple-system,sans-serif;font-size:13px;line-height:1.45"
FAINT = "opacity:.68"
LONGEST = 160
"""Characters of a prompt that are shown."""


def direction_card(d: Direction) -> str:
    """One direction: what it is, how well it separates and against what, what it reads."""
    about = " · ".join(
        [
            f"<b>{escape(d.method)}</b>",
            f"<code>{escape(str(d.site))}</code>",
            f"read at {escape(d.pooling)}",
            escape(d.model.name),
        ]
    )
    head = (
        f"<div style='font-size:17px;font-weight:600'>{escape(d.concept)}</div>"
        f"<div style='{FAINT};overflow-wrap:anywhere'>{about}</div>"
    )
    parts = [head, _facts(d)]
    if d.scores or not d.effects:
        parts.append(_scores(d.scores) if d.scores else _note("never scored"))
    parts += [_effect(e) for e in d.effects]
    if any(d.tokens):
        parts.append(
            _columns(
                _block("unembedding reads towards", _chips(d.tokens[0], SIGNAL)),
                _block("and away from", _chips(d.tokens[1], CHANCE)),
            )
        )
    if any(d.examples):
        parts.append(
            _columns(
                _block("project highest", _prompts(d.examples[0])),
                _block("project lowest", _prompts(d.examples[1])),
            )
        )
    return (
        f"<div style='{FONT};max-width:760px;border:1px solid {LINE};border-radius:8px;"
        f"padding:14px 16px;display:grid;gap:12px;box-sizing:border-box'>{''.join(parts)}</div>"
    )


def directions_table(directions: Directions) -> str:
    """A table by site and method; the highest held-out AUC stands out."""
    if not directions.items:
        return f"<div style='{FONT}'>no directions</div>"
    best = directions.best if all(d.scores for d in directions) else None
    rows = "".join(_row(d, d is best) for d in directions)
    names = (
        ("site", "left"),
        ("method", "left"),
        ("held-out AUC" if any(d.scores for d in directions) else "held out", "left"),
        ("", "left"),
        ("p", "right"),
        ("p, all tried", "right"),
        ("words alone", "right"),
        ("scale", "right"),
        ("sign", "left"),
    )
    head = "".join(
        f"<th style='text-align:{side};{_CELL};font-weight:600'>{name}</th>" for name, side in names
    )
    first = directions[0]
    concepts = ", ".join(dict.fromkeys(d.concept for d in directions))
    return (
        f"<div style='{FONT};overflow-x:auto'><div style='margin-bottom:6px'>"
        f"<b>{escape(concepts)}</b> <span style='{FAINT}'>· {len(directions)} directions · "
        f"{escape(first.model.name)} · read at {escape(first.pooling)}</span></div>"
        f"<table style='border-collapse:collapse;background:transparent;color:inherit'>"
        f"<thead><tr style='border-bottom:1px solid {LINE}'>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


_CELL = "padding:3px 12px 3px 0;white-space:nowrap;background:transparent"


def _row(d: Direction, best: bool) -> str:
    s = d.scores
    cells = [(f"<code>{escape(str(d.site))}</code>", "left"), (escape(d.method), "left")]
    if s:
        bar = f"<div style='width:130px'>{_track(s.auc.value, s.auc, SIGNAL)}</div>"
        cells += [
            (_estimate(s.auc), "left"),
            (bar, "left"),
            (_p(s.permutation), "right"),
            (_p(s.family) if s.family else "", "right"),
            (f"{s.text.value:.2f}" if s.text else "", "right"),
        ]
    elif d.effects:
        e = d.effects[0]
        told = f"{e.effect} <span style='{FAINT}'>{escape(e.effect.unit)}</span>"
        cells += [(told, "left"), ("", "left"), (f"{e.p:.2g}", "right"), *[("", "left")] * 2]
    else:
        cells += [("not scored", "left"), *[("", "left")] * 4]
    sign = {1: "held", -1: "<b>flipped</b>", 0: "unchecked"}[d.polarity]
    cells += [(f"{d.scale:.3g}", "right"), (sign, "left")]
    shade = f"background:{SURFACE};font-weight:600" if best else "background:transparent"
    return (
        f"<tr style='{shade}'>"
        + "".join(f"<td style='text-align:{side};{_CELL}'>{cell}</td>" for cell, side in cells)
        + "</tr>"
    )


def _facts(d: Direction) -> str:
    sign = {
        1: "held on unseen prompts",
        -1: "reversed on unseen prompts",
        0: "not checked on unseen prompts",
    }[d.polarity]
    facts = (
        ("scale", f"{d.scale:.3g}"),
        ("positive mean", f"{d.positive_mean:.3g}"),
        ("negative mean", f"{d.negative_mean:.3g}"),
        ("sign", sign),
    )
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:4px 22px'>"
        + "".join(
            f"<span><span style='{FAINT}'>{name}</span> <b>{value}</b></span>"
            for name, value in facts
        )
        + "</div>"
    )


def _scores(s: ProbeScores) -> str:
    rows = [_measure("held-out AUC", s.auc.value, s.auc, SIGNAL, _estimate(s.auc))]
    if s.text:
        rows.append(_measure("words alone", s.text.value, s.text, TEXT, _estimate(s.text)))
    nulls = (
        ("labels permuted", s.permutation),
        ("the same, all tried", s.family),
        ("random directions", s.random),
        ("random, data-shaped", s.shaped),
    )
    drawn = [(name, chance) for name, chance in nulls if chance is not None and chance.n]
    for name, chance in drawn:
        told = f"{chance.q95:.3f} <span style='{FAINT}'>p</span> {_p(chance)}"
        rows.append(_measure(name, chance.q95, None, CHANCE, told))
    foot = (
        f"<div style='{FAINT};font-size:12px;margin-top:6px'>Bars start at 0.5. Grey is "
        f"what chance gives: the 95th percentile of {drawn[0][1].n} draws.</div>"
        if drawn
        else ""
    )
    grid = (
        "display:grid;grid-template-columns:minmax(80px,auto) minmax(60px,1fr) auto;"
        "gap:5px 12px;align-items:center"
    )
    return f"<div><div style='{grid}'>{''.join(rows)}</div>{foot}</div>"


def _effect(e: HeldOutEffect) -> str:
    """What adding it did on held-out prompts, and what other vectors did in its place."""
    rows = [("effect", f"<b>{e.effect}</b> {escape(e.effect.unit)}")]
    rows += [(name, str(value)) for name, value in e.beside.items()]
    rows += [
        (f"{n.name}, 95%", f"{n.q95:.3g} <span style='{FAINT}'>p</span> {_p(n)}")
        for n in e.nulls
        if n.n
    ]
    lines = "".join(
        f"<span style='{FAINT}'>{escape(name)}</span><span>{value}</span>" for name, value in rows
    )
    grid = "display:grid;grid-template-columns:minmax(80px,auto) 1fr;gap:3px 12px"
    return _block(f"{escape(e.quantity)} on held-out prompts", f"<div style='{grid}'>{lines}</div>")


def _measure(name: str, value: float, interval: Estimate | None, colour: str, told: str) -> str:
    return (
        f"<span style='{FAINT}'>{name}</span>{_track(value, interval, colour)}<span>{told}</span>"
    )


def _track(value: float, interval: Estimate | None, colour: str) -> str:
    """A bar from 0.5 to an AUC on a track from 0 to 1, its 95% interval as a thin line."""
    if value != value:
        return "<span></span>"
    left, right = sorted((0.5, min(max(value, 0.0), 1.0)))
    marks = (
        f"<i style='position:absolute;left:{left:.1%};width:{right - left:.1%};top:2px;bottom:2px;"
        f"background:{colour};border-radius:2px'></i>"
        f"<i style='position:absolute;left:50%;top:-1px;bottom:-1px;width:1px;"
        f"background:currentColor;opacity:.55'></i>"
    )
    if interval is not None and interval.low == interval.low:
        marks += (
            f"<i style='position:absolute;left:{interval.low:.1%};top:5px;height:2px;"
            f"width:{max(interval.high - interval.low, 0):.1%};background:currentColor;"
            f"opacity:.75'></i>"
        )
    return (
        f"<span style='display:block;position:relative;height:12px;background:{SURFACE};"
        f"border-radius:3px'>{marks}</span>"
    )


def _estimate(e: Estimate) -> str:
    return f"{e.value:.3f} <span style='{FAINT}'>[{e.low:.3f}, {e.high:.3f}]</span>"


def _p(n: Null) -> str:
    return f"{n.p:.2g}" if n.n else ""


def _note(text: str) -> str:
    return f"<div style='{FAINT}'>{text}</div>"


def _columns(*blocks: str) -> str:
    return (
        "<div style='display:grid;gap:10px 18px;"
        f"grid-template-columns:repeat(auto-fit,minmax(min(240px,100%),1fr))'>{''.join(blocks)}</div>"
    )


def _block(title: str, body: str) -> str:
    return f"<div><div style='{FAINT};margin-bottom:4px'>{title}</div>{body}</div>"


def _chips(tokens: Iterable[str], colour: str) -> str:
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:4px'>"
        + "".join(
            f"<code style='border:1px solid {colour};border-radius:4px;padding:0 5px;"
            f"background:transparent;color:inherit'>{escape(_visible(token))}</code>"
            for token in tokens
        )
        + "</div>"
    )


def _visible(token: str) -> str:
    """A token with its white space made visible."""
    shown = token.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
    return shown or "∅"


def _prompts(examples: Sequence[tuple[str, float]]) -> str:
    def line(text: str, projection: float) -> str:
        short = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
        return (
            "<div style='display:flex;gap:8px;padding:2px 0'>"
            f"<span style='{FAINT};min-width:46px;text-align:right'>{projection:.3g}</span>"
            f"<span style='overflow-wrap:anywhere'>{escape(short)}</span></div>"
        )

    return "".join(line(text, projection) for text, projection in examples)
