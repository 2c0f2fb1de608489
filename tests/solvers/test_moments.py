import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftopt.solvers import Moments, moments, moments_of_chunks, row_chunks, tree_reduce


def make_rows(seed, n=200, d=6, c=2, mean=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + mean, rng.normal(size=(n, c)) + mean, rng.uniform(0.1, 2.0, size=n)


def direct(X, Y, w):
    mean_x, mean_y = np.average(X, axis=0, weights=w), np.average(Y, axis=0, weights=w)
    A, T = X - mean_x, Y - mean_y
    return mean_x, mean_y, (A.T * w) @ A, (A.T * w) @ T, w @ T**2


def assert_close(a, b, rtol=1e-12):
    assert (a.n_rows, a.shape) == (b.n_rows, b.shape)
    np.testing.assert_allclose(a.weight, b.weight, rtol=rtol)
    for name in ("mean_x", "mean_y", "gram", "cross", "target_square"):
        left, right = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(left, right, rtol=0, atol=rtol * (1 + np.abs(right).max()), err_msg=name)


def test_moments_are_the_weighted_scatters():
    X, Y, w = make_rows(0, n=5000)
    found = moments(X, Y, sample_weight=w)
    mean_x, mean_y, gram, cross, square = direct(X, Y, w)
    assert_close(found, Moments(5000, w.sum(), mean_x, mean_y, gram, cross, square, 0.0))


@given(st.integers(0, 2**31), st.lists(st.integers(1, 199), min_size=6, max_size=6, unique=True))
def test_merging_unequal_chunks_equals_one_pass(seed, cuts):
    X, Y, w = make_rows(seed, mean=3.0)
    edges = [0, *sorted(cuts), 200]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    merged = moments_of_chunks((X[p], Y[p], w[p]) for p in parts)
    assert_close(merged, moments(X, Y, sample_weight=w))


@given(st.integers(0, 2**31), st.integers(1, 198))
def test_subtracting_a_fold_leaves_the_rest(seed, cut):
    X, Y, w = make_rows(seed, mean=-2.0)
    fold, rest = slice(0, cut), slice(cut, None)
    left = moments(X, Y, sample_weight=w) - moments(X[fold], Y[fold], sample_weight=w[fold])
    assert_close(left, moments(X[rest], Y[rest], sample_weight=w[rest]), rtol=1e-10)


def test_integer_weights_are_copies():
    X, Y, _ = make_rows(1)
    copies = np.arange(200) % 3
    weighted = moments(X, Y, sample_weight=copies)
    repeated = moments(np.repeat(X, copies, axis=0), np.repeat(Y, copies, axis=0))
    np.testing.assert_allclose(weighted.gram, repeated.gram, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(weighted.cross, repeated.cross, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_a_large_mean_costs_no_digits(dtype, bound):
    X, Y, w = make_rows(2, n=6000, mean=1000.0)
    X = X.astype(dtype)
    exact = direct(X.astype(np.float64), Y, w)[2]
    found = moments(X, Y, sample_weight=w).gram
    assert np.linalg.norm(found - exact, 2) / np.linalg.norm(exact, 2) < bound


def test_float32_rows_may_be_multiplied_in_float64():
    X, Y, _ = make_rows(3)
    X = X.astype(np.float32)
    assert moments(X, Y).rounding > moments(X, Y, dtype=np.float64).rounding
    assert_close(moments(X, Y, dtype=np.float64), moments(X.astype(np.float64), Y))


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_mapped_rows_equal_rows_in_memory(tmp_path, mode):
    X, Y, _ = make_rows(4, n=9000)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    found = moments(mapped, Y)
    np.testing.assert_array_equal(found.gram, moments(X, Y).gram)
    np.testing.assert_array_equal(mapped, X)


def test_changes_in_copy_on_write_pages_survive(tmp_path):
    X, Y, _ = make_rows(4)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    mapped[:] = 1.0
    moments(mapped, Y)
    assert (mapped == 1.0).all()


def test_rows_are_chunked_without_loss():
    X, Y, w = make_rows(5, n=10)
    pieces = list(row_chunks(X, Y, w, rows=4))
    assert [len(piece[0]) for piece in pieces] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([piece[1] for piece in pieces]), Y)


def test_tree_reduce_has_a_fixed_shape():
    shapes = [tree_reduce(lambda a, b: f"({a}{b})", "abcdefg"[:n]) for n in (1, 2, 3, 5, 7)]
    assert shapes == ["a", "(ab)", "((ab)c)", "(((ab)(cd))e)", "(((ab)(cd))((ef)g))"]


def test_streamed_chunks_are_bitwise_repeatable():
    X, Y, _ = make_rows(6)
    chunks = list(row_chunks(X, Y, rows=17))
    partial = [moments_of_chunks([chunk]) for chunk in chunks]
    np.testing.assert_array_equal(moments_of_chunks(chunks).gram, tree_reduce(Moments.__add__, partial).gram)


def test_uncentred_statistics_restore_the_origin():
    X, Y, w = make_rows(7, mean=2.0)
    raw = moments(X, Y, sample_weight=w).uncentred()
    np.testing.assert_allclose(raw.gram, (X.T * w) @ X, rtol=1e-12)
    np.testing.assert_allclose(raw.cross, (X.T * w) @ Y, rtol=1e-12)
    np.testing.assert_allclose(raw.target_square, w @ Y**2, rtol=1e-12)


def test_bad_input_is_named():
    X, Y, w = make_rows(8)
    bad = X.copy()
    bad[7, 3] = np.nan
    with pytest.raises(ValueError, match="X holds 1 NaN or infinite"):
        moments(bad, Y)
    with pytest.raises(ValueError, match="Y holds 200 NaN or infinite"):
        moments(X, np.full(200, np.inf))
    with pytest.raises(ValueError, match="same positive number of rows"):
        moments(X, Y[:-1])
    with pytest.raises(ValueError, match="same positive number of rows"):
        moments(X[:0], Y[:0])
    with pytest.raises(ValueError, match="2 dimensions"):
        moments(X[0], Y)
    with pytest.raises(ValueError, match="sample_weight has 10 entries for 200 rows"):
        moments(X, Y, sample_weight=w[:10])
    with pytest.raises(ValueError, match="non-negative"):
        moments(X, Y, sample_weight=-w)
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        moments(X, Y, dtype=np.int8)
    with pytest.raises(ValueError, match="too large for products in float32"):
        moments(X * 1e30, Y, dtype=np.float32)
    with pytest.raises(ValueError, match="no chunk"):
        moments_of_chunks([])
    with pytest.raises(ValueError, match="nothing would be left"):
        moments(X, Y) - moments(X, Y)
    with pytest.raises(ValueError, match="do not mix"):
        moments(X, Y) + moments(X[:, :2], Y)
    with pytest.raises(TypeError):
        moments(X, Y) + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        moments(X, Y) - 1  # type: ignore[operator]


def test_squares_never_fall_below_zero():
    X = np.zeros((4000, 40), dtype=np.float32)
    rows = np.random.default_rng(0).integers(0, 4000, 40)
    X[rows, np.arange(40)] = np.float32(0.7)  # a single number in a column: all of its square cancels nearly
    parts = [moments(X[i : i + 500] + np.float32(3.1), X[i : i + 500, :1]) for i in range(0, 4000, 500)]
    whole = tree_reduce(Moments.__add__, parts)
    for part in parts:
        assert part.gram.diagonal().min() >= 0.0
        assert (whole - part).gram.diagonal().min() >= 0.0
