from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from liftopt.solvers import Status, fit_hinging_hyperplanes
from liftopt.solvers.hinging import _damped_step, _gauss_newton, _problem, _refit


def squares(model, X, Y, ridge=0.0, weight=None):
    """The objective, written out."""
    weight = np.ones(len(X)) if weight is None else weight
    slopes = np.sum(model.linear**2) + np.sum(model.outer**2)
    return float(weight @ ((Y - model(X)) ** 2).sum(axis=1) + ridge * slopes)


def problems(seed, n=120, d=3, outputs=2):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    bends = np.maximum(X @ rng.normal(size=(d, 3)) + rng.normal(size=3), 0.0)
    return X, bends @ rng.normal(size=(3, outputs)) + 0.1 * rng.normal(size=(n, outputs))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_absolute_value_of_either_sign_is_recovered(rng, sign):
    X = rng.normal(size=(400, 3))
    result = fit_hinging_hyperplanes(X, sign * np.abs(X[:, :1]), n_hinges=1)
    assert result.objective < 1e-20
    assert np.sign(result.x.outer[0, 0]) == sign
    np.testing.assert_allclose(np.abs(result.x.slopes[:, 0]), [1.0, 0.0, 0.0], atol=1e-10)


def test_oblique_hinge_is_recovered_where_axes_are_weak(rng):
    X = rng.normal(size=(500, 6))
    direction = np.ones((6, 1)) / np.sqrt(6)
    result = fit_hinging_hyperplanes(X, np.maximum(X @ direction - 0.3, 0.0), n_hinges=1, tol=1e-8)
    assert result.objective < 1e-16
    np.testing.assert_allclose(np.abs(result.x.slopes), np.abs(direction), atol=1e-8)


def test_pure_interaction_is_found(rng):
    X = rng.normal(size=(600, 5))
    y = X[:, :1] * X[:, 1:2]
    result = fit_hinging_hyperplanes(X, y, n_hinges=6)
    assert result.objective < 0.1 * np.sum((y - y.mean()) ** 2)


def test_undamped_step_on_one_hinge_is_least_squares_on_either_side(rng):
    X, y = rng.normal(size=(80, 4)), rng.normal(size=(80, 1))
    problem = _problem(X, y, 0.0, rng.random(80) + 0.5)
    direction = np.append(0.1, np.full(4, 0.5))[:, None]
    point = _refit(problem, direction, 0.0)
    step = _damped_step(_gauss_newton(problem, point), 0.0, 20)
    moved = abs(point.outer[5, 0]) * direction[:, 0] + step[:, 0]
    active = point.hinges[:, 0] > 0
    sides = [
        np.linalg.lstsq(problem.Z[side], problem.Y[side], rcond=None)[0][:, 0] for side in (~active, active)
    ]
    np.testing.assert_allclose(np.sign(point.outer[5, 0]) * moved, sides[1] - sides[0], atol=1e-10)


def test_undamped_step_is_that_of_the_whole_jacobian(rng):
    X, Y = problems(2)
    problem = _problem(X, Y, 0.3, rng.random(len(X)) + 0.5)
    directions = np.vstack([[0.1, -0.2], np.linalg.qr(rng.normal(size=(3, 2)))[0]])
    point = _refit(problem, directions, 0.0)
    linear, outer = np.split(point.outer, [4])
    lengths = np.linalg.norm(outer, axis=1)
    columns = [np.kron(problem.Z, np.eye(2))]
    for k in range(2):
        active = point.hinges[:, k] > 0
        columns.append(np.kron(problem.Z * active[:, None], (outer[k] / lengths[k])[:, None]))
    jacobian = np.hstack(columns)
    penalty = np.diag(np.r_[0.0, 0.0, np.full(6, 0.3), np.tile([0.0, 0.3, 0.3, 0.3], 2)])
    unknowns = np.r_[linear.ravel(), (directions * lengths).T.ravel()]
    right = jacobian.T @ point.residual.ravel() - penalty @ unknowns
    expected = np.linalg.solve(jacobian.T @ jacobian + penalty, right)
    step = _damped_step(_gauss_newton(problem, point), 0.0, 50)
    np.testing.assert_allclose(step.T.ravel(), expected[8:], atol=1e-10)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 1.0]), st.integers(1, 3))
