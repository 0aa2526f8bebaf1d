"""Where answers leave another model's: along the answer and by kind of token."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerkit.comparisons.token_shift_result import TokenShift
from steerkit.plotting.style import COLOURS, intervals, template

CURVE, ROW, BETWEEN = 260, 30, 130
"""Heights in pixels: of the upper panel, of a kind of token, of titles and axes."""


def position_and_kind(found: TokenShift) -> go.Figure:
    """Rate of shifted tokens at each position of greedy answers, above the rate by kind of token.

    Bars are 95% intervals that resample the prompts' groups; the shaded part is the beginning of
    answers. One panel below the other, so that both read on a phone.
    """
    rates, kinds = found.by_position(), found.by_kind()
    below = ROW * (len(kinds) + 1)
    fig = make_subplots(
        rows=2,
        cols=1,
        row_heights=[CURVE, below],
        vertical_spacing=BETWEEN / (CURVE + below + 2 * BETWEEN),
        subplot_titles=("along the answer", "by kind of token (how many)"),
    )
    fig.add_scatter(
        x=list(range(1, len(rates) + 1)),
        y=[rate.value for rate in rates],
        error_y=intervals(rates),
        name="by position",
        mode="lines+markers",
        line={"color": COLOURS["steered"]},
        showlegend=False,
        row=1,
        col=1,
    )
    fig.add_vrect(
        x0=0.5,
        x1=found.first + 0.5,
        fillcolor=COLOURS["null"],
        opacity=0.12,
        line_width=0,
        row=1,
        col=1,
    )
    fig.add_scatter(
        y=[f"{name} ({n})" for name, (n, _) in kinds.items()],
        x=[rate.value for _, rate in kinds.values()],
        error_x=intervals([rate for _, rate in kinds.values()]),
        name="by kind",
        mode="markers",
        marker={"color": COLOURS["steered"], "size": 9},
        showlegend=False,
        row=2,
        col=1,
    )
    fig.update_layout(
        template=template(), height=CURVE + below + 2 * BETWEEN, autosize=True, margin={"t": 48}
    )
    shifted = "shifted (fraction of tokens)"
    fig.update_xaxes(title_text="token of the answer (count)", row=1, col=1)
    fig.update_yaxes(title_text=shifted, range=[-0.03, 1.03], row=1, col=1)
    fig.update_xaxes(title_text=shifted, range=[-0.03, 1.03], row=2, col=1)
    fig.update_yaxes(autorange="reversed", row=2, col=1)
    for title in fig.layout.annotations[:2]:
        title.update(font_size=13)
    return fig
