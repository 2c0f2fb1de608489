"""Softmax regression by passes against the solver that holds all rows."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from liftopt.solvers import add_row_sums, solve_softmax_passes, solve_softmax_regression, tree_reduce

N, D, C = 900, 6, 4


def with_constant(X):
    return np.column_stack([np.ones(len(X)), X])


@pytest.fixture
def problem(rng):
    X = rng.normal(size=(N, D)) * [1, 10, 0.1, 1, 1, 1] + 2.0
    scores = X @ rng.normal(size=(D, C)) / [1.0, 2.0, 1.0, 1.0] + rng.gumbel(size=(N, C))
    return X, np.eye(C)[scores.argmax(axis=1)], rng.integers(0, 3, N).astype(float)


def sum_over(X, Y, weight, made):
    def sum_rows(task):
        made.append(task)
        parts = (task(X[i : i + 200], Y[i : i + 200], weight[i : i + 200]) for i in range(0, N, 200))
        return tree_reduce(add_row_sums, parts)

    return sum_rows


def solve(problem, ridge=0.3, made=None, **settings):
    X, Y, weight = problem
    return solve_softmax_passes(
        sum_over(X, Y, weight, [] if made is None else made),
        with_constant,
        settings.pop("start", np.zeros((D + 1, C))),
        penalty=np.r_[0.0, np.full(D, ridge)],
        **settings,
    )


def test_reaches_the_optimum_in_few_passes(problem):
    X, Y, weight = problem
    made: list[object] = []
    found = solve(problem, made=made, tol=1e-7)
    expected = solve_softmax_regression(X, Y, ridge=0.3, sample_weight=weight, tol=1e-10)
    assert found.status == "optimal"
    assert found.objective == pytest.approx(expected.objective, rel=1e-9)
    np.testing.assert_allclose(found.x[1:], expected.x.weight, atol=1e-4)
    assert found.residuals["stationarity"] <= 1e-7
    assert len(made) <= 80
    objectives = [record["objective"] for record in found.history]
    assert (np.diff(objectives) <= 0).all()


def test_a_start_at_the_optimum_costs_few_passes(problem):
    found = solve(problem, tol=1e-7)
    made: list[object] = []
    again = solve(problem, made=made, start=found.x, tol=1e-6)
    assert again.status == "optimal"
    assert len(made) <= 4
    assert again.objective <= found.objective * (1 + 1e-12)


def test_limits_are_named(problem):
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        short = solve(problem, max_iter=2)
    assert short.n_iter == 2
    assert short.residuals["stationarity"] > 1e-5
    stopped = solve(problem, callback=lambda record: record["iteration"] >= 1)
    assert stopped.status == "interrupted"
    with pytest.raises(ValueError, match="start"):
        solve(problem, start=np.full((D + 1, C), np.nan))
