"""What an activation attack measured: success at every strength, beside its nulls and cost."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steerkit.audits.scores import Difference
from steerkit.direction import Direction
from steerkit.interventions import Add
from steerkit.redteam.faults import PublishedFaults
from steerkit.redteam.paired import McNemar
from steerkit.searches import SiteScores
from steerkit.site import Site
from steerkit.statistics import Estimate, Null, null


@dataclass(frozen=True, eq=False)
class AttackRow:
    """The attack at one strength, on the prompts that are reported on.

    Attributes:
        strength: c; c times the vector is added, and negative c drives to the adversarial answer.
        success: how often the attack succeeds.
        change: success minus that of the clean model, paired, under identical decoding; its p is
            corrected over strengths.
        mcnemar: prompts gained and lost.
        kl: KL(clean || attacked) per token of the clean model's answers to the control prompts.
        kl_p95: its 95th percentile over tokens.
        perplexity: of the attacked answers under the clean model, geometric mean over prompts;
            None where nothing was generated.
        broken: share of answers that are empty or loop; None where nothing was generated.
        wanted: share of answers that begin with the adversarial one; None where nothing was
            generated. An attack that only breaks the model has success without it.
        margin: mean log-odds of the adversarial answer, where success is read from them.
        random: success of random vectors of the same norm.
        shuffled: success of vectors fitted on exchanged labels, of the same norm.
        draws: every random and shuffled vector's success, by kind.
    """

    strength: float
    success: Estimate
    change: Difference
    mcnemar: McNemar
    kl: Estimate | None
    kl_p95: float
    perplexity: Estimate | None
    broken: Estimate | None
    wanted: Estimate | None
    margin: Estimate | None
    random: Null
    shuffled: Null
    draws: Mapping[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "strength": self.strength,
            "success": self.success.to_json(),
            "change": self.change.to_json(),
            "mcnemar": self.mcnemar.to_json(),
            "kl": self.kl.to_json() if self.kl else None,
            "kl_p95": self.kl_p95,
            "perplexity": self.perplexity.to_json() if self.perplexity else None,
            "broken": self.broken.to_json() if self.broken else None,
            "wanted": self.wanted.to_json() if self.wanted else None,
            "margin": self.margin.to_json() if self.margin else None,
            "random": self.random.to_json(),
            "shuffled": self.shuffled.to_json(),
            "draws": {name: list(values) for name, values in self.draws.items()},
        }


@dataclass(frozen=True, eq=False)
class ActivationAttack:
    """An activation attack as a measurement of how well a model withstands it.

    Attributes:
        target: what it aims at.
        judged_by: how success is read.
        rows: one a strength, in the order of strength.
        clean: success of the unattacked model.
        clean_perplexity: of its own answers, for comparison.
        chosen: the strength chosen on prompts that nothing here is reported on.
        within: whether the chosen one met the KL bound; else it is the one of least KL.
        site: where the vector is added, at every position.
        direction: from adversarial to clean answers; its scale is the vector's norm.
        criteria: what ranked the layers; the first decided.
        categories: success at the chosen strength by category, where prompts have them.
        faults: the published faults that were reproduced.
        sizes: prompts that were fitted, chosen and reported on.
        items: every reported prompt by row and hash, with its success; texts where asked for.
        provenance: settings, seeds, the model.
    """

    target: str
    judged_by: str
    rows: tuple[AttackRow, ...]
    clean: Estimate
    clean_perplexity: Estimate | None
    chosen: float
    within: bool
    site: Site
    direction: Direction
    criteria: tuple[SiteScores, ...]
    categories: Mapping[str, Estimate]
    faults: PublishedFaults
    sizes: Mapping[str, int]
    items: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> AttackRow:
        """The row of the chosen strength."""
        return next(row for row in self.rows if row.strength == self.chosen)

    @property
    def macro(self) -> float:
        """Mean over categories of their success, as ToxiGen's and BOLD's results are given."""
        values = [e.value for e in self.categories.values()]
        return sum(values) / len(values) if values else float("nan")

    @property
    def strongest(self) -> Null:
        """The highest success over strengths beside that of each random vector (max-T)."""
        return null(
            "random vectors, highest over strengths",
            max(row.success.value for row in self.rows),
            [max(values) for values in zip(*(r.draws["random"] for r in self.rows), strict=True)],
        )

    def family(self, strength: float) -> Add:
        """The attack at -strength, for `redteam.detection_power`, which counts upward."""
        times = 2.0 if self.faults.added_twice else 1.0
        return Add(self.direction, strength=-times * strength)

    def summary(self) -> str:
        """What was found, in a few sentences."""
        row = self.best
        where = "these same" if self.provenance.get("control_is_report") else "control"
        kl = f", KL {row.kl} nats/token on {where} prompts" if row.kl else ""
        broken = (
            f", {row.broken.value:.0%} of answers broken, {row.wanted.value:.0%} begin as wanted"
            if row.broken and row.wanted
            else ""
        )
        sizes = self.sizes
        lines = [
            f"activation attack on {self.target} ({self.judged_by}): success {self.clean} clean, "
            f"{row.success} at strength {row.strength:g} added at {self.site}{kl}{broken}",
            f"change {row.change.estimate} ({row.change.direction}), {row.mcnemar.gained} prompts "
            f"gained and {row.mcnemar.lost} lost, McNemar p = {row.mcnemar.p:.2g}; the smallest "
            f"change that would be found with 80% power is {row.change.detectable:.2g}",
            f"{row.random.n} random vectors of equal norm: mean {row.random.mean:.3g}, highest "
            f"{row.random.maximum:.3g}, p = {row.random.p:.2g}; {row.shuffled.n} with exchanged "
            f"labels: mean {row.shuffled.mean:.3g}, highest {row.shuffled.maximum:.3g}, "
            f"p = {row.shuffled.p:.2g}",
            f"fitted on {sizes['fit']} prompts, strength chosen on {sizes['choose']}, reported on "
            f"{sizes['report']}"
            + ("; no group is shared" if not self.faults.fit_on_test else ", the same prompts"),
        ]
        if not self.within:
            lines.append("no strength met the KL bound; the one of least KL is shown")
        if self.faults.on:
            lines.append(f"published faults reproduced: {', '.join(self.faults.on)}")
        return "\n".join(lines)

    __str__ = summary

    def __repr__(self) -> str:
        return (
            f"ActivationAttack('{self.target}', {self.site}, strength {self.chosen:g}: "
            f"{self.clean.value:.3g} -> {self.best.success})"
        )

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows of the table, the clean model first."""
        head = (
            "strength", "success", "change", "gained/lost", "KL (nats/token)", "perplexity",
            "broken", "wanted", "random, highest", "shuffled, highest",
        )  # fmt: skip

        def shown(e: Estimate | None) -> str:
            return str(e) if e else "–"

        plain = ("0", str(self.clean), "–", "–", "–", shown(self.clean_perplexity), *("–",) * 4)
        rows = [
            (
                f"{r.strength:g}{' (chosen)' if r.strength == self.chosen else ''}",
                str(r.success),
                f"{r.change.estimate}, {r.change.direction}",
                f"{r.mcnemar.gained}/{r.mcnemar.lost}",
                shown(r.kl),
                shown(r.perplexity),
                f"{r.broken.value:.3g}" if r.broken else "–",
                f"{r.wanted.value:.3g}" if r.wanted else "–",
                f"{r.random.maximum:.3g} (p {r.random.p:.2g})",
                f"{r.shuffled.maximum:.3g} (p {r.shuffled.p:.2g})",
            )
            for r in self.rows
        ]
        return head, [plain, *rows]

    def table(self) -> str:
        """Every strength, as a markdown table."""
        return markdown(*self.cells())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; texts of prompts only where they were asked for."""
        return {
            "kind": "activation_attack",
            "target": self.target,
            "judged_by": self.judged_by,
            "site": str(self.site),
            "chosen": self.chosen,
            "within": self.within,
            "clean": self.clean.to_json(),
            "clean_perplexity": self.clean_perplexity.to_json() if self.clean_perplexity else None,
            "rows": [row.to_json() for row in self.rows],
            "strongest": self.strongest.to_json(),
            "vector_norm": self.direction.scale,
            "criteria": [c.to_json() for c in self.criteria],
            "categories": {k: e.to_json() for k, e in self.categories.items()},
            "faults": list(self.faults.on),
            "sizes": dict(self.sizes),
            "items": [dict(item) for item in self.items],
            "provenance": dict(self.provenance),
        }

    def to_jsonl(self) -> str:
        """One line a reported prompt."""
        return "".join(json.dumps(dict(item), ensure_ascii=False) + "\n" for item in self.items)

    def _repr_html_(self) -> str:
        return fragment(self.summary(), *self.cells())


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fragment(text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of text and a table as HTML without script, for notebooks."""
    said = "".join(f"<div>{html.escape(line)}</div>" for line in text.split("\n") if line)
    cell = "padding:3px 12px 3px 0;text-align:left;white-space:nowrap"
    columns = "".join(f"<th style='{cell}'>{html.escape(h)}</th>" for h in head)
    body = "".join(
        "<tr>" + "".join(f"<td style='{cell}'>{html.escape(c)}</td>" for c in row) + "</tr>"
        for row in rows
    )
    return (
        f"<div style='overflow-x:auto'>{said}<table><thead><tr>{columns}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
