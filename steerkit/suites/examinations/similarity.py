"""Where do its states differ from another model's?"""

import numpy as np

from steerkit.audits.section import Section
from steerkit.comparisons import representational_similarity
from steerkit.comparisons.similarity_result import TITLES
from steerkit.plotting.style import PALETTE
from steerkit.plotting.suites import layer_curve
from steerkit.suites.finding import ROUNDING, Finding
from steerkit.suites.registry import register
from steerkit.suites.subject import AGAINST, Subject

ASKED = 100
"""Prompts a side: distances are between all pairs of them."""


@register(
    "similarity",
    question="Do its states differ from the other model's?",
    needs=("refusal",),
    arms=(AGAINST,),
    source="debiased linear CKA (arXiv:1905.00414), RSA, Procrustes, layer by layer",
)
def similarity(subject: Subject) -> Finding:
    """Similarity at every layer; yes where any layer's interval stays below 1, beyond rounding.

    Yes means that the geometry of its states is another one at the last prompt token, in whatever
    respect. Rotations and scales of the whole stream leave all three measures at 1, so no means
    that nothing else happened there, and neither says anything of behaviour.
    """
    assert subject.against is not None
    found = representational_similarity(
        subject.against,
        subject.model,
        subject.contrast("refusal").sample(ASKED, seed=subject.seed),
        seed=subject.seed,
        token_budget=subject.token_budget,
        progress=False,
    )
    site, least = found.least("cka")
    lowest = {m.name: found.least(m.name)[1] for m in found.measures}
    every = [v for m in found.measures for v in m.values if not np.isnan(v.value)]
    same = found.unchanged or (bool(every) and all(v.low >= 1 - ROUNDING for v in every))
    changed = any(v.high < 1 - ROUNDING for v in every)
    return Finding(
        "no" if same else "yes" if changed else "inconclusive",
        "Every measure is 1 at every layer, but for rounding."
        if same
        else f"Least alike at {site}: CKA {least}.",
        {f"{name}, lowest": value for name, value in lowest.items()},
        headline="cka, lowest",
        bound=1.0,
        evidence=Section(
            "Similarity layer by layer",
            "\n\n".join(found.summary().splitlines()),
            figure=layer_curve(
                [str(found.sites_a[i]) for i, _ in found.pairs],
                {TITLES[m.name]: m.values for m in found.measures},
                y="similarity (1 = equal)",
                nulls={
                    f"{TITLES[m.name]}, re-paired prompts, 95% below": [n.q95 for n in m.nulls]
                    for m in found.measures
                },
                colours={
                    name: colour
                    for m, colour in zip(found.measures, PALETTE, strict=False)
                    for name in (TITLES[m.name], f"{TITLES[m.name]}, re-paired prompts, 95% below")
                },
            ),
        ),
    )
