import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import comb

from liftopt.activations import get_activation
from liftopt.solvers import oracle, solve_box_qp, solve_matching


def test_box_qp_meets_its_specification(rng):
    A, C = rng.normal(size=(9, 6)), rng.normal(size=(4, 6))
    H, lower, upper = A.T @ A, np.array([0, -np.inf, -0.1, 0, 0, 0.2]), np.array([1, 0.3, np.inf, 1, 0.01, 1])
    result = solve_box_qp(H, C, lower, upper, tol=1e-9)
    for row, c in enumerate(C):
        x, value = oracle.box_qp(H, c, lower, upper)
        np.testing.assert_allclose(result.info["row_objective"][row], value, atol=1e-8)
        np.testing.assert_allclose(result.x[row], x, atol=1e-4)


def test_matching_meets_its_specification(rng):
    X, V = rng.normal(size=(15, 3)), np.maximum(rng.normal(size=(15, 2)), 0)
    relu = get_activation("relu")
    result = solve_matching(X, V, relu, relu.potential, ridge=0.3, tol=1e-9, max_iter=10_000)
    model, value = oracle.relu_matching(X, V, 0.3)
    np.testing.assert_allclose(result.objective, value, rtol=1e-8)
    np.testing.assert_allclose(result.x.weight, model.weight, atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(4, 2), (6, 2), (5, 3)])
def test_number_of_activation_patterns(rng, n, d):
    patterns = oracle.activation_patterns(rng.normal(size=(n, d)))
    assert len(patterns) == 2 * sum(comb(n - 1, j, exact=True) for j in range(d))
    assert len({tuple(p) for p in patterns}) == len(patterns)


def training_objective(X, y, beta, W1, W2):
    fitted = np.maximum(X @ W1, 0) @ W2
    return 0.5 * np.sum((fitted[:, 0] - y) ** 2) + 0.5 * beta * (np.sum(W1**2) + np.sum(W2**2))


def test_two_layer_network_attains_the_convex_optimum_and_descent_never_beats_it(rng):
    X, y, beta, width = np.column_stack([rng.normal(size=7), np.ones(7)]), rng.normal(size=7), 0.05, 24
    (W1, W2), value = oracle.two_layer_relu(X, y, beta)
    np.testing.assert_allclose(training_objective(X, y, beta, W1, W2), value, rtol=1e-5)

    def objective(flat):
        W1, W2 = flat[: 2 * width].reshape(2, width), flat[2 * width :].reshape(width, 1)
        hidden = np.maximum(X @ W1, 0)
        error = hidden @ W2 - y[:, None]
        back = (error @ W2.T) * (hidden > 0)
        gradient = np.concatenate([(X.T @ back + beta * W1).ravel(), (hidden.T @ error + beta * W2).ravel()])
        return training_objective(X, y, beta, W1, W2), gradient

    reached = [
        minimize(
            objective, rng.normal(size=3 * width), jac=True, method="L-BFGS-B", options={"maxiter": 3000}
        ).fun
        for _ in range(8)
    ]
    assert min(reached) >= value - 1e-6
    assert min(reached) <= value * 1.05
