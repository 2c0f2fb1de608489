import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftopt.solvers import moments
from liftopt.solvers.coordinate import brute_force
from liftopt.solvers.gram_search import search_gram
from liftopt.solvers.result import Status
from liftopt.solvers.value_sets import quantize


def problem(rng, n=40, d=7, k=3):
    X, W = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng.normal(size=(d, k))
    return X, X @ W


def column_objective(H, c, t):
    p, q = t @ c, t @ H @ t
    return -(max(p, 0.0) ** 2) / q if q > 0 else 0.0


@pytest.mark.parametrize("values", [(-1, 0, 1), (-1, 1), (-2, -1, 0, 1, 2)])
@pytest.mark.parametrize("moves", ["single", "block", "pair"])
def test_local_optimality_by_exhaustion(rng, values, moves):
    X, U = problem(rng)
    H, C = X.T @ X, X.T @ U
    result = search_gram(H, C, values, moves=moves, feedback=False)
    assert result.status is Status.LOCAL_OPTIMUM
    assert result.info["moves"] == moves
    size = 2 if moves == "pair" else 1
    for k in range(C.shape[1]):
        t = result.x.units()[:, k]
        here = column_objective(H, C[:, k], t)
        for places in itertools.combinations(range(t.size), size):
            for pattern in itertools.product(values, repeat=size):
                other = t.copy()
                other[list(places)] = pattern
                assert column_objective(H, C[:, k], other) >= here - 1e-6 * abs(here)


def test_gap_to_brute_force_closes_with_larger_moves(rng):
    X, U = problem(rng, d=6, k=8)
    H, C = X.T @ X, X.T @ U
    optimum = sum(brute_force(partial(column_objective, H, c), 6).objective for c in C.T)
    single, pair = (search_gram(H, C, moves=moves, feedback=False).objective for moves in ("single", "pair"))
    block = search_gram(H, C, moves="block", block=6).objective
    assert optimum <= pair + 1e-9
    assert pair <= single + 1e-9
    assert block == pytest.approx(optimum)


def test_objective_is_the_squared_error(rng):
    X, U = problem(rng)
    result = search_gram(X.T @ X, X.T @ U)
    error = ((X @ result.x.dense() - U) ** 2).sum()
    assert result.objective + (U**2).sum() == pytest.approx(error)
    scales = [
        np.linalg.lstsq((X @ t)[:, None], u, rcond=None)[0][0]
        for t, u in zip(result.x.units().T, U.T, strict=True)
    ]
    np.testing.assert_allclose(result.x.scale, scales)


def test_feedback_helps_and_a_fine_grid_returns_the_weights(rng):
    X = rng.normal(size=(300, 40)) @ rng.normal(size=(40, 40))
    W = rng.normal(size=(40, 5))
    H, C = X.T @ X, X.T @ X @ W
    plain, better = (search_gram(H, C, feedback=feedback).objective for feedback in (False, True))
    assert better < plain
    fine = search_gram(H, C, np.arange(-127, 128), ridge=0.0)
    assert ((fine.x.dense() - W) ** 2).mean() < 1e-3


def test_fixed_scales_are_kept(rng):
    X, U = problem(rng)
    scale = np.array([0.5, 1.0, 2.0])
    result = search_gram(X.T @ X, X.T @ U, (-2, -1, 0, 1, 2), scale=scale)
    np.testing.assert_array_equal(result.x.scale, scale)
    t = result.x.units()
    for j, value in itertools.product(range(t.shape[0]), (-2, -1, 0, 1, 2)):
        other = t.copy()
        other[j] = value
        assert ((X @ (other * scale) - U) ** 2).sum(0) == pytest.approx(
            np.maximum(((X @ (other * scale) - U) ** 2).sum(0), ((X @ (t * scale) - U) ** 2).sum(0) - 1e-8)
        )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(-1.0, 0.0, 1.0), (-1.0, 1.0)]))
def test_descent_only_lowers_and_dead_features_stay_put(seed, values):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(20, 8))
    X[:, 3] = 0.0
    X[:, 5] = X[:, 4]  # rank-deficient
    U = rng.normal(size=(20, 2))
    H, C = X.T @ X, X.T @ U
    start = quantize(rng.normal(size=(8, 2)), values).x
    before = sum(column_objective(H, c, t) for c, t in zip(C.T, start.units().T, strict=True))
    result = search_gram(H, C, values, start=start)
    assert result.objective <= before + 1e-9
    np.testing.assert_array_equal(result.x.codes[3], start.codes[3])


def test_streamed_statistics_give_the_same_weights(rng, tmp_path):
    X, U = rng.normal(size=(5000, 12)), rng.normal(size=(5000, 4))
    stored = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", X.dtype, X.shape)
    stored[:] = X
    streamed, direct = moments(np.load(tmp_path / "X.npy", mmap_mode="r"), U), moments(X, U)
    one, two = (search_gram(m.gram, m.cross).x for m in (streamed, direct))
    np.testing.assert_array_equal(one.codes, two.codes)


def test_permuting_columns_permutes_the_result(rng):
    X, U = problem(rng)
    order = np.array([2, 0, 1])
    one = search_gram(X.T @ X, X.T @ U).x
    two = search_gram(X.T @ X, X.T @ U[:, order]).x
    np.testing.assert_array_equal(one.codes[:, order], two.codes)


def test_bad_input(rng):
    H = np.eye(3)
    with pytest.raises(ValueError, match="rows"):
        search_gram(H, np.ones((2, 1)))
    with pytest.raises(ValueError, match="moves"):
        search_gram(H, np.ones((3, 1)), moves="triple")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN"):
        search_gram(H, np.full((3, 1), np.nan))


@pytest.mark.parametrize("units", [1, 3])
def test_the_start_is_not_changed(rng, units):
    X, U = problem(rng, k=units)
    start = quantize(rng.normal(size=(7, units)), (-1, 0, 1)).x
    codes = start.codes.copy()
    found = search_gram(X.T @ X, X.T @ U, (-1, 0, 1), start=start).x
    assert (found.codes != codes).any()
    np.testing.assert_array_equal(start.codes, codes)
