"""Concept dictionaries of states: k-means, semi-NMF, and a published L1 form by its own name.

Every method writes states Z `[row d_model]` as V U: codes V >= 0 `[row concept]`, concepts
U `[concept d_model]`. A state belongs to the concept of its largest code. States are not centred:
around their mean, clusters span one dimension less than there are of them, and what is then
non-negative in which concept has no one answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from steerkit.errors import MethodError
from steerkit.registry import suggest
from steerkit.statistics import Floats

Method = Literal["kmeans", "semi_nmf", "snmf_repo"]
METHODS: tuple[Method, ...] = get_args(Method)
STEPS = 300
"""Updates of semi-NMF at most."""
TOLERANCE = 1e-7
"""Relative fall of the error in one update below which semi-NMF stops."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Concepts of one model's states.

    Attributes:
        method: how they were found.
        mean: of the states it was fitted on, `[d_model]`.
        concepts: `[concept d_model]`; centroids for k-means, of norm 1 else.
        encode: states in, codes out, `[row concept]`.
        centres: a typical state of each concept, `[concept d_model]`: the centroid, or the
            concept times the mean code of its rows.
    """

    method: Method
    mean: Floats
    concepts: Float[np.ndarray, "concept d_model"]
    encode: Callable[[Floats], Floats]
    centres: Floats

    def __len__(self) -> int:
        return len(self.concepts)

    @property
    def around_mean(self) -> Floats:
        """Typical states less the mean of all: what tells concepts apart."""
        return self.centres - self.mean

    def assign(self, states: Float[np.ndarray, "row d_model"]) -> Int[np.ndarray, "row"]:
        """The concept of each state's largest code."""
        return np.asarray(self.encode(states).argmax(1), dtype=np.int64)


def fit_dictionary(
    states: Float[np.ndarray, "row d_model"],
    n_concepts: int,
    *,
    method: Method = "kmeans",
    seed: int = 0,
) -> Dictionary:
    """Find concepts in states; fewer than asked where there are fewer different states.

    Args:
        states: rows to explain.
        n_concepts: concepts at most; concepts that no row belongs to are left out.
        method: `kmeans` (codes 1 / (1 + distance)); `semi_nmf`, codes non-negative and concepts
            free; `snmf_repo`, sparse coding with an L1 penalty, published as semi-NMF, for
            comparison only.
        seed: of the starts.

    Raises:
        MethodError: an unknown method, or fewer than one concept.

    Source: arXiv:2501.03012; semi-NMF: Ding, Li and Jordan 2010 (IEEE PAMI 32, 45).
    """
    if method not in METHODS:
        raise MethodError(f"no dictionary named '{method}'; {suggest(str(method), METHODS)}")
    if n_concepts < 1:
        raise MethodError(f"a dictionary has at least one concept; got {n_concepts}")
    x = np.asarray(states, dtype=np.float64)
    centroids = _kmeans(x, min(n_concepts, len(np.unique(x, axis=0))), seed)
    codes: Callable[[Floats], Floats]
    if method == "kmeans":
        return _known(method, x, centroids, lambda s: _nearness(s, centroids))
    if method == "semi_nmf":
        concepts = semi_nmf(x, centroids)[1]
        return _known(method, x, concepts, lambda s: _non_negative(s, concepts))
    concepts, codes = _sparse_coding(x, len(centroids), seed)
    return _known(method, x, concepts, codes)


