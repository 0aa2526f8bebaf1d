"""`measure_token_shift`: at which tokens does the aligned model leave its base?"""

from collections.abc import Callable

import numpy as np

from steerkit.comparisons.common import Prompts, provenance, read_prompts, require_one_tokenizer
from steerkit.comparisons.forced import forced_tokens
from steerkit.comparisons.token_kinds import token_kind
from steerkit.comparisons.token_shift_result import TokenShift
from steerkit.errors import MethodError
from steerkit.prompts import Contrast
from steerkit.protocols import Model
from steerkit.scoring import TOKEN_BUDGET, with_own_answers


def measure_token_shift(
    base: Model,
    aligned: Model,
    prompts: Prompts,
    *,
    max_new_tokens: int = 32,
    first: int = 5,
    temperature: float = 1.0,
    reference: Model | None = None,
    kinds: Callable[[str], str] = token_kind,
    seed: int = 0,
    token_budget: int = TOKEN_BUDGET,
    progress: bool = True,
) -> TokenShift:
    """Rank of each token of the aligned model's answers under the base model.

    The aligned model answers greedily; both models are then teacher-forced on the very same ids,
    prompt included (rendered as the aligned model's tokenizer does), in one batched pass each.
    A token of rank 1 under base is unshifted, 2 or 3 marginal, above 3 shifted.

    Greedy answers favour agreement later on, where what was said already binds both models. So
    the aligned model's samples are measured beside, and there the rank of a token under its own
    model is what a model that was not changed gives.

    Args:
        base: the model before, plain or steered.
        aligned: the model after, of the same tokenizer.
        prompts: a contrast or prompts; one that occurs twice counts once. Sides of a contrast
            are compared.
        max_new_tokens: of each answer.
        first: tokens that count as the answer's beginning.
        temperature: of the sampled answers; 0 leaves them out.
        reference: a third model judged on the same greedy answers, such as another base
            checkpoint or the base in lower precision: what counts as no change.
        kinds: the class of a decoded token.
        seed: of sampling and resampling.
        token_budget: padded tokens a forward pass.
        progress: show bars on stderr.

    Raises:
        ModelError: tokenizers that differ.
        PromptError: no prompts, one too long, or nothing but empty answers.
        MethodError: no tokens to generate or a `first` below 1.

    Source: Lin et al. 2023 (arXiv:2312.01552).
    """
    if max_new_tokens < 1 or first < 1:
        raise MethodError(
            f"answers and their beginnings are at least one token; got {max_new_tokens} and {first}"
        )
    read, groups = read_prompts(prompts)
    models = (base,) if reference is None else (base, reference)
    for model in models:
        require_one_tokenizer(aligned, model, read)
    found = []
    for heat in (0.0, temperature)[: 2 if temperature > 0 else 1]:
        completions = aligned.generate(
            read, max_new_tokens=max_new_tokens, temperature=heat, seed=seed, progress=progress
        )
        answers = with_own_answers(completions)
        for model in models if heat == 0 else models[:1]:
            found.append(
                forced_tokens(
                    aligned, model, answers, groups, kind=kinds, token_budget=token_budget
                )
            )
    sides: tuple[int, ...] = ()
    if isinstance(prompts, Contrast):
        label = dict(zip(reversed(prompts.prompts), reversed(prompts.labels), strict=True))
        sides = tuple(label[p] for p in read)
    n = len(models)
    return TokenShift(
        prompts=tuple(p.text for p in read),
        categories=tuple(p.category for p in read),
        groups=groups,
        sides=sides,
        first=first,
        greedy=found[0],
        reference=found[1] if reference is not None else None,
        sampled=found[n] if temperature > 0 else None,
        seed=seed,
        provenance=provenance(
            base,
            aligned,
            reference=reference.info.to_json() if reference is not None else None,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            mean_answer_tokens=float(np.bincount(found[0].prompt, minlength=len(read)).mean()),
        ),
    )
