"""`steerkit patch`: a map of where a paired contrast makes its difference."""

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say, stack, table
from steerkit.commands.outputs import staged

if TYPE_CHECKING:
    from steerkit.lenses import PatchingMap

FILES = ("map.json", "map.html")
METHODS = ("activation", "attribution")


def command(
    contrast: o.ContrastFile,
    model: o.Model,
    method: Annotated[
        str,
        typer.Option(help="activation (one run a cell), or attribution (its first-order guess)."),
    ] = "activation",
    streams: Annotated[
        str,
        typer.Option(
            help="Streams, comma-separated: resid_pre, attn_out, resid_mid, mlp_out, resid_post, "
            "and heads. Default: resid_post, attn_out and mlp_out."
        ),
    ] = "",
    layers: o.Layers = "",
    positions: Annotated[
        str,
        typer.Option(
            help="each (token by itself), whole (all at once), or numbers from the end: -2,-1."
        ),
    ] = "each",
    metric: Annotated[
        str, typer.Option(help="logit_difference of two answers, or log_prob of the clean one.")
    ] = "logit_difference",
    towards: Annotated[
        str,
        typer.Option(
            help="The clean answer; its first token counts. Default: the prompts' own answers, "
            "else what each side's run predicts."
        ),
    ] = "",
    away: Annotated[str, typer.Option(help="The corrupted answer.")] = "",
    align: Annotated[
        str,
        typer.Option(
            help="equal: both sides of a pair have as many tokens; end: count from the end."
        ),
    ] = "equal",
    limit: Annotated[int, typer.Option(help="At most this many pairs; 0 takes all.", min=0)] = 0,
    template: o.Template = "auto",
    out: o.Out = Path(),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Map where the two sides of a paired contrast part: patch one state at a time.

    The negative prompts are run with one state of the positive prompts at a time, over layer,
    stream and position; 0 is the negative run, 1 the positive one. The largest cell is chosen
    on half of the pairs and measured on the rest.

    \b
    Examples:
      steerkit patch -m MODEL -c pairs.jsonl
      steerkit patch -m MODEL -c pairs.jsonl --streams heads --positions whole
      steerkit patch -m MODEL -c pairs.jsonl --towards yes --away no --method attribution
    """
    from steerkit.errors import MethodError
    from steerkit.files import write_text
    from steerkit.lenses import activation_patching, attribution_patching
    from steerkit.registry import suggest

    if method not in METHODS:
        raise MethodError(f"no method named '{method}'; {suggest(method, METHODS)}")
    if bool(towards) != bool(away):
        raise MethodError("--towards and --away are the two answers; give both")
    with staged(out, FILES, force=force) as folder:
        pairs = inputs.read_contrast(contrast, template)
        pairs = pairs.sample(limit, seed=seed) if limit else pairs
        loaded = inputs.open_model(model, device, dtype)
        say(f"patching {pairs}")
        verb = activation_patching if method == "activation" else attribution_patching
        found = verb(
            loaded,
            pairs,
            metric=metric,  # type: ignore[arg-type]
            answers=(towards, away) if towards else None,
            streams=inputs.read_names(streams) or None,
            layers=inputs.read_layers(layers),
            positions=_positions(positions),
            align=align,  # type: ignore[arg-type]
        )
        write_text(folder / "map.json", json.dumps(found.to_json(), indent=1))
        write_text(folder / "map.html", page(found))
    written = [str(out / name) for name in FILES]
    peak = _peak(found, seed)
    return Answer(
        {
            "files": written,
            "method": found.method,
            "metric": found.metric,
            "clean": float(found.clean.mean()),
            "corrupted": float(found.corrupted.mean()),
            "pairs": len(found.clean),
            "largest": [
                {"place": str(place), "position": position, **value.to_json()}
                for place, position, value in found.ranked[:10]
            ],
            "peak": peak,
        },
        _view(found, peak, written),
    )


def page(found: "PatchingMap") -> str:
    """One HTML file with the map's figures and its largest cells; it needs no network."""
    from steerkit.lenses import Head
    from steerkit.plotting import lenses as figures
    from steerkit.plotting import style

    parts = []
    if any(not isinstance(place, Head) for place in found.places):
        parts.append(figures.patching_map(found))
    if any(isinstance(place, Head) for place in found.places):
        parts.append(figures.head_map(found, position=found.columns[-1]))
    body = "".join(style.to_div(fig) for fig in parts)
    name = html.escape(str(found.provenance["model"]["name"]))
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{found.method}: {name}</title><style>:root {{ color-scheme: light dark; }}"
        "body { font-family: system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; "
        f"padding: 0 1rem; }} td, th {{ padding: 0.2rem 0.8rem 0.2rem 0; }}{style.CSS}</style>"
        f"<script>{style.script()}</script></head><body><h1>{name}</h1>"
        f"{body}{found._repr_html_()}</body></html>"
    )


def _positions(text: str) -> Literal["each", "whole"] | tuple[int, ...]:
    """`each`, `whole` or numbers.

    Raises:
        InterventionError: something else.
    """
    from steerkit.errors import InterventionError

    if text == "each":
        return "each"
    if text == "whole":
        return "whole"
    try:
        return tuple(int(piece) for piece in inputs.read_names(text))
    except ValueError:
        raise InterventionError(
            f"positions are 'each', 'whole' or numbers from the end such as -2,-1; got '{text}'"
        ) from None


def _peak(found: "PatchingMap", seed: int) -> dict[str, object] | None:
    """The honest peak, or None where the pairs are too few."""
    if len(set(found.groups)) < 4:
        return None
    peak = found.peak(seed=seed)
    return {
        "place": str(peak.place),
        "position": peak.position,
        "chosen_at": peak.chosen_at,
        **peak.estimate.to_json(),
    }


def _view(
    found: "PatchingMap", peak: dict[str, object] | None, written: list[str]
) -> RenderableType:
    """The largest cells, and the peak on pairs that did not choose it."""
    head, rows = found.rows(8)
    made = table(found.method, *head, rows=[tuple(row) for row in rows])
    lines = [found.summary()]
    if peak is None:
        lines.append("fewer than 4 groups of pairs: the largest cell is not measured again")
    else:
        where = "" if peak["position"] is None else f", position {peak['position']}"
        lines.append(
            f"chosen on half of the pairs, measured on the rest: {peak['place']}{where}: "
            f"{peak['value']:.3g} [{peak['low']:.3g}, {peak['high']:.3g}]"
        )
    text = Text("\n".join(lines))
    return stack(made, text, Text(f"written: {', '.join(written)}", style="dim"))