def semi_nmf(
    z: Float[np.ndarray, "row d_model"],
    centroids: Float[np.ndarray, "concept d_model"],
    *,
    steps: int = STEPS,
) -> tuple[Float[np.ndarray, "row concept"], Float[np.ndarray, "concept d_model"]]:
    """Minimise |Z - V U|^2 over V >= 0 and any U; concepts come back with norm 1.

    Starts at the given centroids' clusters, every code raised by 0.2. Each update lowers the
    error or leaves it: U = (V'V)^-1 V'Z, then V *= sqrt(((ZU')+ + V(UU')-) / ((ZU')- + V(UU')+)).
    The last codes are the best ones for the last concepts, by non-negative least squares, so that
    old states are coded as new ones are.

    Source: Ding, Li and Jordan 2010 (IEEE PAMI 32, 45).
    """
    v = np.eye(len(centroids))[_nearness(z, centroids).argmax(1)] + 0.2
    error, u = np.inf, _concepts(z, v)
    for _ in range(steps):
        cross, gram = z @ u.T, u @ u.T
        above = np.maximum(cross, 0) + v @ np.maximum(-gram, 0)
        below = np.maximum(-cross, 0) + v @ np.maximum(gram, 0)
        v = v * np.sqrt(above / np.maximum(below, 1e-300))
        u = _concepts(z, v)
        now = float(((z - v @ u) ** 2).sum())
        if error - now <= TOLERANCE * max(now, 1e-300):
            break
        error = now
    size = np.linalg.norm(u, axis=1)
    u = u[size > 0] / size[size > 0, None]
    u = u if len(u) else np.zeros((1, z.shape[1]))  # all states are zero
    return _non_negative(z, u), u


def match(a: Floats, b: Floats) -> tuple[Int[np.ndarray, "pair two"], Floats]:
    """Pairs of concepts that are most alike in all, and the cosine of each pair.

    Source: the assignment problem, Kuhn 1955.
    """
    from scipy.optimize import linear_sum_assignment

    first, second = (v / np.maximum(np.linalg.norm(v, axis=1), 1e-300)[:, None] for v in (a, b))
    cosine = first @ second.T
    rows, columns = linear_sum_assignment(-cosine)
    return np.stack([rows, columns], 1), cosine[rows, columns]


def _kmeans(z: Floats, k: int, seed: int) -> Floats:
    from sklearn.cluster import KMeans

    found = KMeans(k, n_init=5, random_state=seed).fit(z)
    used = np.unique(found.labels_)
    return np.asarray(found.cluster_centers_[used], dtype=np.float64)


def _nearness(z: Floats, centroids: Floats) -> Floats:
    from scipy.spatial.distance import cdist

    return np.asarray(1 / (1 + cdist(z, centroids)), dtype=np.float64)


def _concepts(z: Floats, v: Floats) -> Floats:
    """The best concepts for given codes; the smallest of them where several are as good."""
    return np.asarray(np.linalg.pinv(v) @ z, dtype=np.float64)


def _non_negative(z: Floats, concepts: Floats) -> Floats:
    """Codes of new states: non-negative least squares on fixed concepts."""
    from scipy.optimize import nnls

    codes = np.zeros((len(z), len(concepts)))
    real = np.linalg.norm(concepts, axis=1) > 0
    if real.any():
        codes[:, real] = [nnls(concepts[real].T, row)[0] for row in z]
    return codes


def _sparse_coding(z: Floats, k: int, seed: int) -> tuple[Floats, Callable[[Floats], Floats]]:
    """As the public code has it: Frobenius norm 1, L1 penalty 1, positive codes.

    Everything is divided by the norm of the whole matrix first, so the penalty of 1 outweighs any
    row: every code is zero, and every state falls to the first concept.
    """
    from sklearn.decomposition import DictionaryLearning

    size = max(float(np.linalg.norm(z)), 1e-300)
    fitted = DictionaryLearning(
        k,
        alpha=1.0,
        positive_code=True,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        random_state=seed,
        max_iter=200,
    ).fit(z / size)
    units = np.asarray(fitted.components_, dtype=np.float64)
    return units, lambda s: np.asarray(fitted.transform(s / size), dtype=np.float64)


def _known(
    method: Method, x: Floats, concepts: Floats, encode: Callable[[Floats], Floats]
) -> Dictionary:
    """Only concepts that some row belongs to, each with a typical state."""
    codes = encode(x)
    mine = codes.argmax(1)
    used = np.unique(mine)
    size = [1.0 if method == "kmeans" else codes[mine == c, c].mean() for c in used]
    return Dictionary(
        method,
        x.mean(0),
        concepts[used],
        lambda s: encode(s)[:, used],
        np.array(size)[:, None] * concepts[used],
    )
