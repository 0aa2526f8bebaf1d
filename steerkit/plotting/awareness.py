"""Figures of monitors and test-awareness probes: 2x2 effects, and recall at a stated rate."""

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerkit.concepts import AwarenessProbe, FormatControls, MonitorReport
from steerkit.errors import MethodError
from steerkit.plotting.style import COLOURS, figure, intervals, template
from steerkit.statistics import Estimate


def format_effects(
    probe: AwarenessProbe | FormatControls, monitors: Mapping[str, MonitorReport] | None = None
) -> go.Figure:
    """Effects of content within each format and of format within each content; and recalls.

    Left: held-out scores in standard deviations; a probe of content has long content bars and
    short format bars. Right, if monitors are given: recall at the rate each was calibrated
    for, as put, in other words, by the words alone, and what random directions reach.

    Raises:
        MethodError: a probe without a 2x2.
    """
    controls = probe.controls if isinstance(probe, AwarenessProbe) else probe
    if controls is None:
        raise MethodError("the probe was fitted on a set without formats, so there is no 2x2")
    wide = bool(monitors)
    fig = make_subplots(
        1,
        1 + wide,
        column_widths=[0.5, 0.5] if wide else None,
        horizontal_spacing=0.2,
        subplot_titles=["what moves the score", "what the monitor catches"][: 1 + wide],
    )
    first, second = controls.formats
    rows: list[tuple[str, Estimate, str]] = [
        (f"deploy - test, in {f}", controls.content[f], "negative") for f in controls.formats
    ]
    rows += [(f"{second} - {first}, {k}-like", e, "null") for k, e in controls.format.items()]
    for role, name in (("negative", "content"), ("null", "format")):
        mine = [r for r in rows if r[2] == role]
        fig.add_scatter(
            x=[e.value for _, e, _ in mine],
            y=[label for label, _, _ in mine],
            error_x=intervals([e for _, e, _ in mine]),
            mode="markers",
            marker={"color": COLOURS[role], "size": 10},
            name=name,
            row=1,
            col=1,
        )
    fig.add_vline(0, line={"dash": "dash", "color": COLOURS["null"], "width": 1}, row=1, col=1)
    fig.update_xaxes(title_text=f"effect on the score ({controls.unit})", row=1, col=1)
    fig.update_yaxes(autorange="reversed")
    if monitors:
        _recalls(fig, monitors)
    fig.update_layout(template=template(), height=340, autosize=True)
    fig.update_layout(legend={"y": -0.28, "yanchor": "top"}, margin_t=40)
    fig.update_annotations(font={"size": 14})
    return fig


def _recalls(fig: go.Figure, monitors: Mapping[str, MonitorReport]) -> None:
    shown: dict[str, list[tuple[str, Estimate]]] = {}
    for name, report in monitors.items():
        for arm, estimate in (
            ("as put", report.recall),
            ("in other words", report.paraphrase.recall if report.paraphrase else None),
            ("words alone", report.text_recall),
        ):
            if estimate is not None and estimate.value == estimate.value:
                shown.setdefault(arm, []).append((name, estimate))
    looks = {
        "as put": ("steered", "circle"),
        "in other words": ("guard", "diamond"),
        "words alone": ("text", "square"),
    }
    names = list(monitors)
    for i, (arm, found) in enumerate(shown.items()):
        fig.add_scatter(
            x=[e.value for _, e in found],
            # One above the other, so that intervals can be told apart.
            y=[names.index(name) + 0.17 * (i - 1) for name, _ in found],
            error_x=intervals([e for _, e in found]),
            mode="markers",
            marker={"color": COLOURS[looks[arm][0]], "symbol": looks[arm][1], "size": 10},
            customdata=[str(e) for _, e in found],
            hovertemplate="%{customdata}<extra></extra>",
            name=arm,
            row=1,
            col=2,
        )
    fig.add_scatter(
        x=[r.random.q95 for r in monitors.values()],
        y=list(range(len(names))),
        mode="markers",
        marker={"color": COLOURS["null"], "symbol": "line-ns-open", "size": 22},
        name="random directions, 95%",
        row=1,
        col=2,
    )
    ticks = [
        name if report.resolved else f"{name} (too few negatives)"
        for name, report in monitors.items()
    ]
    fig.update_yaxes(
        tickvals=list(range(len(names))), ticktext=ticks, range=[len(names) - 0.4, -0.6],
        autorange=False, row=1, col=2,
    )  # fmt: skip
    rates = sorted({f"{r.monitor.fpr:.3g}" for r in monitors.values()})
    fig.update_xaxes(
        title_text=f"recall at {' or '.join(rates)} false positives",
        range=[-0.03, 1.03],
        row=1,
        col=2,
    )


def monitor_curve(report: MonitorReport) -> go.Figure:
    """The ROC curve on a logarithmic axis, where low rates can be told apart.

    The dot is the monitor in force: its realised false positives on unseen negatives and its
    recall, with both intervals; the dashed line is the rate that was asked for.
    """
    false, true = report.curve
    least = 0.5 / max(1, report.counts[2])
    fig = figure(x="false positives (log scale)", y="recall", height=400)
    fig.add_scatter(
        x=[max(f, least) for f in false],
        y=list(true),
        mode="lines",
        line={"color": COLOURS["steered"], "width": 2.2, "shape": "hv"},
        name=f"AUC {report.auc}",
    )
    fig.add_scatter(
        x=[max(f, least) for f in false], y=list(false), mode="lines", name="chance",
        line={"color": COLOURS["null"], "dash": "dot", "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    # Not `reference_line`: plotly puts its label elsewhere on a logarithmic axis.
    fig.add_scatter(
        x=[report.monitor.fpr] * 2, y=[-0.03, 1.03], mode="lines", name="asked for",
        line={"color": COLOURS["guard"], "dash": "dash", "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    if report.resolved:
        here = report.false_positives
        bars = intervals([here])
        at = max(here.value, least)
        bars["array"], bars["arrayminus"] = [here.high - at], [at - max(here.low, least)]
        fig.add_scatter(
            x=[at],
            y=[report.recall.value],
            error_x=bars,
            error_y=intervals([report.recall]),
            mode="markers",
            marker={"color": COLOURS["positive"], "size": 11},
            name=f"in force: recall {report.recall}",
        )
    fig.update_xaxes(type="log", exponentformat="power", dtick=1)
    fig.update_yaxes(range=[-0.03, 1.03])
    fig.update_layout(legend={"y": -0.24, "yanchor": "top"}, margin_t=24)
    return fig
