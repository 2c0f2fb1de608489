from typing import Any

import numpy as np
import pytest

from liftopt.solvers import Hinge, HingeBasis, refine_knots
from liftopt.solvers.knots import _derivative, _fit, _Problem


def kinked(rng, n=400):
    X = rng.uniform(-1, 1, (n, 2))
    y = 3 * np.maximum(X[:, 0] - 0.2, 0) - 2 * np.maximum(-0.4 - X[:, 1], 0)
    return X, y[:, None]


def test_finds_the_kinks_of_a_noise_free_spline(rng):
    X, Y = kinked(rng)
    basis = HingeBasis(((), (Hinge(0, 1, 0.0),), (Hinge(1, -1, 0.0),)), np.ones(2))
    result = refine_knots(basis, X, Y, max_iter=60, tol=0.0)
    knots = [term[0].knot for term in result.x.terms[1:]]
    np.testing.assert_allclose(knots, [0.2, -0.4], atol=1e-3)
    assert result.objective < 1e-4


@pytest.mark.parametrize("product", [False, True])
def test_derivative_is_the_gradient_of_the_eliminated_problem(rng, product):
    X, Y = kinked(rng)
    Y = Y + rng.normal(size=Y.shape)
    hinges = (Hinge(0, 1, 0.1), Hinge(1, 1, -0.3), Hinge(1, -1, 0.25))
    basis = HingeBasis(((), (hinges[0],), (hinges[0], hinges[1]), (hinges[2],)), np.ones(2), product)
    bounds = np.full(3, -1.0), np.full(3, 1.0)
    problem = _Problem(basis, X, Y, np.ones(len(X)), hinges, *bounds)
    knots = np.array([hinge.knot for hinge in hinges])
    state: Any = _fit(problem, knots, 1.0)
    gradient = -2 * np.einsum("hrn,nr->h", _derivative(problem, state), state.residual)
    for index in range(3):
        step = 1e-7 * np.eye(3)[index]
        above: Any = _fit(problem, knots + step, 1.0)
        below: Any = _fit(problem, knots - step, 1.0)
        assert gradient[index] == pytest.approx((above.rss - below.rss) / 2e-7, rel=1e-4, abs=1e-4)


def test_rss_never_rises_and_weights_count(rng):
    X, Y = kinked(rng)
    Y = Y + 0.1 * rng.normal(size=Y.shape)
    basis = HingeBasis(((), (Hinge(0, 1, 0.0),), (Hinge(0, 1, 0.0), Hinge(1, -1, 0.5))), np.ones(2))
    result = refine_knots(basis, X, Y, sample_weight=rng.random(len(X)))
    objectives = [record["objective"] for record in result.history]
    assert np.all(np.diff(objectives) <= 0)
    R, z = result.info["factor"], result.info["projections"]
    assert np.linalg.norm(R @ np.linalg.solve(R, z) - z) < 1e-10


def test_dependent_terms_are_refused(rng):
    X, Y = kinked(rng)
    twice = HingeBasis(((), (Hinge(0, 1, 0.0),), (Hinge(0, 1, 0.0),)), np.ones(2))
    with pytest.raises(ValueError, match="linearly dependent"):
        refine_knots(twice, X, Y)


def test_weights_are_repetitions_and_the_objective_is_that_of_the_solution(rng):
    X, Y = kinked(rng)
    Y = Y + 0.1 * rng.normal(size=Y.shape)
    times = rng.integers(1, 4, len(X))
    basis = HingeBasis(((), (Hinge(0, 1, 0.0),), (Hinge(1, -1, 0.0),)), np.ones(2))
    weighted = refine_knots(basis, X, Y, sample_weight=times, margin=1)
    repeated = refine_knots(basis, np.repeat(X, times, 0), np.repeat(Y, times, 0), margin=1)
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-9)
    root = np.sqrt(times)[:, None]
    design, target = weighted.x(X) * root, Y * root
    residual = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    assert weighted.objective == pytest.approx(np.sum(residual**2), rel=1e-9)


@pytest.mark.parametrize("margin", [10, 60])
def test_knots_keep_their_distance_from_either_end(rng, margin):
    X = rng.uniform(-1, 1, (300, 1))
    ends = np.maximum(X - 0.95, 0) + np.maximum(-0.95 - X, 0)
    basis = HingeBasis(((), (Hinge(0, 1, 0.3),), (Hinge(0, -1, -0.3),)), np.ones(1))
    result = refine_knots(basis, X, ends, margin=margin, max_iter=60)
    up, down = (term[0].knot for term in result.x.terms[1:])
    assert np.sum(np.greater(X, up)) >= margin
    assert np.sum(np.less(X, down)) >= margin
    assert up > 0.3
    assert down < -0.3


def test_a_margin_that_leaves_no_rows_between_is_cut_to_half_of_them(rng):
    X, Y = kinked(rng, 21)
    basis = HingeBasis(((), (Hinge(0, 1, 0.0),)), np.ones(2))
    assert refine_knots(basis, X, Y, margin=100).objective >= 0.0
