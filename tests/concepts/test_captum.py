"""Agreement with captum's CAVs and TCAV scores on the same activations and the same gradients.

captum (0.9 or later) comes with the `dev` extra; without it these tests are skipped. Its TCAV is
given what lies behind the last stream of an organism (norm and head) as the network, so that both
differentiate the same function at the same activations.
"""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.organisms import sentiment
from steerkit.prompts import Contrast, Prompt

captum = pytest.importorskip("captum.concept", reason="captum is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SITE = "resid_post@3"


class Tail(torch.nn.Module):
    """What follows the last stream at a token: the final norm and the unembedding."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stream, self.norm = torch.nn.Identity(), network.model.norm
        self.head = network.lm_head

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.stream(h)))
        return logits


class Given(captum.Classifier):  # type: ignore[misc]
    """A classifier whose weights were found elsewhere."""

    def __init__(self, vector: torch.Tensor) -> None:
        self.vector = vector.float()

    def train_and_eval(self, dataloader: Any, **_: Any) -> dict[str, float]:
        return {}

    def weights(self) -> torch.Tensor:
        return torch.stack([-self.vector, self.vector])

    def classes(self) -> list[int]:
        return [0, 1]


class Logistic(Given):
    """scikit-learn's logistic regression on standardised features, as ours is defined."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(1))

    def train_and_eval(self, dataloader: Any, **_: Any) -> dict[str, float]:
        from sklearn.linear_model import LogisticRegression

        x, y = (torch.cat(part).numpy() for part in zip(*dataloader, strict=True))
        size = np.sqrt(x.var(0).mean())
        fit = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit((x - x.mean(0)) / size, y)
        self.vector = torch.tensor(fit.coef_[0] / size).float()
        return {}


def sides(split, n, seed):
    made = [
        (Prompt(f"{i.text} i", group=i.group, template="raw"), i.label)
        for i in sentiment(split, n, seed=seed)
    ]
    return [p for p, label in made if label], [p for p, label in made if not label]


@pytest.fixture(scope="module")
def setting():
    model = sk.load("organism:base")
    taken = sk.capture(model, Contrast.of(*sides("train", 80, 0)), sites=[SITE], progress=False)
    asked = [p for side in sides("held_out", 30, 1) for p in side]
    token = model.tokenize([Prompt("the film i", answer="liked", template="raw")])[0].answer[0]
    return model, taken, asked, token


def theirs(setting, folder, classifier=None, labels=None):
    """captum's result on the activations: the CAV of the positive side, sign count, magnitude."""
    from captum.attr import LayerGradientXActivation

    model, taken, asked, token = setting
    x, y = taken.values[:, 0], torch.tensor(taken.labels if labels is None else labels)
    tail = Tail(model.network)
    slope = LayerGradientXActivation(tail, None, multiply_by_inputs=False)
    loaders = [torch.utils.data.DataLoader(x[y == side], batch_size=64) for side in (0, 1)]
    concepts = [captum.Concept(side, f"side{side}", loaders[side]) for side in (0, 1)]
    tcav = captum.TCAV(
        tail, layers=["stream"], classifier=classifier, layer_attr_method=slope,
        save_path=str(folder),
    )  # fmt: skip
    inputs = sk.capture(model, asked, sites=[SITE], progress=False).values[:, 0]
    with torch.random.fork_rng():
        torch.manual_seed(0)  # its default classifier shuffles with the global generator
        found = tcav.interpret(inputs, experimental_sets=[concepts], target=token)
    stats = tcav.cavs["0-1"]["stream"].stats
    row = list(stats["classes"]).index(1)
    scores = found["0-1"]["stream"]
    return stats["weights"][row].float(), float(scores["sign_count"][1]), float(
        scores["magnitude"][1]
    )  # fmt: skip


def test_the_same_classifier_points_the_same_way_and_scores_the_same(setting, tmp_path):
    model, taken, asked, token = setting
    direction = sk.extract(taken, "logistic", n_folds=0, progress=False)[0]
    vector, signs, _ = theirs(setting, tmp_path, Logistic())
    assert float(torch.cosine_similarity(vector, direction.unit, dim=0)) > 0.999
    found = sk.tcav(model, taken, asked, token, quantity="logit", n_random=9).cells[0]
    assert signs == pytest.approx(found.score.value, abs=1e-6)


def test_captums_own_classifier_agrees_with_us_as_with_itself(setting, tmp_path):
    """Stochastic gradient descent on two thirds of the rows, drawn anew: runs differ much."""
    _, taken, _, _ = setting
    state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    vectors = []
    try:
        for seed in range(6):
            # Its split and its descent draw from the global generators.
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            vector, _, _ = theirs(setting, tmp_path / str(seed))
            vectors.append(vector / vector.norm())
    finally:
        random.setstate(state)
        np.random.set_state(legacy)  # noqa: NPY002
    runs = torch.stack(vectors)
    among = (runs @ runs.T)[~torch.eye(len(runs), dtype=torch.bool)].mean()
    mean = runs.mean(0) / runs.mean(0).norm()
    for method in ("logistic", "svm"):
        direction = sk.extract(taken, method, n_folds=0, progress=False)[0]
        assert float((runs @ direction.unit).mean()) > float(among) - 0.05
        assert float(mean @ direction.unit) > 0.85


@pytest.mark.parametrize("seed", range(4))
def test_the_same_vector_has_the_same_sign_count_and_magnitude(setting, tmp_path, seed):
    """Vectors of exchanged labels score anything between 0 and 1; both count the same prompts."""
    model, taken, asked, token = setting
    labels = np.random.default_rng(seed).permutation(np.asarray(taken.labels)).tolist()
    own = replace(taken, labels=tuple(labels), groups=tuple(f"p{i}" for i in range(len(labels))))
    vector = sk.extract(own, "mean_difference", n_folds=0, progress=False)[0].vector
    _, signs, magnitude = theirs(setting, tmp_path, Given(vector), labels)
    found = sk.tcav(
        model, own, asked, token, quantity="logit", method="mean_difference", n_random=9
    ).cells[0]
    assert signs == pytest.approx(found.score.value, abs=1e-6)
    assert magnitude == pytest.approx(found.sensitivity.value, rel=1e-4, abs=1e-5)
