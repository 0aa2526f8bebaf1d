"""Activation and attribution patching: moving states of one run into another.

Activation patching (causal tracing; Meng et al. 2022, arXiv:2202.05262, in the denoising form
of Wang et al. 2022, arXiv:2211.00593) runs the corrupted prompt with the clean run's state at
one place and position. Attribution patching (Nanda 2023; Syed et al. 2023, arXiv:2310.10348)
is its first-order estimate, (clean - corrupted) . gradient of the metric at the corrupted run:
the whole map from two forward passes and one backward pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.lenses.maps import PatchingMap
from steerkit.lenses.metrics import Answers, Metric, MetricName, Text, measured
from steerkit.lenses.pairs import Align, Where
from steerkit.lenses.rows import logits_of
from steerkit.lenses.tasks import Both, Job, Task, read_task
from steerkit.models import LanguageModel
from steerkit.models.patching import Place
from steerkit.prompts import Contrast


def activation_patching(
    model: LanguageModel,
    clean: Sequence[Text] | Contrast,
    corrupted: Sequence[Text] | None = None,
    metric: MetricName | Metric = "logit_difference",
    *,
    answers: Answers | None = None,
    streams: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
    positions: Where | Sequence[int] = "each",
    align: Align = "equal",
    groups: Sequence[str] | None = None,
    along: Direction | Tensor | None = None,
    token_budget: int = 4096,
    progress: bool = True,
) -> PatchingMap:
    """Run the corrupted prompts with one state of the clean run at a time; map the metric.

    Every batch row carries a patch of its own. States that are equal in both runs, such as
    those of a common beginning, are not run: patching them changes nothing.

    Args:
        model: plain or steered (a view's interventions come before the patch, on both runs).
        clean: prompts whose states are taken; or a paired contrast, whose positive side is
            clean and whose negative side is corrupted.
        corrupted: prompts that are run with them, as many, each as long in tokens.
        metric: of the logits after the last prompt token: `logit_difference` of the first
            tokens of two answers, `log_prob` of the clean answer's, or a function
            `(logits [row d_vocab], pair of each row) -> [row]`.
        answers: (clean, corrupted) answers of all pairs, or two for each; by default the
            prompts' own `answer` where those of each pair begin with different tokens, else
            what each run predicts itself.
        streams: any of the five streams, and `heads`; by default resid_post, attn_out and
            mlp_out, as far as the model has them.
        layers: all by default.
        positions: `each` token by itself, all at once (`whole`), or numbers from the end.
        align: `equal` refuses pairs of different lengths; `end` counts from the end of both
            and patches what both have. Equal positions from the end then are different ones
            from the start.
        groups: what intervals resample; by default the prompts' groups, else each pair.
        along: patch only the part of a state along this direction (or in the span of these
            rows), and leave the rest of the corrupted state as it is.
        token_budget: padded tokens a forward pass.
        progress: show a bar.

    Raises:
        PromptError: pairs that do not fit, or answers that cannot be told apart.
        SiteError: a stream, a layer or heads that the model does not have.
        MethodError: an unknown metric, or runs between which it does not tell.
        ActivationError: a metric that is not a number, saying where.
    """
    from tqdm.auto import tqdm

    task = read_task(
        model, clean, corrupted, metric, answers=answers, streams=streams, layers=layers,
        positions=positions, align=align, groups=groups, along=along,
        token_budget=token_budget,
    )  # fmt: skip
    ran = equal = 0
    with tqdm(total=len(task.pairs), disable=not progress, desc="activation patching") as bar:
        for group in task.batches(2):
            both = task.both(group)
            jobs = []
            for job in task.jobs(both):
                if _same(job, both):
                    task.raw[job.cell] = task.ends[1, job.cell[0]]
                    equal += 1
                else:
                    jobs.append(job)
            _run(task, both, jobs)
            ran += len(jobs)
            bar.update(len(group))
    return task.answer("activation patching", {"runs": ran, "equal_states": equal})


def attribution_patching(
    model: LanguageModel,
    clean: Sequence[Text] | Contrast,
    corrupted: Sequence[Text] | None = None,
    metric: MetricName | Metric = "logit_difference",
    *,
    answers: Answers | None = None,
    streams: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
    positions: Where | Sequence[int] = "each",
    align: Align = "equal",
    groups: Sequence[str] | None = None,
    along: Direction | Tensor | None = None,
    token_budget: int = 4096,
    progress: bool = True,
) -> PatchingMap:
    """The first-order estimate of `activation_patching`, from one backward pass a batch.

    Arguments and errors are those of `activation_patching`; the metric has to be
    differentiable. The estimate is poor where the metric is far from linear between the two
    runs, as it is for whole residual streams: check the cells that matter by patching them.
    """
    from tqdm.auto import tqdm

    task = read_task(
        model, clean, corrupted, metric, answers=answers, streams=streams, layers=layers,
        positions=positions, align=align, groups=groups, along=along,
        token_budget=token_budget,
    )  # fmt: skip
    with tqdm(total=len(task.pairs), disable=not progress, desc="attribution patching") as bar:
        for group in task.batches(4):
            both = task.both(group, grad=True)
            if not both.values.requires_grad:
                raise MethodError(
                    f"attribution patching takes the gradient of the metric, but {task.named} has "
                    "none; compute it with torch operations, or use activation_patching"
                )
            found = _first_order(task, both)
            for job in task.jobs(both):
                own = found[job.place][job.row]
                own = own if job.head < 0 else own[:, job.head]
                n = both.shared[job.row]
                change = own[-n:].sum() if job.position is None else own[job.position]
                task.raw[job.cell] = task.ends[1, job.cell[0]] + float(change)
            bar.update(len(group))
    return task.answer("attribution patching", {})


def _run(task: Task, both: Both, jobs: Sequence[Job]) -> None:
    """Measure every job, as many rows at a time as the budget allows."""
    for some, logits in logits_of(task, both, jobs):
        pairs = torch.tensor([job.cell[0] for job in some])
        names = list(dict.fromkeys(str(job.place) for job in some))
        where = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        values = measured(task.metric, logits, pairs, f"after patching {where}")
        for job, value in zip(some, values.double().tolist(), strict=True):
            task.raw[job.cell] = value


def _first_order(task: Task, both: Both) -> dict[Place, Tensor]:
    """(clean - corrupted) . gradient at every place, `[row pos]`, of heads `[row pos head]`.

    Columns are counted from the end; those that a row's sides do not share mean nothing.
    """
    target = [both.corrupted.streams[place] for place in task.places]
    grads = torch.autograd.grad(both.values.sum(), target)
    found = {}
    for place, here, slope in zip(task.places, target, grads, strict=True):
        there = both.clean.streams[place]
        n = min(here.shape[1], there.shape[1])
        moved = there[:, -n:].double() - here[:, -n:].detach().double()
        found[place] = (moved * slope[:, -n:].double()).sum(-1).cpu()
    return found


def _same(job: Job, both: Both) -> bool:
    """Whether both runs hold the same state there, to the last bit."""
    n = both.shared[job.row]
    start, stop = (-n, None) if job.position is None else (job.position, job.position + 1 or None)
    a, b = (seen.streams[job.place][job.row, start:stop] for seen in (both.clean, both.corrupted))
    return torch.equal(a, b) if job.head < 0 else torch.equal(a[:, job.head], b[:, job.head])