def test_objective_never_rises_and_is_that_of_the_solution(seed, ridge, outputs):
    X, Y = problems(seed, outputs=outputs)
    weight = np.random.default_rng(seed).random(len(X)) + 0.5
    result = fit_hinging_hyperplanes(X, Y, n_hinges=4, ridge=ridge, sample_weight=weight, max_iter=300)
    path = [record["objective"] for record in result.history]
    assert all(after <= before for before, after in pairwise(path))
    assert result.status is Status.LOCAL_OPTIMUM
    assert result.objective == pytest.approx(squares(result.x, X, Y, ridge, weight), rel=1e-8, abs=1e-12)
    assert path[-1] < 0.8 * path[0]


def test_residual_is_the_gradient(rng):
    X, Y = problems(3, outputs=1)
    result = fit_hinging_hyperplanes(X, Y, n_hinges=2, ridge=0.1, max_iter=2, on_limit="ignore")
    model, step = result.x, 1e-7
    largest = 0.0
    for k in range(2):
        hinge = np.append(model.offsets[k], model.slopes[:, k]) * abs(model.outer[k, 0])
        u = np.sign(model.outer[k, 0])

        def objective(v, k=k, u=u):
            rest = model._replace(outer=np.delete(model.outer, k, 0), offsets=np.delete(model.offsets, k))
            rest = rest._replace(slopes=np.delete(model.slopes, k, 1))
            error = Y[:, 0] - rest(X)[:, 0] - u * np.maximum(v[0] + X @ v[1:], 0.0)
            return error @ error + 0.1 * (v[1:] @ v[1:])

        for e in step * np.eye(4):
            largest = max(largest, abs(objective(hinge + e) - objective(hinge - e)) / (2 * step))
    scale = 2 * np.sqrt(len(X)) * np.linalg.norm(Y - Y.mean())
    assert result.residuals["stationarity"] == pytest.approx(largest / scale, rel=1e-4)
    assert fit_hinging_hyperplanes(X, Y, n_hinges=2, ridge=0.1, tol=1e-9).residuals["stationarity"] < 2e-3


def test_weights_are_repetitions(rng):
    X, Y = problems(5)
    times = rng.integers(0, 4, len(X))
    weighted = fit_hinging_hyperplanes(X, Y, n_hinges=3, ridge=0.1, sample_weight=times)
    repeated = fit_hinging_hyperplanes(np.repeat(X, times, 0), np.repeat(Y, times, 0), n_hinges=3, ridge=0.1)
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-9)
    np.testing.assert_allclose(weighted.x(X), repeated.x(X), atol=1e-7)


def test_every_hinge_splits_the_rows():
    X, Y = problems(7, n=60)
    model = fit_hinging_hyperplanes(X, Y, n_hinges=8).x
    above = (model.hinges(X) > 0).sum(axis=0)
    assert above.size
    assert np.minimum(above, 60 - above).min() >= 8
    np.testing.assert_allclose(np.linalg.norm(model.slopes, axis=0), 1.0)


def test_few_rows_give_the_linear_fit():
    X, Y = problems(9, n=15)
    result = fit_hinging_hyperplanes(X, Y, n_hinges=8)
    expected = np.linalg.lstsq(np.c_[np.ones(15), X], Y, rcond=None)[0]
    assert result.x.outer.shape == (0, 2)
    np.testing.assert_allclose(result.x.linear, expected[1:], atol=1e-9)
    assert fit_hinging_hyperplanes(X, Y, n_hinges=0).objective == pytest.approx(result.objective)


def test_budget_is_reported_and_callback_can_stop():
    X, Y = problems(11)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        result = fit_hinging_hyperplanes(X, Y, n_hinges=4, max_iter=1)
    assert result.status is Status.MAX_ITER
    assert result.x.outer.shape[0] == 2
    stopped = fit_hinging_hyperplanes(X, Y, n_hinges=4, callback=lambda record: record["hinges"] == 4)
    assert stopped.status is Status.INTERRUPTED
    assert stopped.x.outer.shape[0] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_hinges": -1}, "n_hinges must be an integer >= 0"),
        ({"ridge": -1.0}, "ridge"),
        ({"tol": np.nan}, "tol"),
        ({"X": np.full((120, 3), np.nan)}, "X holds 360 NaN"),
        ({"X": np.zeros((3, 3))}, "X has 3 rows and Y has 120"),
        ({"sample_weight": np.ones(3)}, "sample_weight has 3 entries"),
    ],
)
def test_bad_input_is_refused(change, message):
    X, Y = problems(1)
    with pytest.raises(ValueError, match=message):
        fit_hinging_hyperplanes(**{"X": X, "Y": Y, "n_hinges": 2} | change)
