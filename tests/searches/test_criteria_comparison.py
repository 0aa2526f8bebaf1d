"""All criteria at once: each against an independent computation, their draws, their winners."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import calinski_harabasz_score, roc_auc_score, silhouette_score

from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo
from steerkit.searches.criteria import CRITERIA, compare_criteria, gap
from steerkit.searches.criteria.divergence import js
from steerkit.searches.criteria.rows import FIRST_REFITS, MATCHINGS, REFITS, Plan, Rows
from steerkit.searches.criteria.scores import spearman, wins
from steerkit.site import Site

N, D = 14, 10
INFO = ModelInfo("fake", "fake", 8, D, 9, 9, ("resid_post",), "float32", "cpu", "print")
LABELS = np.array([1] * N + [0] * N)
PAIRS = [f"pair{i % N}" for i in range(2 * N)]
# Templates: each on one side, of unequal size, as in most real contrasts.
LOOSE = [f"harm{i % 5}" for i in range(N)] + [f"calm{i % 4}" for i in range(N)]


def states(seed: int = 0, shift: float = 1.0, *, n: int = N, d: int = D) -> torch.Tensor:
    """Two clouds `[2n d]`, `shift` apart along the second axis."""
    x = torch.randn(2 * n, d, generator=torch.Generator().manual_seed(seed)).double()
    x[:n, 1] += shift
    return x


def rows(x: torch.Tensor, groups: list[str] = PAIRS, draws: int = 0) -> Rows:
    return Rows.of(x, Plan.of(LABELS, groups, n_resamples=draws, seed=3))


def copies(plan: Plan, draw: int) -> np.ndarray:
    """The rows of a draw, written out as often as they count."""
    return np.repeat(np.arange(2 * N), plan.weights[:, draw].int().numpy())


def planted(
    separations: list[float], *, n: int = 24, seed: int = 0, position: str = "last"
) -> Activations:
    x = torch.randn(2 * n, len(separations), D, generator=torch.Generator().manual_seed(seed))
    x[:n, :, 3] += torch.tensor(separations)
    return Activations(
        values=x,
        sites=tuple(Site(layer) for layer in range(len(separations))),
        prompts=tuple(Prompt(f"p{i}") for i in range(2 * n)),
        labels=(1,) * n + (0,) * n,
        groups=tuple(f"pair{i % n}" for i in range(2 * n)),
        pooling=position,
        info=INFO,
    )


@pytest.mark.parametrize("width", [D, 60], ids=["narrow", "wider than many"])
def test_silhouette_is_scikit_learns(width: int) -> None:
    x = states(d=width)
    assert CRITERIA["silhouette"](rows(x))[0] == pytest.approx(
        silhouette_score(x.numpy(), LABELS), abs=1e-9
    )


def test_silhouette_of_a_draw_compares_no_row_with_its_own_copy() -> None:
    x, plan = states(), rows(states(), draws=3).plan
    found = CRITERIA["silhouette"](Rows.of(x, plan))
    for draw in (1, 2, 3):
        listed = copies(plan, draw)
        total = 0.0
        for i in listed:
            others = listed[listed != i]
            far = (x[others] - x[i]).norm(dim=1).numpy()
            a, b = (far[LABELS[others] == side].mean() for side in (LABELS[i], 1 - LABELS[i]))
            total += (b - a) / max(a, b)
        assert found[draw] == pytest.approx(total / len(listed), abs=1e-9)


@pytest.mark.parametrize("width", [D, 60])
def test_fisher_is_calinski_and_harabasz_by_the_degrees_of_freedom(width: int) -> None:
    here = rows(states(d=width), LOOSE, draws=4)
    for draw, value in enumerate(CRITERIA["fisher"](here)):
        listed = copies(here.plan, draw)
        want = calinski_harabasz_score(here.x.numpy()[listed], LABELS[listed])
        assert value * (len(listed) - 2) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("width", [D, 60])
def test_the_effect_size_of_a_draw_is_that_of_its_rows(width: int) -> None:
    here = rows(states(d=width), LOOSE, draws=4)
    for draw, value in enumerate(CRITERIA["gap"](here)):
        listed = copies(here.plan, draw)
        a, b = (here.x[listed[LABELS[listed] == side]] for side in (1, 0))
        v = a.mean(0) - b.mean(0)
        u = v / v.norm()
        inside = torch.cat([(a - a.mean(0)) @ u, (b - b.mean(0)) @ u])
        assert value == pytest.approx(float(v.norm() / inside.pow(2).mean().sqrt()), rel=1e-9)
        assert gap(a, b) == pytest.approx(value, rel=1e-9)


def test_agreement_is_the_mean_over_all_pairs_of_pairs() -> None:
    x = states()
    differences = x[:N] - x[N:]
    cosines = torch.nn.functional.cosine_similarity(differences[:, None], differences[None], -1)
    want = float((cosines.sum() - cosines.trace()) / (N * (N - 1)))
    assert CRITERIA["agreement"](rows(x))[0] == pytest.approx(want, abs=1e-12)


def test_agreement_of_a_draw_leaves_a_pairs_own_copies_out() -> None:
    here = rows(states(), draws=3)
    differences = here.x[:N] - here.x[N:]
    cosines = torch.nn.functional.cosine_similarity(differences[:, None], differences[None], -1)
    for draw in (1, 2, 3):
        listed = copies(here.plan, draw)
        listed = listed[listed < N]
        found = [float(cosines[i, j]) for i in listed for j in listed if i != j]
        assert CRITERIA["agreement"](here)[draw] == pytest.approx(np.mean(found), abs=1e-12)


def test_one_direction_shared_by_all_pairs_agrees_fully_and_opposite_ones_do_not() -> None:
    base = states(shift=0)
    same = torch.cat([base[N:] + 3 * torch.eye(D)[0].double(), base[N:]])
    assert CRITERIA["agreement"](rows(same))[0] == pytest.approx(1)
    turned = same.clone()
    turned[: N // 2] -= 6 * torch.eye(D)[0].double()
    # Half of the pairs one way, half the other: (2 (n/2)^2 - 2 (n/2)^2 - n) / n(n-1).
    assert CRITERIA["agreement"](rows(turned))[0] == pytest.approx(-1 / (N - 1))


def test_stability_is_the_mean_cosine_of_explicit_refits() -> None:
    here = rows(states(), LOOSE, draws=2)
    counts, draw = here.plan.refits
    assert (draw == 0).sum() == FIRST_REFITS and (draw == 2).sum() == REFITS
    for number in (0, 2):
        units = []
        for weights in counts[draw == number]:
            w = weights.double()[torch.from_numpy(here.plan.groups)]
            a, b = (w * side for side in (here.plan.labels, 1 - here.plan.labels))
            v = (a @ here.x) / a.sum() - (b @ here.x) / b.sum()
            units.append(v / v.norm())
        together = torch.stack(units)
        cosines = together @ together.T
        k = len(units)
        want = float((cosines.sum() - k) / (k * (k - 1)))
        assert CRITERIA["stability"](here)[number] == pytest.approx(want, abs=1e-9)


def test_refits_resample_the_groups_of_their_own_draw() -> None:
    plan = rows(states(), LOOSE, draws=5).plan
    counts, draw = plan.refits
    for number in range(6):
        absent = plan.weights[:, number].numpy() == 0
        drawn = counts[draw == number].sum(0)[torch.from_numpy(plan.groups)].numpy()
        assert (drawn[absent] == 0).all()
    assert (counts.sum(1) == counts.shape[1]).all()


@pytest.mark.parametrize("groups", [PAIRS, LOOSE])
def test_auc_of_a_draw_refits_each_fold_on_its_rows(groups: list[str]) -> None:
    here = rows(states(shift=0.7), groups, draws=4)
    found = CRITERIA["auc"](here)
    for draw in range(5):
        right = compared = 0.0
        for train, test in here.plan.folds:
            fit, score = (
                np.repeat(part, here.plan.weights[part, draw].int().numpy())
                for part in (train, test)
            )
            sides = {*LABELS[fit]}, {*LABELS[score]}
            if sides != ({0, 1}, {0, 1}):
                continue
            x = here.x.numpy()
            w = x[fit[LABELS[fit] == 1]].mean(0) - x[fit[LABELS[fit] == 0]].mean(0)
            pairs = (LABELS[score] == 1).sum() * (LABELS[score] == 0).sum()
            right += pairs * roc_auc_score(LABELS[score], x[score] @ w)
            compared += pairs
        assert found[draw] == pytest.approx(right / compared, abs=1e-12)


@pytest.mark.parametrize("width", [D, 60], ids=["narrow", "wider than many"])
def test_the_probe_is_a_discriminant_with_scikit_learns_shrinkage(width: int) -> None:
    """Of each fold: S^-1 (mu+ - mu-), S on class-centred training rows; permuted labels too."""
    x = (states(shift=0.7, d=width) * torch.linspace(0.2, 3, width)).numpy()
    plan = Plan.of(LABELS, PAIRS, n_permutations=2, seed=3)
    found = CRITERIA["probe"](Rows.of(torch.from_numpy(x), plan))
    centred = x - x.mean(0)
    if width > 2 * N:  # shrinkage depends on width: that of the rows in their own axes
        u, spread, _ = np.linalg.svd(centred, full_matrices=False)
        centred = u * spread
    for draw in range(3):
        y = plan.y[:, draw].numpy()
        right = compared = 0.0
        for train, test in plan.folds:
            a, b = centred[train[y[train] == 1]], centred[train[y[train] == 0]]
            apart = np.concatenate([a - a.mean(0), b - b.mean(0)])
            if draw:
                apart = centred[train] - centred[train].mean(0)
            s, _ = ledoit_wolf(apart, assume_centered=True)
            w = np.linalg.solve(s, a.mean(0) - b.mean(0))
            pairs = (y[test] == 1).sum() * (y[test] == 0).sum()
            right += pairs * roc_auc_score(y[test], centred[test] @ w)
            compared += pairs
        assert found[draw] == pytest.approx(right / compared, abs=1e-9)


def test_the_probe_sees_what_the_spread_within_classes_hides() -> None:
    """A small shift beside a wide nuisance axis that it leans on."""
    x = states(shift=0.0) * 0.3
    nuisance = torch.randn(2 * N, generator=torch.Generator().manual_seed(9)).double() * 2
    x[:, 0] += nuisance
    x[:, 1] += nuisance
    x[:N, 1] += 2.0
    assert CRITERIA["probe"](rows(x))[0] > 0.95 > 0.8 > CRITERIA["auc"](rows(x))[0]


def test_the_divergence_of_a_draw_weighs_its_pairs() -> None:
    here = rows(states(), draws=3)
    for draw in range(4):
        listed = copies(here.plan, draw)
        listed = listed[listed < N]
        want = js(here.x[listed], here.x[listed + N])
        assert CRITERIA["js"](here)[draw] == pytest.approx(want, abs=1e-12)


def test_loose_prompts_are_matched_at_random_blind_to_labels_and_count_across_sides() -> None:
    plan = rows(states(), LOOSE, draws=2).plan
    assert len(plan.pairs) == MATCHINGS
    for (first, second), weights in zip(plan.pairs, plan.pair_weights, strict=True):
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(2 * N))
        side = plan.labels[first] - plan.labels[second]
        assert torch.equal(weights[:, 0].long(), side)
        both = plan.weights[first, 1] * plan.weights[second, 1]
        across = torch.from_numpy(plan.groups[first] != plan.groups[second])
        assert torch.equal(weights[across, 1], (side * both)[across])


def test_loose_divergence_and_agreement_are_means_over_the_pairs_across_sides() -> None:
    here = rows(states(), LOOSE)
    divergences, cosines = [], []
    for first, second in here.plan.pairs:
        across = here.plan.labels[first] != here.plan.labels[second]
        a, b = first[across], second[across]
        divergences += [js(here.x[i][None], here.x[j][None]) for i, j in zip(a, b, strict=True)]
        d = (here.x[a] - here.x[b]) * (2 * here.plan.labels[a] - 1)[:, None]
        c = torch.nn.functional.cosine_similarity(d[:, None], d[None], -1)
        cosines.append(float((c.sum() - len(d)) / (len(d) * (len(d) - 1))))
    assert CRITERIA["js"](here)[0] == pytest.approx(np.mean(divergences), abs=1e-12)
    assert CRITERIA["agreement"](here)[0] == pytest.approx(np.mean(cosines), abs=1e-12)


PERMUTED = [(name, PAIRS) for name in CRITERIA.names() if name not in ("probe", "stability")] + [
    (name, LOOSE) for name in ("fisher", "gap", "silhouette")
]


@pytest.mark.parametrize(("name", "groups"), PERMUTED)
def test_a_permutation_is_the_criterion_of_those_labels(name: str, groups: list[str]) -> None:
    x = states()
    plan = Plan.of(LABELS, groups, n_resamples=2, n_permutations=4, seed=3)
    found = CRITERIA[name](Rows.of(x, plan))
    assert len(found) == 7
    for draw in range(3, 7):
        labels = plan.y[:, draw].long().numpy()
        assert (labels != LABELS).any()
        alone = CRITERIA[name](Rows.of(x, Plan.of(labels, groups, seed=3)))
        assert found[draw] == pytest.approx(alone[0], abs=1e-12)


def test_stability_of_permuted_labels_refits_them() -> None:
    x = states()
    plan = Plan.of(LABELS, PAIRS, n_resamples=2, n_permutations=2, seed=3)
    counts, draw = plan.refits
    units = []
    for weights in counts[draw == 4]:
        w = weights.double()[torch.from_numpy(plan.groups)]
        a, b = w * plan.y[:, 4], w * (1 - plan.y[:, 4])
        v = (a @ x) / a.sum() - (b @ x) / b.sum()
        units.append(v / v.norm())
    cosines = torch.stack(units) @ torch.stack(units).T
    want = float((cosines.sum() - REFITS) / (REFITS * (REFITS - 1)))
    assert CRITERIA["stability"](Rows.of(x, plan))[4] == pytest.approx(want, abs=1e-9)


def test_what_is_planted_beats_permuted_labels_and_pairs_divergence_cannot() -> None:
    found = compare_criteria(planted([0.0, 0.0, 3.0]), normalise="none", n_resamples=0)
    p = {c.name: c.null.p for c in found.columns if c.null}
    assert p.pop("js") == 1 == p.pop("js_repo")
    assert all(value == 1 / 200 for value in p.values()), p
    loose = replace(planted([0.0, 0.0, 3.0]), groups=tuple(str(i) for i in range(48)))
    (column,) = compare_criteria(loose, "js", normalise="none", n_resamples=0).columns
    assert column.null is not None and column.null.p < 0.05


def test_p_values_are_uniform_where_there_is_nothing() -> None:
    """200 searches over three sites of noise; 99.9% binomial limits around 1 in 5."""
    names = ["agreement", "auc", "fisher", "gap", "probe", "silhouette", "stability"]
    rejected = dict.fromkeys(names, 0)
    for seed in range(200):
        nothing = planted([0.0] * 3, n=10, seed=seed)
        found = compare_criteria(
            nothing, names, normalise="none", n_resamples=0, n_permutations=19, seed=seed
        )
        for c in found.columns:
            rejected[c.name] += c.null is not None and c.null.p <= 0.2
    assert all(22 <= n <= 59 for n in rejected.values()), rejected


def test_the_divergence_does_not_know_which_of_a_pair_is_which() -> None:
    """Random labels within pairs leave it as it is: it cannot tell a concept from a topic."""
    x = states(shift=3.0)
    swapped = x.clone()
    swapped[: N // 2], swapped[N : N + N // 2] = x[N : N + N // 2], x[: N // 2]
    for name in ("js", "js_repo"):
        assert CRITERIA[name](rows(swapped))[0] == pytest.approx(CRITERIA[name](rows(x))[0])
    for name in ("agreement", "auc", "fisher", "gap", "silhouette", "stability"):
        assert CRITERIA[name](rows(swapped))[0] < 0.7 * CRITERIA[name](rows(x))[0]


@pytest.mark.parametrize("name", CRITERIA.names())
def test_where_all_states_are_the_same_there_is_nothing_and_no_nan(name: str) -> None:
    flat = torch.ones(2 * N, D) + 1e-8 * states().float()
    found = CRITERIA[name](rows(flat, LOOSE, draws=3))
    if name != "js_repo":
        assert found == pytest.approx(0.5 if name in ("auc", "probe") else 0.0)
    assert np.isfinite(found).all()


ORDERED = [(name, PAIRS) for name in CRITERIA.names()] + [
    # Those of pairs pair loose prompts at random.
    (name, LOOSE) for name in ("auc", "fisher", "gap", "silhouette", "stability")
]  # fmt: skip


@pytest.mark.parametrize(("name", "groups"), ORDERED)
def test_the_order_of_rows_does_not_matter(name: str, groups: list[str]) -> None:
    x = states()
    order = np.random.default_rng(1).permutation(2 * N)
    plan = Plan.of(LABELS[order], [groups[i] for i in order], n_resamples=5, seed=3)
    mixed = CRITERIA[name](Rows.of(x[order], plan))
    assert mixed == pytest.approx(CRITERIA[name](rows(x, groups, draws=5)), abs=1e-9)


@pytest.mark.parametrize("name", [n for n in CRITERIA.names() if n != "js_repo"])
def test_the_planted_site_and_position_wins_the_resamples(name: str) -> None:
    there = planted([0.0, 0.4, 3.5, 0.8])
    elsewhere = planted([0.0, 0.3, 0.5, 0.2], seed=1, position="index(-2)")
    found = compare_criteria({"last": there, "index(-2)": elsewhere}, name, n_resamples=100)
    for column in found.columns:
        assert str(found.best(column.label)) == "resid_post@2, last"
        assert sum(column.chosen) == pytest.approx(1)
        # Divergences of 24 pairs are noisy; the other criteria are not.
        assert column.chosen[2] > (0.75 if name == "js" else 0.9)
        assert found.winners[column.label] == (found.places[2], column.chosen[2])


def test_on_nothing_no_place_wins_as_a_planted_one_does() -> None:
    """Chance picks a winner too, so the share it wins is spread out, seed by seed."""
    shares: dict[str, list[float]] = {}
    for seed in range(6):
        nothing = planted([0.0] * 6, seed=seed)
        for c in compare_criteria(
            nothing, normalise="none", n_resamples=100, n_permutations=0
        ).columns:
            assert sum(c.chosen) == pytest.approx(1)
            shares.setdefault(c.label, []).append(max(c.chosen))
    for label, found in shares.items():
        assert np.mean(found) < (0.8 if label.startswith("js") else 0.65), label


def test_equals_share_a_resample_and_one_without_a_number_is_left_out() -> None:
    nan, inf = np.nan, np.inf
    draws = np.array([[1.0, 2, nan, 1, inf], [1.0, 3, nan, nan, inf]])
    assert wins(draws) == pytest.approx([(0.5 + 0 + 1 + 0.5) / 4, (0.5 + 1 + 0 + 0.5) / 4])
    assert wins(np.full((2, 3), nan)) == pytest.approx([0, 0])


def test_standard_errors_are_those_of_the_mean() -> None:
    """The divergence is a mean over pairs, whose standard error is known."""
    acts = planted([1.0], n=200)
    (column,) = compare_criteria(
        acts, "js", normalise="none", n_resamples=2000, n_permutations=0
    ).columns
    x = acts.values[:, 0].double()
    one = [js(x[i : i + 1], x[200 + i : 201 + i]) for i in range(200)]
    assert column.values[0] == pytest.approx(np.mean(one))
    assert column.errors[0] == pytest.approx(np.std(one, ddof=1) / np.sqrt(200), rel=0.08)


def test_loose_standard_errors_are_those_of_two_samples() -> None:
    """Over many redrawn samples the spread of the divergence is what the bootstrap says."""
    values, errors = [], []
    for seed in range(60):
        x = states(seed, n=30)
        plan = Plan.of([1] * 30 + [0] * 30, [str(i) for i in range(60)], n_resamples=100, seed=seed)
        draws = CRITERIA["js"](Rows.of(x, plan))
        values.append(draws[0])
        errors.append(draws[1:].std(ddof=1))
    assert 0.7 < np.mean(errors) / np.std(values, ddof=1) < 1.5


def test_the_table_sets_criteria_side_by_side() -> None:
    found = compare_criteria(planted([0.0, 2.0, 1.0]), ["gap", "js"], n_resamples=20)
    assert found.labels == ("gap", "js", "gap (rms)", "js (rms)")
    agreement = found.agreement
    assert np.diag(agreement) == pytest.approx(1)
    assert agreement[0, 1] == pytest.approx(
        spearman(np.array(found.column("gap").values), np.array(found.column("js").values))
    )
    header, _, *lines = found.table().splitlines()
    assert header == "| site | position | gap | js | gap (rms) | js (rms) |"
    assert len(lines) == 3 and lines[1].count("**") == 8
    assert "gap: resid_post@1, last" in found.summary()
    data = found.to_json()
    assert data["best"]["js"]["site"] == "resid_post@1"
    assert data["columns"][0]["values"] == list(found.column("gap").values)
    assert "<b>Criteria</b>" in found._repr_html_()
    assert found.column("js").z.mean() == pytest.approx(0)
    with pytest.raises(MethodError, match="did you mean 'gap'"):
        found.best("gaps")


def test_every_criterion_is_there_by_default_raw_and_normalised() -> None:
    found = compare_criteria(planted([0.0, 1.0]), n_resamples=0)
    want = (
        "agreement",
        "auc",
        "fisher",
        "gap",
        "js",
        "js_repo",
        "probe",
        "silhouette",
        "stability",
    )
    assert found.labels == (*want, *(f"{name} (rms)" for name in want))
    assert found.columns[0].chosen == () and np.isnan(found.columns[0].errors[0])


def test_rms_takes_the_scale_of_each_state_out_of_every_criterion() -> None:
    acts = planted([1.0, 2.0])
    sizes = torch.rand(len(acts), 2, 1, generator=torch.Generator().manual_seed(5)) + 0.5
    scaled = replace(acts, values=acts.values * sizes)
    a, b = (compare_criteria(x, normalise="rms", n_resamples=0) for x in (acts, scaled))
    for one, other in zip(a.columns, b.columns, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-5, abs=1e-7)


def _other_prompts() -> dict[str, Activations]:
    acts = planted([0.0])
    return {"last": acts, "mean_prompt": replace(acts, groups=acts.groups[::-1])}


@pytest.mark.parametrize(
    ("given", "settings", "error", "text"),
    [
        (planted([0.0]), {"names": "silhouete"}, MethodError, "did you mean 'silhouette'"),
        (planted([0.0]), {"normalise": "rsm"}, MethodError, "did you mean 'rms'"),
        ({}, {}, ActivationError, "no activations"),
        (_other_prompts(), {}, ActivationError, "'last' and 'mean_prompt' were read on different"),
        (replace(planted([0.0]), labels=(1,) * 48), {}, ActivationError, "hold only one"),
        (replace(planted([0.0]), labels=()), {}, ActivationError, "no labels"),
    ],
)
def test_bad_input(given: Any, settings: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        compare_criteria(given, **settings)


def test_one_row_a_token_is_refused() -> None:
    acts = planted([0.0])
    twice = replace(
        acts,
        values=acts.values.repeat(2, 1, 1),
        prompt_index=acts.prompt_index.repeat(2),
        positions=acts.positions.repeat(2),
        tokens=acts.tokens.repeat(2),
    )
    with pytest.raises(ActivationError, match="96 rows for 48 prompts"):
        compare_criteria(twice)
