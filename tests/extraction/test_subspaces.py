"""`extract_subspace`: a basis for each site, its score, its nulls, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.activations import Activations
from steerkit.errors import ActivationError, DirectionError, MethodError
from steerkit.extraction import SPANS, Subspace, Subspaces, extract, extract_subspace, spanning
from steerkit.extraction.subspace_scores import discriminants
from steerkit.kernels.reference import apply, pack
from steerkit.program import Program
from steerkit.site import Site
from steerkit.statistics import auc, grouped_folds

Make = Callable[..., Activations]
QUICK = {"n_permutations": 19, "n_random": 19, "progress": False}
SAME = {"inlp": "ridge"}


def several(make: Make, n: int = 120, d: int = 12, *, size: float = 3.0) -> Activations:
    """Pairs of three categories, each moved along an axis of its own."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, n, 2, d, generator=generator) + 2
    category = torch.arange(n) % 3
    rows[0, torch.arange(n), 0, category] += size
    rows[0, torch.arange(n), 1, category] += size / 4
    acts = make(rows[0], rows[1], paired=True)
    names = [f"kind {int(c)}" for c in category] * 2
    named = [replace(p, category=c) for p, c in zip(acts.prompts, names, strict=True)]
    return replace(acts, prompts=tuple(named))


@pytest.mark.parametrize("name", SPANS.names())
def test_one_axis_scores_what_the_direction_scores(name: str, make: Make) -> None:
    acts = several(make)
    for one, line in zip(
        extract_subspace(acts, name, k=1, **QUICK),
        extract(acts, SAME.get(name, name), **QUICK),
        strict=True,
    ):
        assert one.angles(line)[0] < 1e-3, "degrees"
        assert one.scores is not None and line.scores is not None
        # Where a fold's probe turns the axis round, its AUC counts the other way.
        assert one.scores.auc == line.scores.auc
        assert one.scores.permutation.n == 19 and one.scores.random.n == 19
        assert one[0].scale == pytest.approx(line.scale, rel=1e-5)


def test_three_axes_read_what_one_cannot(make: Make) -> None:
    acts = several(make)
    found = extract_subspace(acts, "mean_difference", k=3, by_category=True, **QUICK)[0]
    truth = torch.eye(12)[:3].double()
    assert float(torch.linalg.svdvals(found.basis.double() @ truth.T)[-1]) > 0.95
    assert found.scores is not None
    assert found.scores.permutation.p == 0.05 and found.scores.random.q95 < found.scores.auc.low
    line = extract_subspace(acts, "mean_difference", k=1, **QUICK)[0]
    left = sk.Ablate(line), sk.Ablate(found)
    h = acts.at(0).double()[None]
    gaps = []
    for operator in left:
        out = apply(
            pack((Program(), operator.lower(Site(0))), h.device, h.dtype),
            h,
            absolute=torch.arange(h.shape[1])[None],
            prompt_len=torch.tensor([h.shape[1]]),
            row=torch.zeros(1, dtype=torch.long),
            slot=(1,),
        )[0]
        kinds = torch.arange(120) % 3
        gaps.append(max(float((out[:120] - out[120:])[kinds == c].mean(0).norm()) for c in (0, 1)))
        if len(operator.directions) == 3:
            assert float((out @ found.basis.double().T).abs().max()) < 1e-5
            outside = torch.eye(12, dtype=torch.float64) - found.basis.double().T @ (
                found.basis.double()
            )
            assert torch.allclose(out, h[0] @ outside, atol=1e-5)
    assert gaps[1] < 0.5 < 1.5 < gaps[0], "the line leaves the categories apart, the span not"


