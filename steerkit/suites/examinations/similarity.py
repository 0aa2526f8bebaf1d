"""Where do its states differ from another model's?"""

from steerkit.audits.section import Section
from steerkit.comparisons import representational_similarity
from steerkit.plotting.comparisons import similarity_map
from steerkit.suites.finding import Finding
from steerkit.suites.registry import register
from steerkit.suites.subject import AGAINST, Subject


@register(
    "similarity",
    question="Do its states differ from the other model's?",
    needs=("refusal",),
    arms=(AGAINST,),
    source="debiased linear CKA (arXiv:1905.00414), RSA, Procrustes, layer by layer",
)
def similarity(subject: Subject) -> Finding:
    """Similarity at every layer; yes where any layer's interval stays below 1."""
    assert subject.against is not None
    found = representational_similarity(
        subject.against,
        subject.model,
        subject.contrast("refusal"),
        seed=subject.seed,
        token_budget=subject.token_budget,
        progress=False,
    )
    site, least = found.least("cka")
    lowest = {m.name: found.least(m.name)[1] for m in found.measures}
    changed = any(v.high < 1 for m in found.measures for v in m.values)
    return Finding(
        "no" if found.unchanged else "yes" if changed else "inconclusive",
        "Every measure is 1 at every layer."
        if found.unchanged
        else f"Least alike at {site}: CKA {least}.",
        {f"{name}, lowest": value for name, value in lowest.items()},
        evidence=Section(
            "Similarity layer by layer",
            "\n\n".join(found.summary().splitlines()),
            figure=similarity_map(found),
        ),
    )
