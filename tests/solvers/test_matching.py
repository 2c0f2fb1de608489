from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit, logsumexp, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from liftopt.activations import get_activation
from liftopt.solvers import solve_matching, solve_ridge, solve_softmax_regression

ENTRYWISE = ["identity", "relu", "leaky_relu", "elu", "sigmoid", "tanh", "hard_sigmoid", "soft_threshold"]


def functions(name: str) -> Any:
    activation = get_activation(name)
    return {"phi": activation, "potential": activation.potential, "lipschitz": activation.lipschitz}


def gradient(X, V, x, phi, ridge=0.0, prox=0.0, init=None, weight=None):
    """Stationarity written out: zero at the solution."""
    weight = np.ones(len(X)) if weight is None else weight
    W0, b0 = (0.0, 0.0) if init is None else init
    E = weight[:, None] * (phi(X @ x.weight + x.intercept) - V)
    return np.vstack(
        [
            X.T @ E + 2 * ridge * x.weight + 2 * prox * (x.weight - W0),
            E.sum(axis=0) + 2 * prox * (x.intercept - b0),
        ]
    )


def data(rng, name, n=60, d=5, h=3):
    activation = get_activation(name)
    X = rng.normal(size=(n, d))
    V = activation(X @ rng.normal(size=(d, h)) + 0.5 * rng.normal(size=(n, h)))
    return X, V


@pytest.mark.parametrize("name", ENTRYWISE)
@pytest.mark.parametrize("form", ["primal", "kernel"])
def test_stationary_for_every_activation(rng, name, form):
    X, V = data(rng, name)
    init = rng.normal(size=(5, 3)), rng.normal(size=3)
    weight = rng.uniform(size=60)
    penalties: Any = {"prox": 1.0, "init": init}
    result = solve_matching(
        X, V, **functions(name), form=form, sample_weight=weight, tol=1e-9, max_iter=20_000, **penalties
    )
    assert result.success
    residual = gradient(X, V, result.x, get_activation(name), weight=weight, **penalties)
    np.testing.assert_allclose(residual, 0.0, atol=1e-7)


def test_identity_is_ridge_in_one_step(rng):
    X, V = rng.normal(size=(40, 6)), rng.normal(size=(40, 2))
    result = solve_matching(X, V, **functions("identity"), ridge=0.7, max_iter=1, tol=1e-12)
    reference = Ridge(alpha=1.4).fit(X, V)
    np.testing.assert_allclose(result.x.weight, reference.coef_.T, atol=1e-10)
    np.testing.assert_allclose(result.x.intercept, reference.intercept_, atol=1e-10)
    own = solve_ridge(X, V, alpha=1.4).x
    np.testing.assert_allclose(result.x.weight, own.weight, atol=1e-10)


def test_sigmoid_with_binary_targets_is_logistic_regression(rng):
    X = rng.normal(size=(80, 4))
    y = (X[:, 0] + rng.normal(size=80) > 0).astype(float)
    result = solve_matching(X, y[:, None], **functions("sigmoid"), ridge=0.25, tol=1e-10, max_iter=20_000)
    reference = LogisticRegression(C=2.0, solver="newton-cholesky", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(result.x.weight[:, 0], reference.coef_[0], atol=1e-7)
    np.testing.assert_allclose(result.x.intercept, reference.intercept_, atol=1e-7)


def test_softmax_is_softmax_regression(rng):
    X, Y = rng.normal(size=(70, 4)), np.eye(3)[rng.integers(0, 3, size=70)]
    result = solve_matching(
        X,
        Y,
        lambda u: softmax(u, axis=1),
        lambda u: logsumexp(u, axis=1),
        lipschitz=0.5,
        ridge=0.3,
        tol=1e-10,
        max_iter=20_000,
    )
    newton = solve_softmax_regression(X, Y, ridge=0.3, tol=1e-11)
    np.testing.assert_allclose(result.x.weight, newton.x.weight, atol=1e-7)
    np.testing.assert_allclose(result.objective, newton.objective, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 4])