def test_held_out_scores_are_those_of_refits_that_never_saw_the_fold(make: Make) -> None:
    acts = several(make, n=30, size=1.5)
    found = extract_subspace(acts, "pca", k=2, n_permutations=0, n_random=0, progress=False)[0]
    x, y = acts.at(0).double().numpy(), acts.row_labels.numpy()
    right = compared = 0.0
    for train, test in grouped_folds(y, acts.groups):
        high = {acts.groups[i]: x[i] for i in train if y[i] == 1}
        low = {acts.groups[i]: x[i] for i in train if y[i] == 0}
        basis = np.linalg.svd(np.stack([high[g] - low[g] for g in high]))[2][:2].T
        inside = x[train] @ basis
        one, other = inside[y[train] == 1], inside[y[train] == 0]
        within = np.cov(one.T, bias=True) * len(one) + np.cov(other.T, bias=True) * len(other)
        w = basis @ np.linalg.solve(within, one.mean(0) - other.mean(0))
        pairs = (y[test] == 1).sum() * (y[test] == 0).sum()
        right, compared = right + pairs * auc(x[test] @ w, y[test]), compared + pairs
    assert found.scores is not None
    assert found.scores.auc.value == pytest.approx(right / compared, abs=1e-12)


def test_the_probe_inside_is_fishers() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    labels = (torch.rand(40, 2, generator=generator) > 0.4).double()
    w = discriminants(inside, labels)
    for column in range(2):
        z, y = inside[column], labels[:, column] == 1
        one, other = z[y] - z[y].mean(0), z[~y] - z[~y].mean(0)
        expected = torch.linalg.solve(one.T @ one + other.T @ other, z[y].mean(0) - z[~y].mean(0))
        assert float(torch.cosine_similarity(w[column], expected, dim=0)) > 1 - 1e-9


def test_k_is_chosen_by_held_out_score_and_the_nulls_choose_too(make: Make) -> None:
    acts = several(make)
    found = extract_subspace(acts, "mean_difference", k=(3, 1, 2), by_category=True, **QUICK)
    for item in found:
        assert sorted(item.tried) == [1, 2, 3]
        values = {k: auc.value for k, auc in item.tried.items()}
        assert item.k == min(k for k in values if values[k] == max(values.values()))
        assert item.scores is not None and item.scores.auc == item.tried[item.k]
        alone = [
            extract_subspace(acts, "mean_difference", k=k, by_category=True, **QUICK)
            for k in (1, 2, 3)
        ]
        same = [s.at(item.site) for s in alone]
        assert all(
            item.scores.permutation.maximum >= s.scores.permutation.maximum  # type: ignore[union-attr]
            for s in same
        )
        assert item.scores.family is not None
        assert item.scores.family.q95 >= item.scores.permutation.q95 - 1e-12
        assert item.provenance["k_tried"] == [1, 2, 3]


def test_everything_follows_from_the_seed_and_not_from_the_order_of_prompts(make: Make) -> None:
    acts = several(make, n=30)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1)).tolist()
    moved = replace(
        acts,
        values=acts.values[order],
        prompts=tuple(acts.prompts[i] for i in order),
        labels=tuple(acts.labels[i] for i in order),
        groups=tuple(acts.groups[i] for i in order),
    )
    for name in SPANS.names():
        k = 1 if name in ("leace", "mean_difference") else 2
        a, b, c = (extract_subspace(x, name, k=k, seed=4, **QUICK)[0] for x in (acts, acts, moved))
        assert torch.equal(a.basis, b.basis) and a.scores == b.scores
        assert float(a.angles(c).max()) < 1e-3
        assert a.scores is not None and c.scores is not None
        assert a.scores.auc.value == pytest.approx(c.scores.auc.value)


def test_axes_are_directions_with_their_class_means(make: Make) -> None:
    acts = several(make)
    found = extract_subspace(acts, "pca", k=3, n_folds=0, progress=False)[0]
    assert found.scores is None and len(found) == found.k == 3
    z = found.coordinates(acts.at(0))
    for number, axis in enumerate(found):
        high, low = float(z[:120, number].mean()), float(z[120:, number].mean())
        assert axis.positive_mean == pytest.approx(high, rel=1e-4)
        assert axis.negative_mean == pytest.approx(low, rel=1e-4)
        assert axis.scale == pytest.approx(high - low, rel=1e-3) and axis.scale > 0
        assert axis.examples[0][0][1] == pytest.approx(float(z[:, number].max()), rel=1e-4)
    inside = found.inside(acts.at(0))
    assert torch.allclose(found.inside(inside), inside, atol=1e-5)
    low, high = z[120:].mean(0), sk.Ablate(found, reference="negative_mean").group().offset
    assert torch.allclose(low.double(), high, atol=1e-4), "the reference is the class mean"
    assert sk.Add(found[0]).sites == (Site(0),)


