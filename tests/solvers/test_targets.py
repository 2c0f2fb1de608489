from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.exceptions import ConvergenceWarning

from liftopt.activations import get_activation
from liftopt.solvers import (
    cross_entropy_above,
    matching_above,
    oracle,
    solve_box_qp,
    solve_quadratic_targets,
    solve_targets,
    squares_above,
)

ENTRYWISE = ["identity", "relu", "leaky_relu", "elu", "sigmoid", "tanh", "hard_sigmoid", "soft_threshold"]


def block(rng, n=30, h=8, k=4):
    U, W, b = rng.normal(size=(n, h)), rng.normal(size=(h, k)) / 2, rng.normal(size=k)
    return U, W, b


def terms(rng, n=30, k=4):
    relu = get_activation("relu")
    return {
        "cross-entropy": cross_entropy_above(np.eye(k)[rng.integers(0, k, size=n)]),
        "squares": squares_above(rng.normal(size=(n, k))),
        "hidden": matching_above(np.maximum(rng.normal(size=(n, k)), 0), relu, relu.potential, 0.7),
    }


def solve(U, W, b, above, name="relu", **changes):
    activation = get_activation(name)
    options: Any = {"init": activation(U), "lipschitz": activation.lipschitz, "tol": 1e-9} | changes
    return solve_targets(U, W, b, above, activation.prox, activation.conjugate, **options)


@pytest.mark.parametrize("term", ["cross-entropy", "squares", "hidden"])
def test_kkt_below_every_term(rng, term):
    U, W, b = block(rng)
    above = terms(rng)[term]
    lam = 0.5
    V = solve(U, W, b, above, lam=lam).x
    pull = above.gradient(V @ W + b) @ W.T
    np.testing.assert_allclose(V, np.maximum(U - pull / lam, 0.0), atol=1e-7)


@pytest.mark.parametrize("name", ENTRYWISE)
def test_kkt_for_every_activation(rng, name):
    U, W, b = block(rng)
    above = terms(rng)["cross-entropy"]
    V = solve(U, W, b, above, name, lam=0.8).x
    pull = above.gradient(V @ W + b) @ W.T
    np.testing.assert_allclose(V, get_activation(name)(U - pull / 0.8), atol=1e-7)


@pytest.mark.parametrize("term", ["cross-entropy", "squares", "hidden"])
def test_agrees_with_cvxpy(rng, term):
    U, W, b = block(rng, n=4, h=5, k=3)
    Y = np.eye(3)[rng.integers(0, 3, size=4)]
    relu = get_activation("relu")
    above = {
        "cross-entropy": cross_entropy_above(Y),
        "squares": squares_above(Y),
        "hidden": matching_above(Y, relu, relu.potential),
    }[term]
    result = solve(U, W, b, above, lam=0.6)
    values = [oracle.relu_targets(u, W, b, y, term, 0.6)[1] for u, y in zip(U, Y, strict=True)]
    np.testing.assert_allclose(result.info["row_objective"], values, atol=1e-7)


def test_squares_are_nonnegative_least_squares_and_a_box_qp(rng):
    U, W, b = block(rng, n=12)
    T, lam = rng.normal(size=(12, 4)), 0.3
    iterated = solve(U, W, b, squares_above(T), lam=lam).x
    exact = solve_quadratic_targets(U, W, b, T, lam=lam, lower=0.0, tol=1e-9)
    stacked = np.vstack([np.sqrt(lam) * np.eye(8), W.T])
    reference = [nnls(stacked, np.append(np.sqrt(lam) * u, t - b))[0] for u, t in zip(U, T, strict=True)]
    np.testing.assert_allclose(exact.x, reference, atol=1e-7)
    np.testing.assert_allclose(iterated, reference, atol=1e-7)


