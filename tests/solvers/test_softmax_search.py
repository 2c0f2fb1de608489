import itertools

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from liftopt.solvers.result import Status
from liftopt.solvers.softmax_search import DiscreteAffine, SoftmaxSearch, fit_scales, search_softmax
from liftopt.solvers.value_sets import FiniteWeights


def problem(rng, n=60, d=4, k=3):
    X = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.7)
    y = (X @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k))).argmax(1)
    return X, np.eye(k)[y]


def loss_of(X, Y, T, scale, bias, weights=1.0):
    z = X @ (T * scale) + bias
    return float((weights * (special.logsumexp(z, axis=1) - (Y * z).sum(1))).sum())


@pytest.mark.parametrize(
    "values", [(-1.0, 0.0, 1.0), (-1.0, 1.0), (-2.0, -1.0, 0.0, 1.0, 2.0), (-0.5, 0.0, 1.0)]
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("magnitude", [1.0, 40.0])
def test_one_flip_optimal_by_exhaustion(rng, values, weighted, magnitude):
    X, Y = problem(rng)
    X = X * magnitude
    weights = rng.random(60) + 0.5 if weighted else None
    result = search_softmax(X, Y, values, weights=weights, refit=False, max_iter=50)
    assert result.status is Status.LOCAL_OPTIMUM
    (_, codes, scale), bias = result.x
    w = 1.0 if weights is None else weights
    T = np.array(values)[codes]
    here = loss_of(X, Y, T, scale, bias, w)
    assert result.objective == pytest.approx(here)
    for j, k, value in itertools.product(range(4), range(3), values):
        other = T.copy()
        other[j, k] = value
        assert loss_of(X, Y, other, scale, bias, w) >= here - 1e-7 * abs(here)


def test_loss_falls_every_sweep(rng):
    X, Y = problem(rng, n=400, d=12, k=4)
    result = search_softmax(X, Y, max_iter=50)
    losses = [record["objective"] for record in result.history]
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))


def test_threshold_bounds_the_changes(rng):
    X, Y = problem(rng, n=400, d=12, k=4)
    search = SoftmaxSearch(X, Y, threshold=5.0, refit=False)
    start = search.at(search.origin())
    after, changes = search.sweep(start)
    assert changes <= (start.loss - after.loss) / 5.0


def test_weights_equal_repetitions(rng):
    X, Y = problem(rng)
    repeats = rng.integers(1, 4, 60)
    one = search_softmax(X, Y, weights=repeats, order="cyclic")
    two = search_softmax(np.repeat(X, repeats, 0), np.repeat(Y, repeats, 0), order="cyclic")
    np.testing.assert_array_equal(one.x.weights.codes, two.x.weights.codes)


def test_scales_of_two_classes_equal_logistic_regression(rng):
    P = rng.normal(size=(300, 2))
    y = (P @ [1.0, -0.7] + rng.logistic(size=300) > 0).astype(int)
    scale, bias = fit_scales(P, np.eye(2)[y], np.ones(2), np.zeros(2), steps=50)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(P, y)
    np.testing.assert_allclose([-scale[0], scale[1]], reference.coef_[0], rtol=1e-3)
    assert bias[1] - bias[0] == pytest.approx(reference.intercept_[0], rel=1e-2, abs=1e-3)


def test_soft_targets_recover_the_teacher(rng):
    X = rng.normal(size=(500, 5))
    T = rng.integers(-1, 2, (5, 3)).astype(float)
    Y = special.softmax(X @ T * 1.3, axis=1)
    result = search_softmax(X, Y, max_iter=50)
    floor = float(-(Y * np.log(Y)).sum())
    assert floor <= result.objective < 1.1 * floor


def test_bad_input(rng):
    X, Y = problem(rng)
    with pytest.raises(ValueError, match="sum to one"):
        search_softmax(X, 2 * Y)
    with pytest.raises(ValueError, match="order"):
        search_softmax(X, Y, order="backwards")
    start = DiscreteAffine(
        FiniteWeights(np.array([-1.0, 1.0]), np.zeros((4, 3), np.uint8), np.ones(3)), np.zeros(3)
    )
    with pytest.raises(ValueError, match="same values"):
        search_softmax(X, Y, start=start)