def test_an_axis_along_which_the_classes_do_not_differ_has_the_scale_of_rounding(
    make: Make,
) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(50, 4, generator=generator)
    other = shared.clone()
    shared[:, 0] += 1
    shared[:, 1] += torch.tensor([4.0, -4.0]).repeat(25)  # pairs differ, classes do not
    found = extract_subspace(make(shared, other, paired=True), "pca", k=2, n_folds=0)[0]
    flat, real = found
    assert flat.unit.abs().argmax() == 1 and flat.scale < 1e-4 < 0.9 < real.scale


@pytest.mark.parametrize(
    "method, k, more, said",
    [
        ("mean_difference", 2, {}, r"k 2 is more than the rank 1 .*\(one label; by_category"),
        ("leace", 4, {"by_category": True}, r"rank 3 of 'leace' at resid_post@0.*a category\)"),
        ("pca", 13, {}, r"rank 12 of 'pca' at .* 240 rows of width 12; ask for k up to 12"),
    ],
)
def test_more_dimensions_than_there_are(method, k, more, said, make: Make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ActivationError, match=said):
        extract_subspace(several(make), method, k=k, **more, **QUICK)


def test_more_dimensions_than_a_fold_has(make: Make) -> None:
    acts = several(make, n=10)
    with pytest.raises(
        ActivationError, match=r"k 10 is more than the 8 dim.*training rows of fold"
    ):
        extract_subspace(acts, "pca", k=10, **QUICK)


def test_refused(make: Make) -> None:
    acts = several(make, n=12)
    for wrong in (0, -1, (), (1, 0), True):
        with pytest.raises(MethodError, match="k is a number of dimensions, at least 1"):
            extract_subspace(acts, "pca", k=wrong, **QUICK)
    with pytest.raises(MethodError, match="chosen by held-out score, which n_folds=0 leaves out"):
        extract_subspace(acts, "pca", k=(1, 2), n_folds=0)
    lone = replace(acts, prompts=(replace(acts.prompts[0], category="odd"), *acts.prompts[1:]))
    with pytest.raises(ActivationError, match=r"category 'odd' has no negative prompts.*spanning"):
        extract_subspace(lone, "leace", k=1, by_category=True, **QUICK)
    with pytest.raises(MethodError, match="no subspace method named 'lda'"):
        extract_subspace(acts, "lda", k=2, **QUICK)


def test_several_directions_span_a_subspace(make: Make) -> None:
    acts = several(make)
    lines = [extract(acts, m, **QUICK).at(0) for m in ("mean_difference", "pca", "lda")]
    found = spanning(lines, acts, concept="all")
    assert found.k == 3 and found.concept == "all" and found.scores is None
    assert float(found.angles(lines[2])[0]) < 1e-2 and torch.equal(found[0].unit, lines[0].unit)
    assert found[0].negative_mean == pytest.approx(lines[0].negative_mean, rel=1e-5)
    gap = acts.at(0)[:120].mean(0) - acts.at(0)[120:].mean(0)
    assert found[2].scale == pytest.approx(abs(float(gap @ found[2].unit)), abs=1e-4)
    with pytest.raises(DirectionError, match=r"direction 2, .* lies in the span of those before"):
        spanning([lines[0], lines[1], lines[0]], acts)
    with pytest.raises(DirectionError, match="read at different sites"):
        spanning([lines[0], extract(acts, **QUICK).at(1)], acts)


