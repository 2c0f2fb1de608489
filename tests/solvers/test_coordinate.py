import itertools

import numpy as np
import pytest
from sklearn.datasets import load_iris

from liftopt.solvers.coordinate import brute_force, search_coordinates
from liftopt.solvers.result import Status


def quadratic(rng, d):
    A, b = rng.normal(size=(d, d)), rng.normal(size=d)
    return lambda t: float(t @ A @ A.T @ t - 2 * b @ t)


@pytest.mark.parametrize("order", ["cyclic", "random", "greedy"])
@pytest.mark.parametrize("pairs", [False, True])
def test_ends_at_the_stated_optimum(rng, order, pairs):
    f = quadratic(rng, 6)
    result = search_coordinates(f, np.zeros(6), order=order, pairs=pairs)
    assert result.status is Status.LOCAL_OPTIMUM
    objectives = [record["objective"] for record in result.history]
    assert all(later < earlier for earlier, later in itertools.pairwise(objectives))
    for places in itertools.combinations(range(6), 2 if pairs else 1):
        for pattern in itertools.product((-1, 0, 1), repeat=len(places)):
            other = result.x.copy()
            other[list(places)] = pattern
            assert f(other) >= result.objective - 1e-12


def test_kicks_reach_the_brute_force_optimum(rng):
    f = quadratic(rng, 7)
    best = brute_force(f, 7)
    found = search_coordinates(f, np.zeros(7), pairs=True, kicks=10, kick_fraction=0.4)
    assert found.objective == pytest.approx(best.objective)
    assert search_coordinates(f, np.zeros(7)).objective >= best.objective - 1e-12


def test_known_optimum_on_iris():
    """Ternary 4-3 softmax regression with ternary biases, standardised: minimum 0.242483 by enumeration."""
    X, y = load_iris(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)

    def loss(t):
        z = X @ t[:12].reshape(4, 3) + t[12:]
        top = z.max(1)
        return float(np.mean(np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(150), y]))

    found = [search_coordinates(loss, np.zeros(15), pairs=True, random_state=s).objective for s in range(3)]
    assert min(found) == pytest.approx(0.242483, abs=1e-6)


def test_budget_and_bad_input(rng):
    f = quadratic(rng, 6)
    assert search_coordinates(f, np.zeros(6), max_iter=1, on_limit="ignore").status is Status.MAX_ITER
    with pytest.raises(ValueError, match="elements of values"):
        search_coordinates(f, np.full(6, 0.5))
    with pytest.raises(ValueError, match="limited"):
        brute_force(f, 11)
