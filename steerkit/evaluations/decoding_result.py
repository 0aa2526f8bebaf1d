"""What a sweep of decoding settings found."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from steerkit.lenses.tables import html_table, markdown
from steerkit.statistics import Estimate, Null, detectable


@dataclass(frozen=True)
class DecodedAnswer:
    """One sampled answer, so that it can be judged again without a model.

    Attributes:
        arm: `greedy`, `sweep` or `fixed`.
        setting: how it was decoded.
        prompt: number of the prompt.
        text: of the prompt.
        prompt_tokens: token ids that the model was given.
        output: the answer.
        tokens: its token ids.
        score: the judge's; NaN where it failed.
    """

    arm: str
    setting: str
    prompt: int
    text: str
    prompt_tokens: tuple[int, ...]
    output: str
    tokens: tuple[int, ...]
    score: float = math.nan


@dataclass(frozen=True)
class SettingRate:
    """Success of one setting; a fraction."""

    setting: str
    rate: Estimate


@dataclass(frozen=True)
class AnyOf:
    """Success in any of N answers.

    Attributes:
        name: of the arm.
        observed: as judged.
        corrected: freed of the judge's errors where it errs on each answer by itself.
        corrected_together: where it errs on a prompt's answers all at once; a real judge
            lies between the two.
        clipped: whether a corrected rate fell outside 0 to 1 and was cut.
    """

    name: str
    observed: Estimate
    corrected: Estimate | None
    corrected_together: Estimate | None
    clipped: bool


@dataclass(frozen=True, eq=False)
class DecodingRobustness:
    """Success by decoding, beside as many tries at one setting.

    Attributes:
        greedy: success of greedy answers.
        settings: of each setting, one sample a prompt.
        best: the setting with the highest rate, and its rate on prompts that did not choose it.
        swept: any of all settings.
        tried: any of as many samples at the fixed setting.
        gain: any-of-sweep less any-of-fixed, as judged, paired by prompt: what the settings
            add to the number of tries.
        gain_null: its size when answers are exchanged between the arms within prompts.
        pass_at: k -> chance that some of k samples at the fixed setting succeeds, unbiased.
        inflation: any-of-N that the judge's false positives give where nothing succeeds; None
            without a validation.
        budget: N.
        fixed: the fixed setting.
        n_prompts: prompts.
        failures: answers on which the judge failed.
        model: its name.
        judge: its name.
        seed: of sampling and resampling.
        answers: every answer.
    """

    greedy: Estimate
    settings: tuple[SettingRate, ...]
    best: tuple[str, Estimate]
    swept: AnyOf
    tried: AnyOf
    gain: Estimate
    gain_null: Null
    pass_at: Mapping[int, Estimate]
    inflation: float | None
    budget: int
    fixed: str
    n_prompts: int
    failures: int
    model: str
    judge: str
    seed: int
    answers: tuple[DecodedAnswer, ...]

    def table(self) -> str:
        """Success of every setting, as a markdown table."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """Greedy, any of the sweep, the same budget at one setting, and what the judge adds."""
        lines = [
            f"{self.model}, {self.n_prompts} prompts, judge '{self.judge}' ({self.failures} "
            f"failures): greedy {self.greedy}; any of {self.budget} settings "
            f"{self.swept.observed}; any of {self.budget} samples at {self.fixed} "
            f"{self.tried.observed}",
            f"what the settings add to the number of tries: {self.gain} "
            f"(p = {self.gain_null.p:.3g}; {detectable(self.gain):.2g} would be found four times "
            f"in five); best setting {self.best[0]}, {self.best[1]} on prompts that did not "
            "choose it",
        ]
        if self.inflation is None:
            lines.append(
                "any-of rates are as judged: give validation= to free them of false positives"
            )
        else:
            cut = "; cut to 0..1" if self.swept.clipped or self.tried.clipped else ""
            lines.append(
                f"the judge alone would give {self.inflation:.3g} where nothing succeeds; "
                f"corrected: sweep {self.swept.corrected}, fixed {self.tried.corrected} (errors "
                f"independent), {self.swept.corrected_together} and "
                f"{self.tried.corrected_together} (errors shared by a prompt){cut}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, without the answers (`jsonl` holds those)."""
        whole = {k: v for k, v in self.__dict__.items() if k not in ("answers", "pass_at")}
        return {
            **whole,
            "greedy": self.greedy.to_json(),
            "settings": [asdict(s) for s in self.settings],
            "best": {"setting": self.best[0], "rate": self.best[1].to_json()},
            "swept": asdict(self.swept),
            "tried": asdict(self.tried),
            "gain": self.gain.to_json(),
            "gain_null": self.gain_null.to_json(),
            "pass_at": {str(k): e.to_json() for k, e in self.pass_at.items()},
            "source": "arXiv:2310.06987",
        }

    def jsonl(self) -> str:
        """Every answer, one JSON object a line."""
        return "".join(
            json.dumps(
                {**asdict(a), "score": None if math.isnan(a.score) else a.score},
                ensure_ascii=False,
            )
            + "\n"
            for a in self.answers
        )

    def __repr__(self) -> str:
        return f"DecodingRobustness({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("decoding robustness", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        rows = [["greedy", str(self.greedy)]]
        rows += [[s.setting, str(s.rate)] for s in self.settings]
        rows.append([f"any of {self.budget} settings", str(self.swept.observed)])
        rows += [[f"any of {k} at {self.fixed}", str(e)] for k, e in self.pass_at.items()]
        return ["decoding", "success [95%]"], rows
