"""BiasLens: does a model hold a concept closer to one of two others? Without a test set.

A concept is the normal of a probe that tells sentences about it from the same sentences about
something else. The bias of a target t between the references r1 and r2 is

    S_l(t) = cos(C_t, C_r1) - cos(C_t, C_r2)        at layer l,

averaged over the layers at which the target's and both references' probes work on templates that
they were not fitted on, and a probe of r1 against r2 on words that it was not fitted on. The
signed average says towards which; the published score is the average of |S_l|, which noise alone
makes larger than 0.

The default vector is the mean difference, not the published logistic one. Negatives of a target
differ among themselves in the very thing that is asked about; to a probe that separates them from
the target this is noise, which it learns to ignore. Weights show what discriminates, mean
differences what is there (Haufe et al. 2014, NeuroImage 87, 96).

Source: arXiv:2505.15524. No code is public; this is a reconstruction, with intervals (templates
are resampled and every probe fitted again) and two nulls (sentences of the references exchanged,
random directions in the target's place), of which a target has to beat both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version

from steerkit.activations import Activations
from steerkit.captures import capture
from steerkit.concepts.bias_probes import Concept, Draws
from steerkit.concepts.bias_references import fit_references, unit_columns
from steerkit.concepts.bias_result import BiasLens, TargetBias
from steerkit.concepts.bias_scores import SiteBiases, corrected, site_biases, target_bias
from steerkit.concepts.cavs import Method, PlainCav, Representation
from steerkit.errors import MethodError
from steerkit.prompts import Contrast
from steerkit.protocols import Model
from steerkit.site import Site


def bias_lens(
    model: Model,
    targets: Mapping[str, Contrast],
    references: tuple[Contrast, Contrast],
    *,
    sites: Iterable[Site | str | int] | None = None,
    positions: str | int = "last",
    method: Method = "mean_difference",
    represent: Representation | None = None,
    gate: float = 0.8,
    n_resamples: int = 200,
    n_permutations: int = 999,
    n_random: int = 9_999,
    seed: int = 0,
    progress: bool = True,
) -> BiasLens:
    """Bias of each target concept between two reference concepts.

    Use matched contrasts (`datasets.swapped`): positives and negatives that differ in the
    concept's word alone. Negatives from elsewhere make the probe read style.

    Args:
        model: plain or steered.
        targets: a contrast for each target concept, its groups being templates.
        references: contrasts of r1 and r2; a positive bias leans to r1.
        sites: `resid_post` of every layer by default, or the sites of `represent` where it has
            its own.
        positions: the token that is read, as in `capture`.
        method: of the probes, `mean_difference` or `logistic`.
        represent: what stands for a concept, given its probe (`SaeCodes`, as published); the
            probe's normal by default. With another one the result holds the default beside it,
            as `ablation`. A site where it gives nothing at all (no active latent) does not count.
        gate: held-out AUC that a site needs to count: of the target's probe and both references'
            on unseen templates, and of r1 against r2 on unseen words (prompts' `category`; on
            unseen templates where a reference has one word).
        n_resamples: of the templates, each with all probes fitted again.
        n_permutations: exchanges of the references; with T targets, Holm's correction can find
            something only from about 20 T on.
        n_random: random directions in the target's place.
        seed: of folds, resamples and permutations.
        progress: show a bar on stderr.

    Raises:
        MethodError: no targets, too few groups, a gate that is no AUC.
    """
    from tqdm.auto import tqdm

    _check(targets, gate, n_resamples, n_permutations, n_random)
    sites = _chosen(sites, represent)

    def taken(contrast: Contrast) -> Activations:
        return capture(model, contrast, sites=sites, positions=positions, progress=False)

    draws = Draws(n_resamples, n_permutations, n_random, seed)
    both = [Concept.of(c.name, taken(c), draws) for c in references]
    plain = PlainCav()
    arms: list[Representation] = [] if represent is None else [represent]
    arms.append(plain)
    found_sites = both[0].acts.sites
    fitted = [fit_references(both, i, draws, method, arms) for i in range(len(found_sites))]
    rows: dict[str, list[TargetBias]] = {arm.name: [] for arm in arms}
    for name, contrast in tqdm(targets.items(), desc="bias lens", disable=not progress):
        concept = Concept.of(name, taken(contrast), draws)
        aucs: list[float] = []
        signed: dict[str, list[SiteBiases]] = {arm.name: [] for arm in arms}
        for i, site in enumerate(found_sites):
            cavs, held = concept.fit(i, draws, method)
            aucs.append(held)
            for arm in arms:
                signed[arm.name].append(
                    site_biases(unit_columns(arm(site, cavs)), fitted[i], arm.name, draws)
                )
        passed = [
            i
            for i in range(len(found_sites))
            if min(aucs[i], *fitted[i].aucs, fitted[i].between) >= gate
        ]
        for arm in arms:
            rows[arm.name].append(
                target_bias(name, found_sites, aucs, signed[arm.name], passed, concept)
            )
    results = [
        BiasLens(
            targets=corrected(rows[arm.name]),
            references=(both[0].name, both[1].name),
            representation=arm.name,
            sites=tuple(map(str, found_sites)),
            reference_aucs=tuple(f.aucs for f in fitted),
            between_aucs=tuple(f.between for f in fitted),
            reference_cosines=tuple(
                float(f.units[arm.name][0][:, 0] @ f.units[arm.name][1][:, 0]) for f in fitted
            ),
            reference_active=tuple(f.active[arm.name] for f in fitted),
            gate=gate,
            provenance={
                "model": model.info.name,
                "fingerprint": model.info.fingerprint,
                "method": method,
                "positions": str(positions),
                "n_resamples": n_resamples,
                "n_permutations": n_permutations,
                "n_random": n_random,
                "seed": seed,
                "versions": {name: version(name) for name in ("steerkit", "torch")},
            },
        )
        for arm in arms
    ]  # fmt: skip
    return results[0] if len(results) == 1 else replace(results[0], ablation=results[1])


def _check(targets: Mapping[str, Contrast], gate: float, *numbers: int) -> None:
    if not targets:
        raise MethodError("there are no target concepts; give a contrast for each")
    if not 0.0 <= gate <= 1.0:
        raise MethodError(f"the gate is an AUC between 0 and 1; got {gate}")
    if min(numbers) < 0:
        raise MethodError(f"numbers of draws are not negative; got {min(numbers)}")


def _chosen(
    sites: Iterable[Site | str | int] | None, represent: Representation | None
) -> tuple[Site, ...] | None:
    """The sites to read: those asked for, else those that the representation is made for."""
    own: tuple[Site, ...] | None = getattr(represent, "sites", None)
    asked = own if sites is None else tuple(Site.parse(site) for site in sites)
    missing = [str(site) for site in asked or () if own is not None and site not in own]
    if missing:
        raise MethodError(
            f"{getattr(represent, 'name', 'the representation')} is made for "
            f"{', '.join(map(str, own or ()))}, not for {', '.join(missing)}; leave sites out, or "
            "give a representation there"
        )
    return asked
