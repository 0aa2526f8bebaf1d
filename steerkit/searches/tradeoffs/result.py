"""What `tradeoff` returns: two curves, the forms fitted to them, the best strength."""

from dataclasses import dataclass
from typing import Any

from steerkit.searches.nulls import NullDraws
from steerkit.searches.tradeoffs.fits import CurveFits
from steerkit.searches.tradeoffs.levels import LevelFit
from steerkit.statistics import Estimate


@dataclass(frozen=True)
class Tradeoff:
    """Gain of a behaviour and loss of helpfulness with strength.

    Attributes:
        strengths: ascending, 0 among them, in multiples of the direction's scale.
        behaviour: level of the behaviour at each.
        helpfulness: level of helpfulness at each.
        behaviour_unit: of the behaviour.
        helpfulness_unit: of helpfulness.
        gain: fits to the change of the behaviour (the power keeps the strength's sign).
        loss: fits to the loss of helpfulness (the power is even in the strength).
        tanh: the theory's curve of the behaviour, where its level lies between -1 and 1.
        hill: the theory's curve of helpfulness, where its level lies between 0 and 1.
        optimum: strength > 0 of the largest gain less `exchange` times the loss, by the power
            forms, within the strengths both were fitted on; with an interval over both sets
            of items. NaN where no positive strength was measured.
        at_edge: share of resamples whose optimum is the largest of those strengths.
        exchange: units of gain that a unit of loss counts for.
        random_loss: the loss of random directions of equal norm, averaged over them by item.
        random_slope: |slope near zero| of the behaviour beside that of random directions.
        direction: what was added.
        positions: at which tokens.
    """

    strengths: tuple[float, ...]
    behaviour: tuple[Estimate, ...]
    helpfulness: tuple[Estimate, ...]
    behaviour_unit: str
    helpfulness_unit: str
    gain: CurveFits
    loss: CurveFits
    tanh: LevelFit | None
    hill: LevelFit | None
    optimum: Estimate
    at_edge: float
    exchange: float
    random_loss: CurveFits | None
    random_slope: NullDraws | None
    direction: str
    positions: str

    def table(self) -> str:
        """Every fitted form as a markdown table."""
        lines = ["| curve | form | parameters | AICc | excess error | |", "|" + "---|" * 6]
        curves = [("gain", self.gain), ("loss", self.loss)]
        if self.random_loss:
            curves.append(("loss, random", self.random_loss))
        for name, curve in curves:
            for f in curve.fits:
                values = ", ".join(f"{k} = {e}" for k, e in f.parameters.items())
                mark = "chosen" if f.form == curve.chosen else ""
                excess = f"{f.excess:.2g} ± {f.excess_se:.2g}"
                lines.append(f"| {name} | {f.form} | {values} | {f.aicc:.1f} | {excess} | {mark} |")
        for level in (self.tanh, self.hill):
            if level:
                values = ", ".join(f"{k} = {e}" for k, e in level.parameters.items())
                lines.append(f"| level | {level.form} | {values} | | R² {level.r2:.3f} | |")
        return "\n".join(lines)

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        lines = [
            f"{self.direction}, strengths of size up to {self.gain.near:g} and "
            f"{self.loss.near:g} fitted:",
            f"gain ({self.behaviour_unit}) ~ |x|^k, k = {self.gain.exponent}; "
            f"{self.gain.chosen} chosen",
            f"loss ({self.helpfulness_unit}) ~ |x|^k, k = {self.loss.exponent}; "
            f"{self.loss.chosen} chosen",
        ]
        if self.random_loss and self.random_slope:
            n = self.random_slope.null
            lines.append(
                f"random directions of equal norm: loss k = {self.random_loss.exponent}; |slope| "
                f"of the gain {self.random_slope.observed:.3g} against at most {n.maximum:.3g} of "
                f"{n.n} (p = {n.p:.3g})"
            )
        edge = f", at the edge in {self.at_edge:.0%} of resamples" if self.at_edge else ""
        lines.append(f"best strength at an exchange of {self.exchange:g}: {self.optimum}{edge}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        shown = ("gain", "loss", "tanh", "hill", "optimum", "random_loss", "random_slope")
        return {
            **{k: v for k, v in self.__dict__.items() if k not in shown},
            "strengths": list(self.strengths),
            "behaviour": [e.to_json() for e in self.behaviour],
            "helpfulness": [e.to_json() for e in self.helpfulness],
            **{k: v.to_json() if (v := getattr(self, k)) else None for k in shown},
        }

    def __repr__(self) -> str:
        return f"Tradeoff({self})"

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        import html

        heads, _, *rows = (line.strip("|").split("|") for line in self.table().splitlines())
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
        text = "<br>".join(html.escape(line) for line in self.summary().splitlines())
        return f"<b>Trade-off</b><br>{text}<table><tr>{head}</tr>{body}</table>"
