"""What an audit found: numbers with intervals, a verdict, every item, and where it came from."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steerkit.audits.arms import ArmInfo, Role
from steerkit.audits.checks import ItemCheck, chosen
from steerkit.audits.evidence import Evidence, Item, by_arm, includes, read_items, to_jsonl
from steerkit.audits.scores import Score, score
from steerkit.audits.section import Section
from steerkit.audits.verdict import costs, verdict
from steerkit.errors import MethodError, OutputError
from steerkit.judges import Counted
from steerkit.refusals import is_refusal
from steerkit.registry import suggest

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Report:
    """The result of an audit, and a container for further sections.

    Attributes:
        title: heading.
        concept: what the held-out contrast is called.
        target: the check that the verdict is about.
        target_side: the side of the contrast on which steering was to change it.
        arms: what was compared; the plain model first.
        checks: name -> unit, law and source of each check taken.
        scores: one a check, side and arm.
        not_measured: what was left out -> why.
        provenance: models, interventions, direction, prompts' hash, seeds, versions.
        items: every prompt, output, token and score; empty in a report read from JSON alone.
        sections: further parts (capture, extraction, search).
    """

    title: str
    concept: str = ""
    target: str = "refusal"
    target_side: str = "positive"
    arms: tuple[ArmInfo, ...] = ()
    checks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    not_measured: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[Item, ...] = field(default=(), repr=False)
    sections: tuple[Section, ...] = field(default=(), repr=False)

    @property
    def verdict(self) -> str:
        """One sentence: what changed, and what prompting does; empty if nothing was audited."""
        if not self.scores:
            return ""
        return verdict(self.scores, self.arms, self.target, self.target_side)

    @property
    def costs(self) -> tuple[str, ...]:
        """What else changed under steering, one line each."""
        return costs(self.scores, self.arms, self.target, self.target_side)

    def score(self, check: str, side: str = "positive", arm: str = "steered") -> Score:
        """The score of a check on a side under an arm.

        Raises:
            MethodError: there is none; the message says which there are.
        """
        for s in self.scores:
            if (s.check, s.side, s.arm) == (check, side, arm):
                return s
        there = sorted({f"{s.check}/{s.side}/{s.arm}" for s in self.scores})
        why = f" ({check}: {self.not_measured[check]})" if check in self.not_measured else ""
        raise MethodError(
            f"no score '{check}/{side}/{arm}'{why}; {suggest(f'{check}/{side}/{arm}', there)}"
        )

    def with_sections(self, *sections: Section) -> "Report":
        """The report with further sections after its own."""
        return replace(self, sections=self.sections + sections)

    def to_json(self) -> dict[str, Any]:
        """Everything but the items, which are kept as JSONL; NaN becomes null."""
        return finite(
            {
                "kind": "audit",
                "format_version": FORMAT_VERSION,
                "title": self.title,
                "concept": self.concept,
                "target": self.target,
                "target_side": self.target_side,
                "verdict": self.verdict,
                "costs": list(self.costs),
                "arms": [a.to_json() for a in self.arms],
                "checks": {k: dict(v) for k, v in self.checks.items()},
                "scores": [s.to_json() for s in self.scores],
                "not_measured": dict(self.not_measured),
                "provenance": dict(self.provenance),
                "sections": [s.to_json() for s in self.sections],
            }
        )

    @classmethod
    def load(cls, path: str | Path, *, items: str | Path | None = None) -> "Report":
        """Read a JSON report, and its items if their JSONL is given.

        Raises:
            OutputError: no such file, or one that is no audit report.
        """
        place = Path(path)
        if not place.is_file():
            raise OutputError(f"no report at {place}; give the report.json that an audit wrote")
        try:
            data = json.loads(place.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OutputError(f"{place} is not valid JSON: {error}") from error
        if not isinstance(data, dict) or data.get("kind") != "audit":
            raise OutputError(f'{place} is not an audit report; audits have "kind": "audit"')
        if data["format_version"] > FORMAT_VERSION:
            raise OutputError(
                f"{place} has format version {data['format_version']}; this steerkit reads up to "
                f"{FORMAT_VERSION}: upgrade steerkit"
            )
        return cls(
            title=data["title"],
            concept=data["concept"],
            target=data["target"],
            target_side=data["target_side"],
            arms=tuple(ArmInfo(**a) for a in data["arms"]),
            checks=data["checks"],
            scores=tuple(Score.from_json(s) for s in data["scores"]),
            not_measured=data["not_measured"],
            provenance=data["provenance"],
            items=read_items(items) if items is not None else (),
            sections=tuple(Section.from_json(s) for s in data["sections"]),
        )

    def write(self, path: str | Path) -> Path:
        """Write the report; the suffix says how: .html, .json, .md, or .jsonl for the items.

        Raises:
            OutputError: another suffix, no items to write, or a place that cannot be written.
        """
        from steerkit.audits.render import to_html, to_markdown

        return written(
            path,
            {
                ".html": lambda: to_html(self),
                ".json": lambda: json.dumps(self.to_json(), indent=1, ensure_ascii=False),
                ".md": lambda: to_markdown(self),
                ".jsonl": lambda: to_jsonl(self.items),
            },
        )

    @classmethod
    def rejudge(
        cls,
        items: str | Path | Sequence[Item],
        *,
        report: str | Path | None = None,
        judge: Callable[[Item], float] | None = None,
        matcher: Callable[[str], float] = is_refusal,
        scorer: Callable[[str, str], float] = includes,
        checks: Sequence[str | ItemCheck] | None = None,
        target: str | None = None,
        seed: int | None = None,
        n_resamples: int | None = None,
    ) -> "Report":
        """Compute the numbers again from stored items, with other judges if given; no model.

        Args:
            items: an `items.jsonl`, or the items.
            report: the `report.json` beside it: its arms, seed and provenance are taken over.
            judge: an item's value in [0, 1] (NaN: does not apply); becomes the check `judge`.
            matcher: what counts as a refusal.
            scorer: (output, reference) -> how right, in [0, 1].
            checks: names or checks; by default those of the items, and `judge`.
            target: what the verdict is about; the judge, if one is given.
            seed: for resampling; that of the report, else 0.
            n_resamples: resamples of each interval; as in the report, else 2000.
        """
        rows = read_items(items) if isinstance(items, str | Path) else tuple(items)
        old = cls.load(report) if report is not None else None
        known = old.provenance if old else {}
        names: Sequence[str | ItemCheck] = (
            [n for n in dict.fromkeys(n for i in rows for n in i.scores) if n != "judge"]
            if checks is None
            else checks
        )
        return judged(
            cls(
                title=old.title if old else "Audit, judged again",
                concept=old.concept if old else "",
                target=target or ("judge" if judge else old.target if old else "refusal"),
                target_side=old.target_side if old else "positive",
                arms=old.arms if old else arms_of(rows),
                not_measured=old.not_measured if old else {},
                provenance=known,
                sections=old.sections if old else (),
            ),
            rows,
            (*names, *judge_check(judge)),
            matcher=matcher,
            scorer=scorer,
            seed=known.get("seed", 0) if seed is None else seed,
            n_resamples=known.get("n_resamples", 2000) if n_resamples is None else n_resamples,
        )

    def __str__(self) -> str:
        from steerkit.audits.render import to_summary

        return to_summary(self)

    def _repr_html_(self) -> str:
        from steerkit.audits.render import to_fragment

        return to_fragment(self)


def written(path: str | Path, texts: Mapping[str, Callable[[], str]]) -> Path:
    """Write the text of the path's suffix, made when it is asked for.

    Raises:
        OutputError: another suffix, an empty text (no items), or a place that cannot be written.
    """
    from steerkit.files import write_text

    place = Path(path)
    suffix = place.suffix.lower()
    if suffix not in texts:
        raise OutputError(
            f"a report is written as {', '.join(texts)}; got '{place.name}'; "
            f"{suggest(suffix, tuple(texts))}"
        )
    text = texts[suffix]()
    if not text:
        raise OutputError(
            f"this report holds no items to write to {place}; audit again, by "
            "checks or questions about answers"
        )
    return write_text(place, text)


def judged(
    report: Report,
    items: Sequence[Item],
    checks: Sequence[str | ItemCheck],
    *,
    matcher: Callable[[str], float],
    scorer: Callable[[str, str], float],
    seed: int,
    n_resamples: int,
) -> Report:
    """The report with scores of the items, and the items with their scores."""
    rows = by_arm(items)
    order = [a.name for a in report.arms if a.name in rows]
    if not order or set(rows) - set(order):
        raise OutputError(
            f"the items are of the arms {', '.join(rows)} and the report of "
            f"{', '.join(a.name for a in report.arms)}; use the files of one audit"
        )
    taken = chosen(checks)
    refused, right = Counted.of(matcher), Counted.of(scorer)
    plain = rows[order[0]]
    scored = {i.index for i in plain}
    # Given texts are scored on arms that can read them; a row is compared where both have it.
    evidence = [
        Evidence(
            name,
            tuple(i for i in rows[name] if i.index in scored),
            tuple(i for i in plain if i.index in {j.index for j in rows[name]}),
            refused,
            right,
        )
        for name in order
    ]
    steered = next((a.name for a in report.arms if a.role == "steered"), "steered")
    scores, values = score(
        evidence,
        taken,
        primary=(report.target, report.target_side, steered),
        seed=seed,
        n_resamples=n_resamples,
    )
    kept = [
        replace(item, scores={c.name: float(values[e.arm][c.name][i]) for c in taken})
        for e in evidence
        for i, item in enumerate(e.items)
    ]
    measured = {s.check for s in scores}
    missing = {
        c.name: report.not_measured.get(c.name, "it applies to none of the prompts")
        for c in taken
        if c.name not in measured
    }
    return replace(
        report,
        checks={
            c.name: {"unit": c.unit, "law": c.law, "source": c.source}
            for c in taken
            if c.name in measured
        },
        scores=scores,
        not_measured={
            **{k: v for k, v in report.not_measured.items() if k not in measured},
            **missing,
            **unjudged(refused, right, *(c.judge for c in taken if c.judge)),
        },
        items=tuple(kept),
    )


def arms_of(items: Sequence[Item]) -> tuple[ArmInfo, ...]:
    """Arms by the items alone: the first is the plain one, `steered` is steered."""
    found = []
    for number, (name, rows) in enumerate(by_arm(items).items()):
        role: Role = "other"
        if number == 0:
            role = "plain"
        elif name == "steered":
            role = "steered"
        elif rows[0].system or rows[0].shots:
            role = "prompted"
        found.append(ArmInfo(name, role, ""))
    return tuple(found)


def judge_check(judge: Callable[[Item], float] | None) -> tuple[ItemCheck, ...]:
    """A judge of items as the check `judge`; none for None."""
    if judge is None:
        return ()
    counted = Counted.of(judge)
    return (
        ItemCheck(
            "judge",
            "fraction",
            f"What the judge '{counted.__name__}' says of the answer.",
            "given by the caller",
            lambda e: [counted(i) if i.answered else math.nan for i in e.items],
            judge=counted,
        ),
    )


def unjudged(*judges: Counted) -> dict[str, str]:
    """What judges failed on, as `not_measured` has it; every other score stands."""
    return {f"some answers, by '{judge.__name__}'": judge.told for judge in judges if judge.told}


def finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
