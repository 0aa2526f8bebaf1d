"""Figures of red-team measurements: attack success, and what a detector sees of it."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from steerkit.errors import MethodError
from steerkit.plotting.style import (
    COLOURS,
    CSS,
    PALETTE,
    SEQUENTIAL,
    figure,
    intervals,
    reference_line,
    script,
    to_div,
)
from steerkit.redteam import ActivationAttack, DetectionPower, PowerRow
from steerkit.redteam.result import fragment
from steerkit.statistics import Estimate

_LOOKS = {"paired": "solid", "unseen": "dot"}
_SHADES = {"random": "rgba(154,154,154,0.30)", "shuffled": "rgba(230,159,0,0.22)"}


def attack_success(attack: ActivationAttack) -> go.Figure:
    """Success against strength with its intervals, beside the range of both kinds of null.

    Bands run from the lowest to the highest of the null vectors. Success without answers that
    begin as wanted, or with broken ones, is breakage rather than attack. The star is the strength
    that was chosen on other prompts.
    """
    fig = figure(
        x=f"strength c (multiples of the vector at {attack.site})",
        y=f"share of prompts ({attack.judged_by})",
        height=430,
    )
    x = [row.strength for row in attack.rows]
    for kind, name in (
        ("random", "random vectors"),
        ("shuffled", "vectors of exchanged labels"),
    ):
        draws = np.array([row.draws[kind] for row in attack.rows])
        if not draws.size:
            continue
        band = {"mode": "lines", "hoverinfo": "skip", "legendgroup": kind, "line_width": 0}
        fig.add_scatter(x=x, y=draws.max(1), showlegend=False, **band)
        fig.add_scatter(
            x=x,
            y=draws.min(1),
            fill="tonexty",
            fillcolor=_SHADES[kind],
            name=f"range of {draws.shape[1]} {name}, equal norm",
            **band,
        )
    _line(fig, x, [r.success for r in attack.rows], "attack succeeds", COLOURS["steered"])
    for field, name, colour in (
        ("wanted", "answer begins as wanted", COLOURS["prompted"]),
        ("broken", "answer empty or looping", COLOURS["guard"]),
    ):
        found = [getattr(row, field) for row in attack.rows]
        if all(found):
            _line(fig, x, found, name, colour, dash="dot")
    chosen = attack.best
    fig.add_scatter(
        x=[chosen.strength],
        y=[chosen.success.value],
        mode="markers",
        name="strength chosen on other prompts",
        marker={"symbol": "star", "size": 15, "color": COLOURS["steered"]},
        hoverinfo="skip",
    )
    fig.update_yaxes(range=[-0.04, 1.06])
    # Negative strengths drive towards the adversarial answer: stronger to the right.
    if min(x) < 0:
        fig.update_xaxes(autorange="reversed")
    fig.update_layout(legend={"y": -0.24, "yanchor": "top"}, margin_t=32)
    return reference_line(fig, attack.clean.value, "clean model", role="plain")


def detection_curve(power: DetectionPower) -> go.Figure:
    """AUC against the size of the change, for every attack under both looks.

    Solid: known prompts against their recorded states; dotted: prompts the detector never saw.
    Equal sizes compare across attacks. Chance is 0.5.
    """
    fig = figure(
        x="size of the change, mean |delta h| over mean |h| (log scale)", y="AUC", height=430
    )
    for i, attack in enumerate(power.attacks):
        for mode in power.places:
            rows = [r for r in power.of(attack, mode) if r.attack == attack and r.size > 0]
            _line(
                fig,
                [r.size for r in rows],
                [r.auc for r in rows],
                f"{attack}, {mode}",
                PALETTE[i % len(PALETTE)],
                dash=_LOOKS.get(mode, "dash"),
            )
    fig.update_xaxes(type="log", exponentformat="power", dtick=1)
    fig.update_yaxes(range=[0.45, 1.03])
    fig.update_layout(legend={"y": -0.24, "yanchor": "top"}, margin_t=24)
    return reference_line(fig, 0.5, "chance")


def roc_curves(power: DetectionPower, attack: str, *, mode: str = "unseen") -> go.Figure:
    """The ROC curve of one attack by strength, darker for weaker ones.

    Strengths below the last that is at chance, and above the first that is perfect, are left
    out: they lie on the same lines.

    Raises:
        MethodError: an attack or a look that was not measured.
    """
    rows = _rows(power, attack, mode)
    fig = figure(x="false positives", y="true positives", height=430)
    live = _telling([r for r in rows if r.strength])
    # Not to the end of the scale, whose yellow is lost on a light page.
    shades = sample_colorscale(SEQUENTIAL, np.linspace(0, 0.85, len(live)).tolist())
    for row, shade in zip(live, shades, strict=True):
        false, true = row.curve
        fig.add_scatter(
            x=false,
            y=true,
            mode="lines",
            line={"color": shade, "width": 2.2, "shape": "linear"},
            name=f"{attack} x{row.strength:g}: AUC {row.auc.value:.3f}",
        )
    fig.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", hoverinfo="skip", name="chance",
        line={"color": COLOURS["null"], "dash": "dash", "width": 1.5},
    )  # fmt: skip
    fig.update_xaxes(range=[-0.02, 1.02])
    fig.update_yaxes(range=[-0.02, 1.03])
    fig.update_layout(legend={"y": -0.2, "yanchor": "top"}, margin_t=24)
    return fig


def detection_by_layer(power: DetectionPower, attack: str, *, mode: str = "unseen") -> go.Figure:
    """AUC at every place and strength: where the attack first shows says where it acts.

    The circles mark the first place where most prompts are above the threshold.

    Raises:
        MethodError: an attack or a look that was not measured.
    """
    rows = _rows(power, attack, mode)
    places = list(power.places[mode])
    columns = [f"{r.strength:g}" for r in rows]
    fig = figure(x=f"strength of {attack}", height=240 + 24 * len(places))
    fig.add_heatmap(
        x=columns,
        y=places,
        z=[[r.places[i] for r in rows] for i in range(len(places))],
        zmin=0.5,
        zmax=1.0,
        colorscale=SEQUENTIAL,
        colorbar={
            "title": {"text": "AUC"},
            "thickness": 14,
            "lenmode": "pixels",
            "len": 150,
            "y": 1,
            "yanchor": "top",
        },
        hovertemplate="%{y}, strength %{x}: AUC %{z:.3f}<extra></extra>",
        xgap=2,
        ygap=2,
    )
    seen = [(c, r.first) for c, r in zip(columns, rows, strict=True) if r.first]
    if seen:
        fig.add_scatter(
            x=[c for c, _ in seen],
            y=[p for _, p in seen],
            mode="markers",
            name="first place where most prompts are flagged",
            marker={
                "symbol": "circle-open",
                "size": 13,
                "color": COLOURS["steered"],
                "line": {"width": 2.5},
            },
            hoverinfo="skip",
        )
    fig.update_xaxes(type="category", showgrid=False)
    fig.update_yaxes(showgrid=False)
    fig.update_layout(margin_t=40, showlegend=bool(seen))
    return fig


def page(title: str, text: str, table: str, figures: Mapping[str, go.Figure]) -> str:
    """One self-contained page: the summary, the figures, the table; no link to anywhere.

    Args:
        title: heading.
        text: plain text, a paragraph a line; escaped.
        table: markup made by steerkit itself.
        figures: heading -> figure.
    """
    said = "".join(f"<p>{html.escape(line)}</p>" for line in text.split("\n"))
    drawn = "".join(
        f"<h2>{html.escape(name)}</h2>{to_div(fig, div_id=f'figure{i}')}"
        for i, (name, fig) in enumerate(figures.items())
    )
    name = html.escape(title)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{name}</title><style>{CSS}{_PAGE}</style><script>{script()}</script></head>"
        f"<body><h1>{name}</h1>{said}{drawn}<h2>Numbers</h2>{table}</body></html>"
    )


_PAGE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 24px auto;
  padding: 0 16px; }
h1 { font-size: 22px; } h2 { font-size: 17px; margin-top: 28px; }
table { border-collapse: collapse; font-size: 13px; } .table { overflow-x: auto; }
th { font-weight: 600; } td, th { border-bottom: 1px solid rgba(128,128,128,.3); }
"""


