"""The model that is audited, what it is compared with, and its answers, generated once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from steerkit.audits.evidence import includes
from steerkit.captures.job import table_sha256
from steerkit.models.together import generate_together
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion, Model
from steerkit.refusals import is_refusal
from steerkit.suites.kept import Answers
from steerkit.suites.material import Material

MODEL, STEERED, AGAINST = "model", "steered", "against"


@dataclass(frozen=True, eq=False)
class Subject:
    """What examinations look at.

    Attributes:
        model: the model that is audited.
        material: prompts by role.
        steered: the same model under steering, or None.
        against: another model of the same tokenizer (before and after fine-tuning), or None.
        matcher: what counts as a refusal; NaN where it could not be judged.
        right: (answer, reference) -> how right; NaN where it could not be judged.
        max_new_tokens: length of answers.
        token_budget: padded tokens of a batch.
        seed: every random choice follows from it.
        answered: the answers so far, those of an interrupted audit included.
    """

    model: Model
    material: Material
    steered: Model | None = None
    against: Model | None = None
    matcher: Callable[[str], float] = is_refusal
    right: Callable[[str, str], float] = includes
    max_new_tokens: int = 32
    token_budget: int = 4096
    seed: int = 0
    answered: Answers = field(default_factory=Answers, repr=False)

    @property
    def arms(self) -> Mapping[str, Model]:
        """The models by name: `model`, and `steered` and `against` where there are any."""
        found = {MODEL: self.model, STEERED: self.steered, AGAINST: self.against}
        return {name: model for name, model in found.items() if model is not None}

    def only(self, arms: Sequence[str]) -> "Subject":
        """The same subject with the model, and of the other arms these alone."""
        return replace(
            self,
            steered=self.steered if STEERED in arms else None,
            against=self.against if AGAINST in arms else None,
        )

    def contrast(self, role: str) -> Contrast:
        """The prompts of a two-sided role."""
        return self.material.contrasts[role]

    def parts(self, role: str) -> tuple[Contrast, Contrast]:
        """Half of a role to fit on, half to report on; they share no group."""
        return self.contrast(role).split(0.5, seed=self.seed)

    def answers(self, prompts: Sequence[Prompt], arm: str = MODEL) -> tuple[Completion, ...]:
        """Greedy answers of an arm, generated once however many examinations ask.

        Model and steered model are views of one network: whichever is asked first, both answer,
        in the same batches.
        """
        together = [a for a in (MODEL, STEERED) if a in self.arms] if arm != AGAINST else [arm]
        return self._said({a: self.arms[a] for a in together}, prompts)[arm]

    def said_by(self, model: Model, prompts: Sequence[Prompt], arm: str) -> tuple[Completion, ...]:
        """Greedy answers of any other model or view, kept as those of `arm`."""
        return self._said({arm: model}, prompts)[arm]

    def _said(
        self, models: Mapping[str, Model], prompts: Sequence[Prompt]
    ) -> dict[str, tuple[Completion, ...]]:
        def generate(new: Sequence[tuple[str, Prompt]]) -> Sequence[Completion]:
            longest, budget = self.max_new_tokens, self.token_budget
            asked = [(models[arm], prompt) for arm, prompt in new]
            return generate_together(asked, max_new_tokens=longest, token_budget=budget)

        other = set(models) - {MODEL, STEERED, AGAINST}
        view = (lambda: self.made_of) if other else None
        return self.answered.of(tuple(models), prompts, generate, view)

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """What views that are fitted in an audit depend on, as JSON: all but the judges."""
        return {name: what for name, what in self.provenance().items() if name != "judges"}

    def provenance(self) -> dict[str, Any]:
        """Everything that findings depend on, as JSON."""
        return {
            "arms": {
                name: {
                    "name": model.info.name,
                    "fingerprint": model.info.fingerprint,
                    "steering": list(getattr(model, "steering", ())),
                    # In words two directions of one site read the same.
                    "programs": table_sha256(model.table),
                }
                for name, model in self.arms.items()
            },
            "material": {"name": self.material.name, **self.material.sha256},
            "max_new_tokens": self.max_new_tokens,
            "judges": {"refused": _named(self.matcher), "right": _named(self.right)},
            "seed": self.seed,
        }


def _named(judge: Callable[..., object]) -> str:
    """Module and name of a judge: findings made with one are not those of another."""
    kind = judge if hasattr(judge, "__qualname__") else type(judge)
    return f"{kind.__module__}.{kind.__qualname__}"