def test_squares_below_the_identity_have_a_closed_form(rng):
    U, W, b = block(rng)
    T, lam = rng.normal(size=(30, 4)), 0.2
    closed = solve_quadratic_targets(U, W, b, T, lam=lam)
    assert closed.residuals["stationarity"] <= 1e-12
    H = lam * np.eye(8) + W @ W.T
    general = solve_box_qp(H, lam * U + (T - b) @ W.T, -np.inf, np.inf, tol=1e-10)
    np.testing.assert_allclose(closed.x, general.x, atol=1e-8)
    np.testing.assert_allclose(closed.objective, general.objective, rtol=1e-10)
    # value 1/2 tr(E (I + W'W / lam)^-1 E') with the forward residual E, up to the constants left out
    E = T - U @ W - b
    value = 0.5 * np.sum(E * np.linalg.solve(np.eye(4) + W.T @ W / lam, E.T).T)
    constant = 0.5 * lam * np.sum(U**2) + 0.5 * np.sum((b - T) ** 2)
    np.testing.assert_allclose(closed.objective + constant, value, rtol=1e-10)


def test_envelope_gradient_in_the_weights_below(rng):
    X, W0 = rng.normal(size=(10, 3)), rng.normal(size=(3, 5))
    _, W, b = block(rng, n=10, h=5)
    above, lam, relu = terms(rng, n=10)["cross-entropy"], 0.7, get_activation("relu")

    def value(W0):
        U = X @ W0
        return solve(U, W, b, above, lam=lam).objective + lam * relu.potential(U).sum()

    direction = rng.normal(size=W0.shape)
    V = solve(X @ W0, W, b, above, lam=lam).x
    slope = np.sum(direction * (lam * X.T @ (relu(X @ W0) - V)))
    eps = 1e-5
    difference = (value(W0 + eps * direction) - value(W0 - eps * direction)) / (2 * eps)
    np.testing.assert_allclose(difference, slope, rtol=1e-6)


def test_value_is_below_the_forward_loss_and_rises_with_lam(rng):
    U, W, b = block(rng)
    above, relu = terms(rng)["cross-entropy"], get_activation("relu")
    forward = above.value(relu(U) @ W + b)
    values = []
    for lam in (0.1, 1.0, 10.0, 1000.0):
        result = solve(U, W, b, above, lam=lam)
        values.append(result.info["row_objective"] + lam * relu.potential(U).sum(axis=1))
    assert (np.diff(values, axis=0) >= -1e-7).all()
    assert (values[-1] <= forward + 1e-7).all()
    np.testing.assert_allclose(values[-1], forward, atol=1e-2)


def test_no_pull_from_above_leaves_the_forward_activation(rng):
    U, W, b = block(rng)
    relu = get_activation("relu")
    T = relu(U) @ W + b
    result = solve(U, W, b, squares_above(T))
    np.testing.assert_array_equal(result.x, relu(U))
    assert result.n_iter == 0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(ENTRYWISE),
    term=st.sampled_from(["cross-entropy", "squares", "hidden"]),
    exponent=st.integers(-6, 3),
)
def test_every_row_descends(seed, name, term, exponent):
    rng = np.random.default_rng(seed)
    U, W, b = block(rng, n=6)
    W *= 10.0**exponent
    W[0] = 0.0
    above, activation = terms(rng, n=6)[term], get_activation(name)
    V, last = activation(U), np.full(6, np.inf)
    for _ in range(4):
        result = solve(U, W, b, above, name, init=V, max_iter=3, on_limit="ignore")
        assert (result.info["row_objective"] <= last + 1e-9 * (1 + np.abs(last.clip(max=1e9)))).all()
        V, last = result.x, result.info["row_objective"]
        assert np.isfinite(V).all()


def test_momentum_solves_stiff_blocks_in_some_hundred_steps(rng):
    """Condition above 1000: plain proximal gradients would take ten times as many."""
    U, W, b = block(rng)
    result = solve(U, 10 * W, b, terms(rng)["squares"], lam=1.0, max_iter=1500)
    assert result.status == "optimal"


def test_budget_warns(rng):
    U, W, b = block(rng)
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        solve(U, W, b, terms(rng)["squares"], max_iter=1, lam=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": 0.0}, "lam must be"),
        ({"init": -np.ones((30, 8))}, "outside the domain"),
        ({"init": np.ones((3, 8))}, "init has shape"),
        ({"init": np.full((30, 8), np.nan)}, "init holds 240 NaN"),
    ],
)
def test_bad_input_is_named(rng, change, message):
    U, W, b = block(rng)
    with pytest.raises(ValueError, match=message):
        solve(U, W, b, terms(rng)["squares"], **change)
    with pytest.raises(ValueError, match="do not fit"):
        solve(U, W[:3], b, terms(rng)["squares"])
