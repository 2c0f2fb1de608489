"""Quasi-Newton directions in blocks: Newton on quadratics, curvature guard, immutability."""

import numpy as np

from liftopt.secant import Located, Pairs


def quadratic(rng, d=6):
    A = rng.normal(size=(d, d))
    return A @ A.T + np.eye(d)


def parts(x):
    return [x[:2].reshape(2, 1), x[2:].reshape(-1, 1)]


def test_enough_pairs_give_the_newton_direction(rng):
    H = quadratic(rng)
    pairs, x = Pairs(), rng.normal(size=6)
    basis = np.linalg.eigh(H)[1]
    for direction in [np.zeros(6), *basis.T]:
        x = x + direction
        pairs = pairs.extended(Located(parts(x), parts(H @ x)))
    gradient = rng.normal(size=6)
    found = np.concatenate(pairs.direction(parts(gradient), lambda p: [q.copy() for q in p]))[:, 0]
    np.testing.assert_allclose(found, np.linalg.solve(H, gradient), atol=1e-9)


def test_exact_inverse_is_kept(rng):
    H = quadratic(rng)
    inverse = np.linalg.inv(H)
    x = rng.normal(size=6)
    pairs = Pairs().extended(Located(parts(x), parts(H @ x)))
    y = x + rng.normal(size=6)
    pairs = pairs.extended(Located(parts(y), parts(H @ y)))
    gradient = rng.normal(size=6)
    found = pairs.direction(parts(gradient), lambda p: parts((inverse @ np.concatenate(p))[:, 0]))
    np.testing.assert_allclose(np.concatenate(found)[:, 0], inverse @ gradient, atol=1e-10)


def test_pairs_without_curvature_are_left_out(rng):
    x = rng.normal(size=6)
    first = Pairs().extended(Located(parts(x), parts(-x)))
    second = first.extended(Located(parts(2 * x), parts(-2 * x)))
    assert len(first) == len(second) == 0


def test_the_newest_pair_is_reproduced_whatever_the_first_approximation(rng):
    """The secant condition, with steps that are not conjugate."""
    H = quadratic(rng)
    pairs, x = Pairs(), rng.normal(size=6)
    for _ in range(4):
        pairs = pairs.extended(Located(parts(x), parts(H @ x)))
        step = rng.normal(size=6)
        x = x + step
    pairs = pairs.extended(Located(parts(x), parts(H @ x)))
    found = pairs.direction(parts(H @ step), lambda p: [3.0 * q for q in p])
    np.testing.assert_allclose(np.concatenate(found)[:, 0], step, atol=1e-10)