def test_kernel_form_equals_primal_form(rng, steps):
    X, V = data(rng, "relu", n=8, d=20)
    init = rng.normal(size=(20, 3)), rng.normal(size=3)
    for weight in (None, np.where(np.arange(8) % 3, rng.uniform(size=8), 0.0)):
        primal, kernel = (
            solve_matching(
                X,
                V,
                **functions("relu"),
                prox=0.4,
                init=init,
                sample_weight=weight,
                form=form,
                max_iter=steps,
                tol=0.0,
                on_limit="ignore",
            )
            for form in ("primal", "kernel")
        )
        np.testing.assert_allclose(kernel.x.weight, primal.x.weight, atol=1e-10)
        np.testing.assert_allclose(kernel.x.intercept, primal.x.intercept, atol=1e-10)
        np.testing.assert_allclose(kernel.objective, primal.objective, rtol=1e-10)
        np.testing.assert_allclose(
            kernel.residuals["stationarity"], primal.residuals["stationarity"], rtol=1e-6
        )
    assert solve_matching(X, V, **functions("relu"), prox=0.4).info["form"] == "kernel"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(ENTRYWISE),
    n=st.integers(1, 9),
    d=st.integers(1, 6),
    momentum=st.booleans(),
    exponent=st.integers(-4, 4),
)
def test_monotone_on_degenerate_data(seed, name, n, d, momentum, exponent):
    rng = np.random.default_rng(seed)
    X, V = data(rng, name, n=n, d=d, h=2)
    X[:, 0] = 0.0  # dead feature
    X[:, -1] = 10.0**exponent * X[:, 0] if d > 1 else 1.0  # duplicate or constant
    result = solve_matching(X, V, **functions(name), momentum=momentum, max_iter=60, on_limit="ignore")
    values = np.array([record["objective"] for record in result.history])
    assert (np.diff(values) <= 1e-8 * (1.0 + np.abs(values[:-1]))).all()
    assert np.isfinite(result.x.weight).all()


def test_fixed_intercept(rng):
    X, V = data(rng, "relu")
    start = np.zeros((5, 3)), np.array([0.3, -0.2, 0.0])
    for form in ("primal", "kernel"):
        result = solve_matching(
            X, V, **functions("relu"), ridge=0.2, init=start, fit_intercept=False, form=form, tol=1e-9
        )
        np.testing.assert_allclose(result.x.intercept, start[1], atol=1e-14)
        residual = gradient(X, V, result.x, get_activation("relu"), ridge=0.2)
        np.testing.assert_allclose(residual[:-1], 0.0, atol=1e-7)


def test_own_callables_and_float32(rng):
    X, V = data(rng, "sigmoid")
    single = solve_matching(
        X.astype(np.float32), V, expit, lambda u: -log_expit(-u), lipschitz=0.25, ridge=0.1, tol=1e-4
    )
    double = solve_matching(X, V, **functions("sigmoid"), ridge=0.1, tol=1e-9, max_iter=20_000)
    np.testing.assert_allclose(single.x.weight, double.x.weight, atol=1e-2)


def test_scores_belong_to_the_solution(rng):
    X, V = data(rng, "relu")
    result = solve_matching(X, V, **functions("relu"), ridge=0.1)
    np.testing.assert_allclose(result.info["scores"], result.x(X), atol=1e-10)


def test_budget_warns(rng):
    X, V = data(rng, "tanh")
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        solve_matching(X, V, **functions("tanh"), max_iter=1, tol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"V": np.ones((3, 1))}, "V has 3 rows, X has 4"),
        ({"X": np.full((4, 2), np.inf)}, "X holds 8 NaN or infinite"),
        ({"ridge": -1.0}, "ridge must be"),
        ({"lipschitz": 0.0}, "lipschitz must be"),
        ({"form": "dual"}, "form must be"),
        ({"form": "kernel"}, "kernel form needs prox > 0"),
        ({"init": (np.zeros((3, 1)), np.zeros(1))}, "init must hold arrays of shapes"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"X": np.ones((4, 2)), "V": np.ones((4, 1))} | functions("relu") | change
    with pytest.raises(ValueError, match=message):
        solve_matching(arguments.pop("X"), arguments.pop("V"), **arguments)
