"""The verb: ask a suite's questions of a model, keep every answer, report."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from steerkit.audits.evidence import includes
from steerkit.comparisons.common import require_one_tokenizer
from steerkit.errors import MethodError, OutputError, SteerkitError
from steerkit.judges import Counted
from steerkit.prompts import Prompt
from steerkit.protocols import Intervention, Model
from steerkit.refusals import is_refusal
from steerkit.suites.finding import Finding
from steerkit.suites.items import items_of
from steerkit.suites.kept import Answers, KeptFindings
from steerkit.suites.material import Material
from steerkit.suites.registry import Examination, asked
from steerkit.suites.result import SuiteReport
from steerkit.suites.subject import Subject

PACKAGES = ("steerkit", "torch", "transformers", "numpy")
ITEMS = "items.jsonl"


def examine(
    model: Model,
    suite: str | Sequence[str | Examination] = "standard",
    *,
    material: Material | str | Path | None = None,
    steering: Model | Intervention | Sequence[Intervention] | str | Path | None = None,
    against: Model | None = None,
    matcher: Callable[[str], float] = is_refusal,
    right: Callable[[str, str], float] = includes,
    max_new_tokens: int = 32,
    token_budget: int = 4096,
    seed: int = 0,
    out: str | Path | None = None,
    title: str | None = None,
    progress: bool = True,
) -> SuiteReport:
    """Ask a suite's questions of a model, steered and against another model where given.

    With `out`, each answer and finding is kept as soon as it is made: an interrupted audit goes
    on where it stopped, one by other judges asks again of the same answers, one with another
    steering or another model to compare with asks again only what looks at these, and one of
    another model, other prompts or options starts anew. A question that fails on these models or
    prompts is not measured, for the reason that the report gives, and the others are asked all
    the same.

    Args:
        model: the model that is audited, plain.
        suite: `behaviour`, `standard`, or names of examinations, or examinations.
        material: prompts by role, or a folder of them; by default those of the organisms'
            language, for organisms only.
        steering: what steers the model: a view, interventions, or a file of them.
        against: another model of the same tokenizer, such as the one before fine-tuning.
        matcher: what counts as a refusal; judges are told apart by their names.
        right: (answer, reference) -> how right, in [0, 1].
        max_new_tokens: length of answers.
        token_budget: padded tokens of a batch.
        seed: every random choice follows from it.
        out: folder for `findings/`, `items.jsonl`, `report.html`, `report.md` and
            `report.json`.
        title: heading of the report.
        progress: one bar on stderr.

    Raises:
        MethodError: an unknown suite or examination, or no prompts given for a model that is
            no organism.
        ModelError: `against` reads other tokens.
        SteerkitError: no question at all could be answered; what stopped the first that failed.
    """
    from tqdm.auto import tqdm

    questions = asked(suite)
    prompts = _material(model, material, seed)
    if against is not None:
        require_one_tokenizer(model, against, _some(prompts), rendered=True)
    subject = Subject(
        model,
        prompts,
        _steered(model, steering),
        against,
        Counted(matcher),
        Counted(right),
        max_new_tokens,
        token_budget,
        seed,
    )
    made_with = {"versions": {name: version(name) for name in PACKAGES}}
    about = {**subject.provenance(), **made_with}
    folder = None if out is None else Path(out) / "findings"
    kept = KeptFindings(folder)
    subject = replace(subject, answered=_answers(subject, questions, folder, made_with))
    shown = {arms: subject.only(arms) for arms in {question.looks_at for question in questions}}
    findings: dict[str, Finding] = {}
    missing: dict[str, str] = {}
    failed: list[SteerkitError] = []
    seconds: dict[str, float] = {}
    with tqdm(questions, disable=not progress, desc="examine", unit="question") as bar:
        for question in bar:
            bar.set_postfix_str(question.name)
            why = question.missing(subject)
            if why:
                missing[question.name] = why
                continue
            began = time.perf_counter()
            try:
                seen = shown[question.looks_at]
                findings[question.name] = _answer(question, seen, kept, made_with)
            except OutputError:  # nothing can be kept, or what was kept cannot be trusted
                raise
            except SteerkitError as error:
                missing[question.name] = f"it failed: {error}"
                failed.append(error)
            except (Exception, KeyboardInterrupt) as error:
                if folder is not None:
                    error.add_note(f"Found so far: {folder}. The same call goes on from there.")
                raise
            seconds[question.name] = round(time.perf_counter() - began, 2)
    if failed and not findings:
        raise failed[0]
    report = SuiteReport(
        title or f"Audit of {model.info.name}",
        questions,
        findings,
        missing,
        {**about, "seconds": seconds},
        items_of(subject, findings),
    )
    if out is not None:
        (Path(out) / ITEMS).unlink(missing_ok=True)
        for name in ("report.html", "report.md", "report.json", *([ITEMS] if report.items else [])):
            report.write(Path(out) / name)
    return report


def _answers(
    subject: Subject, questions: Sequence[Examination], folder: Path | None, made_with: object
) -> Answers:
    """What was answered before by the same arms, and by views that were made in the same way."""
    told = subject.made_of
    of_all = {name: what for name, what in told.items() if name != "arms"}
    views = [subject.only(arms).made_of for arms in {q.looks_at for q in questions}]
    file = None if folder is None else folder / "_answers.jsonl"
    return Answers(file, [made_with, of_all], told["arms"], views)


def _answer(
    question: Examination, subject: Subject, kept: KeptFindings, made_with: Mapping[str, object]
) -> Finding:
    """The finding of a question: one that was kept, or one that is kept from now on."""
    about = {**subject.provenance(), **made_with}
    found = kept.read(question.name, about)
    if found is None:
        found = _judged(question, subject)
        kept.write(question.name, found, about)
    return found


def _judged(question: Examination, subject: Subject) -> Finding:
    """The answer to a question, and how many texts its judges failed on.

    Raises:
        MethodError: what could be judged was not enough for an answer.
    """
    judges = [j for j in (subject.matcher, subject.right) if isinstance(j, Counted)]
    for judge in judges:
        judge.forget()
    try:
        found = question.run(subject)
    except Exception as error:
        told = [judge.told for judge in judges if judge.told]
        if not told or isinstance(error, OutputError):
            raise
        raise MethodError(
            f"{'; '.join(told)}; what is left is not enough to answer from ({error})"
        ) from error
    told = [f"{judge.told}." for judge in judges if judge.told]
    return replace(found, sentence=" ".join((found.sentence, *told))) if told else found


def _material(model: Model, material: Material | str | Path | None, seed: int) -> Material:
    if isinstance(material, Material):
        return material
    if material is not None:
        return Material.read(material)
    from steerkit import organisms

    shipped = {f"organism:{name}" for name in organisms.names()}
    if model.info.name not in shipped:
        raise MethodError(
            f"{model.info.name} is no shipped organism, so it has to be said what to ask it: "
            "material=Material.read(folder), a folder of files named by role (refusal.jsonl, ...)"
        )
    return Material.of_organisms(seed=seed)


def _some(material: Material) -> list[Prompt]:
    every = [c.prompts for c in material.contrasts.values()] + list(material.prompts.values())
    return [p for prompts in every for p in prompts[:: max(1, len(prompts) // 8)]]


def _steered(
    model: Model, steering: Model | Intervention | Sequence[Intervention] | str | Path | None
) -> Model | None:
    if steering is None:
        return None
    if isinstance(steering, str | Path):
        return model.with_(*_read(Path(steering), model))
    if isinstance(steering, Model):
        return steering
    given = (steering,) if isinstance(steering, Intervention) else tuple(steering)
    if not given:
        raise MethodError("no intervention in `steering`; give one, or leave it out")
    return model.with_(*given)


def _read(file: Path, model: Model) -> Sequence[Intervention]:
    """What search wrote, or another tool's file, for this model and no other."""
    if file.suffix == ".safetensors":
        from steerkit.interventions import load_steering

        return load_steering(file, model=model)
    from steerkit.formats import read_steering

    return read_steering(file, model=model)