def test_it_is_saved_and_read_and_refused_on_another_model(
    make: Make, model_info: Callable, tmp_path: Path
) -> None:
    acts = several(make)
    found = extract_subspace(acts, "leace", k=(1, 3), by_category=True, **QUICK)
    again = Subspaces.load(found.save(tmp_path / "subspaces.safetensors"))
    for a, b in zip(found, again, strict=True):
        assert torch.equal(a.basis, b.basis)
        assert (a.scores, a.tried, a.k, a.site) == (b.scores, b.tried, b.k, b.site)
        assert a[0].positive_mean == b[0].positive_mean and a.to_json()["axes"][0]["examples"]
    one = found.best.save(tmp_path / "one.safetensors")
    assert Subspace.load(one).site == found.best.site
    with pytest.raises(DirectionError, match=r"holds 2 subspaces; use Subspaces.load"):
        Subspace.load(tmp_path / "subspaces.safetensors")

    class Other:
        info = model_info(12, fingerprint="e" * 64)

    with pytest.raises(DirectionError, match="was taken on toy"):
        Subspaces.load(one, model=Other())
    assert Subspace.load(one, model=Other(), force=True).k == found.best.k


def test_on_a_model_what_is_inside_is_gone_and_it_belongs_to_that_model(tmp_path: Path) -> None:
    from steerkit.datasets import refusal

    model = sk.load("organism:aligned")
    acts = sk.capture(model, refusal("train", n=20), layers=[2], progress=False)
    found = extract_subspace(acts, "inlp", k=3, n_permutations=0, n_random=0, progress=False)[0]
    unseen = refusal("held_out", n=6)
    for reference, wanted in (("zero", 0.0), ("negative_mean", None)):
        steered = model.with_(sk.Ablate(found, reference=reference))
        inside = found.coordinates(sk.capture(steered, unseen, layers=[2], progress=False).at(2))
        means = torch.tensor([axis.negative_mean for axis in found])
        expected = means if wanted is None else torch.zeros(3)
        assert torch.allclose(inside, expected.expand_as(inside), atol=1e-4)
    path = found.save(tmp_path / "subspace.safetensors")
    assert Subspace.load(path, model=model).k == 3
    with pytest.raises(DirectionError, match="extract it again there"):
        Subspace.load(path, model=sk.load("organism:base"))


def test_a_subspace_is_of_one_place_and_orthonormal(make: Make) -> None:
    acts = several(make)
    first, second = extract(acts, ["mean_difference", "pca"], **QUICK)[:2]
    with pytest.raises(DirectionError, match=r"axes 0 and 1 .* have cosine .*expected 0"):
        Subspace((first, second))
    with pytest.raises(DirectionError, match="of one site and model; got resid_post@0"):
        Subspace((first, second.at(1)))
    with pytest.raises(DirectionError, match="at least one axis; got none"):
        Subspace(())


def test_angles_are_exact_where_they_are_small_and_where_they_are_large(make: Make) -> None:
    acts = several(make, n=12)
    axes = extract_subspace(acts, "pca", k=3, n_folds=0, progress=False)[0]
    t = 1e-3
    turned = replace(
        axes[0], unit=float(np.cos(t)) * axes[0].unit + float(np.sin(t)) * axes[2].unit
    )
    both = Subspace((axes[0], axes[1])).angles(Subspace((turned, axes[1])))
    assert both.tolist() == pytest.approx([0, np.rad2deg(t)], abs=1e-3)
    assert float(axes[:2].angles(axes[2])[0]) == pytest.approx(90, abs=1e-3)


def test_it_shows_itself(make: Make) -> None:
    acts = several(make)
    found = extract_subspace(acts, "pca", k=(1, 2), concept="<b>kinds</b>", **QUICK)
    assert repr(found[0]).startswith(f"Subspace('<b>kinds</b>', pca, resid_post@0, k {found[0].k}")
    assert str(found[0]) == f"pca k={found[0].k} resid_post@0"
    assert repr(found).startswith("Subspaces(2: pca k=")
    page = found[0]._repr_html_()
    assert "&lt;b&gt;kinds" in page and "<b>kinds" not in page
    assert "random subspaces" in page and "k was chosen by it" in page
    assert page.count("<tr") == page.count("</tr>") and page.count("<div") == page.count("</div>")
    assert found._repr_html_().count("<tr") == 3
    assert "never scored" in found[0][:1]._repr_html_()
