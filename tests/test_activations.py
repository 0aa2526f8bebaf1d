"""Activations refuse what does not belong together and come back from disk as they were."""

from dataclasses import replace

import pytest
import torch

from steerkit.activations import Activations
from steerkit.errors import ActivationError, OutputError
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo
from steerkit.site import Site

INFO = ModelInfo(
    name="tiny",
    model_type="llama",
    n_layers=3,
    d_model=5,
    d_vocab=10,
    n_ctx=16,
    streams=("resid_post",),
    dtype="float32",
    device="cpu",
    fingerprint="a" * 64,
)
PROMPTS = (
    Prompt("one", answer="yes", shots=(("q", "a"),)),
    Prompt("zwei ½", system="be kind", group="g"),
    Prompt("three", template="raw"),
)


def make(**changes):
    values = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    return Activations(
        **{
            "values": values,
            "sites": (Site(0), Site(2)),
            "prompts": PROMPTS,
            "labels": (1, 0, 1),
            "groups": ("a", "g", "a"),
            "pooling": "last",
            "info": INFO,
            "contrast_sha256": "c" * 64,
            "steering": ("program at resid_post@1",),
            "provenance": {"receipt": {"rows": 3, "seconds": 0.5}},
            **changes,
        }
    )


def make_tokens():
    """Five token rows of the three prompts."""
    return make(
        values=torch.arange(50.0).reshape(5, 2, 5),
        pooling="all",
        prompt_index=torch.tensor([0, 0, 1, 2, 2]),
        positions=torch.tensor([0, 1, 0, 0, 1]),
        tokens=torch.tensor([7, 8, 7, 7, 9]),
    )


@pytest.mark.parametrize("acts", [make(), make_tokens(), make(labels=(), groups=())])
def test_saving_and_loading_changes_nothing(acts, tmp_path):
    path = acts.save(tmp_path / "a.safetensors")
    back = Activations.load(path)
    for name in vars(acts):
        before, after = getattr(acts, name), getattr(back, name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after) and before.dtype == after.dtype, name
        else:
            assert before == after, name
    assert back.save(tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_more_prompts_than_a_safetensors_header_may_hold(tmp_path):
    """The format's readers refuse headers above 100 MB; prompts are kept elsewhere."""
    from safetensors import safe_open

    long = tuple(Prompt(f"{i} " + "word " * 600) for i in range(40))
    acts = make(
        prompts=long * 1000,
        values=torch.zeros(0, 2, 5),
        labels=(),
        groups=(),
    )
    path = acts.save(tmp_path / "a.safetensors")
    with safe_open(path, "pt") as file:
        assert len(str(file.metadata())) < 10_000
    assert Activations.load(path).prompts[-1] == long[-1]


def test_rows_are_selected_by_index_or_by_mask():
    acts = make_tokens()
    some = acts.select([3, 1])
    assert torch.equal(some.values, acts.values[[3, 1]])
    assert some.prompt_index.tolist() == [2, 0] and some.tokens.tolist() == [7, 8]
    assert some.row_labels.tolist() == [1, 1] and some.row_groups == ("a", "a")
    assert acts.select(acts.row_labels == 0).positions.tolist() == [0]
    assert len(acts.select([])) == 0
    with pytest.raises(ActivationError, match=r"one boolean for each of 5 rows; got shape \(3,\)"):
        acts.select(torch.tensor([True, False, True]))


def test_a_selection_owns_its_values():
    acts = make()
    acts.select([0, 1]).values[:] = 0
    assert acts.values.abs().min() > 0


def test_labels_and_groups_follow_the_rows():
    acts = make_tokens()
    assert acts.row_labels.tolist() == [1, 1, 0, 1, 1]
    assert acts.row_groups == ("a", "a", "g", "a", "a")
    with pytest.raises(ActivationError, match="have no labels; capture a Contrast, not a list"):
        make(labels=()).row_labels  # noqa: B018


def test_a_site_is_read_by_name_number_or_itself():
    acts = make()
    for site in (Site(2), 2, "resid_post@2"):
        assert torch.equal(acts.at(site), acts.values[:, 1])
    with pytest.raises(
        ActivationError, match="resid_post@1 was not captured; there are resid_post@0, resid_post@2"
    ):
        acts.at(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": torch.zeros(3, 5)}, r"shape \[row site d_model\]; got \(3, 5\) for 2 sites"),
        ({"sites": (Site(0),)}, r"got \(3, 2, 5\) for 1 sites"),
        ({"labels": (1, 0)}, "3 prompts need 3 labels; got 2"),
        ({"groups": ("a",)}, "3 prompts need 3 groups; got 1"),
        ({"tokens": torch.tensor([1])}, r"3 rows need 3 entries of tokens; got shape \(1,\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, message):
    with pytest.raises(ActivationError, match=message):
        make(**changes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_site_and_prompt(bad):
    values = torch.zeros(3, 2, 5)
    values[1, 1, 3] = bad
    message = (
        "1 activations are NaN or infinite, first at resid_post@2 for prompt 'zwei ½'; "
        r"load the model in a wider dtype \(dtype='float32' or 'bfloat16'\)"
    )
    with pytest.raises(ActivationError, match=message):
        make(values=values)
    with pytest.raises(ActivationError, match="NaN"):
        replace(make(), values=values)


def test_a_token_row_names_its_own_prompt():
    acts = make_tokens()
    values = acts.values.clone()
    values[4, 0] = float("nan")
    with pytest.raises(ActivationError, match="resid_post@0 for prompt 'three'"):
        replace(acts, values=values)


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(OutputError, match="no activations file at"):
        Activations.load(tmp_path / "none.safetensors")


def test_reprs_say_what_is_inside():
    assert repr(make()) == (
        "Activations(3 rows x 2 sites x 5, resid_post@0 .. resid_post@2, pooling 'last', tiny)"
    )
    html = make()._repr_html_()
    assert "2 positive, 1 negative" in html and "pooling <code>last</code>" in html