def attack_page(attack: ActivationAttack) -> str:
    """An attack's page."""
    head, rows = attack.cells()
    return page(
        f"Activation attack: {attack.target}",
        attack.summary(),
        fragment("", head, rows),
        {"Success against strength": attack_success(attack)},
    )


def detection_page(power: DetectionPower) -> str:
    """A detector's page: AUC against size, and for each attack its ROC curves and places."""
    figures = {"AUC against the size of the change": detection_curve(power)}
    for attack in power.attacks:
        figures[f"{attack}: ROC on prompts never seen"] = roc_curves(power, attack)
        figures[f"{attack}: where it shows"] = detection_by_layer(power, attack)
    return page(
        "What a detector of steering sees",
        power.summary(),
        fragment("", *power.cells()),
        figures,
    )


def _rows(power: DetectionPower, attack: str, mode: str) -> tuple[PowerRow, ...]:
    if attack not in power.attacks or mode not in power.places:
        raise MethodError(
            f"no '{attack}' under '{mode}' was measured; there are the attacks "
            f"{', '.join(power.attacks)} and the looks {', '.join(power.places)}"
        )
    return power.of(attack, mode)


def _telling(rows: Sequence[PowerRow]) -> Sequence[PowerRow]:
    """From the last row at chance to the first perfect one, where there are such."""
    chance = [i for i, r in enumerate(rows) if r.auc.low <= 0.5]
    perfect = [i for i, r in enumerate(rows) if r.auc.value == 1]
    start = chance[-1] if chance else 0
    stop = next((i + 1 for i in perfect if i >= start), len(rows))
    return rows[start:stop]


def _line(
    fig: go.Figure,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    name: str,
    colour: str,
    *,
    dash: str = "solid",
) -> None:
    fig.add_scatter(
        x=list(x),
        y=[e.value for e in estimates],
        error_y=intervals(estimates),
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 2.2, "dash": dash},
        marker={"size": 7},
        customdata=[str(e) for e in estimates],
        hovertemplate=f"{name}, %{{x:.3g}}: %{{customdata}}<extra></extra>",
    )
