from itertools import combinations

import numpy as np
import pytest

from liftopt.solvers import prune_terms, select_hinges
from liftopt.solvers.pruning import gcv


def fitted(rng, outputs=2):
    X = rng.normal(size=(200, 4))
    Y = np.abs(X[:, :outputs]) + X[:, 2:3] * X[:, 3:] + rng.normal(size=(200, outputs))
    result = select_hinges(X, Y, max_terms=21, max_degree=2, tol=0)
    path = prune_terms(result.info["factor"], result.info["projections"], result.objective)
    return X, Y, result, path


def direct(B, Y):
    coefficients = np.linalg.lstsq(B, Y, rcond=None)[0]
    return coefficients, float(np.sum((Y - B @ coefficients) ** 2))


def test_every_subset_equals_a_direct_refit(rng):
    X, Y, result, path = fitted(rng)
    B = result.x(X)
    score = path.gcv(len(X), 3.0)
    for size in range(1, len(result.x) + 1):
        keep = path.subset(size)
        coefficients, rss = direct(B[:, keep], Y)
        assert keep[0] == 0
        assert path.rss[size - 1] == pytest.approx(rss, rel=1e-9)
        np.testing.assert_allclose(path.fit(keep)[0], coefficients, atol=1e-8)
        effective = size + 3.0 * (size - 1) / 2
        assert score[size - 1] == pytest.approx(rss / (len(X) * (1 - effective / len(X)) ** 2), rel=1e-9)


def test_each_step_drops_the_cheapest_term(rng):
    X, Y, result, path = fitted(rng)
    B = result.x(X)
    for size in (len(result.x), 8, 3):
        keep = path.subset(size)
        options = [direct(B[:, list(rest)], Y)[1] for rest in combinations(keep, size - 1) if rest[0] == 0]
        assert path.rss[size - 2] == pytest.approx(min(options), rel=1e-9)


def test_gcv_is_infinite_when_parameters_exhaust_the_samples():
    scores = gcv([1.0, 1.0, 1.0], [1, 4, 5], 10, 4.0)
    assert np.isfinite(scores[0])
    np.testing.assert_array_equal(scores[1:], np.inf)


def test_a_lone_intercept_has_nothing_to_prune():
    path = prune_terms([[2.0]], [[1.0]], 3.0)
    assert path.order.size == 0
    np.testing.assert_array_equal(path.subset(1), [0])
