from typing import Any

import numpy as np
import pytest

from liftopt.solvers.validation import as_count, as_finite, as_scalar, as_square, as_weights


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_arrays_are_not_copied(dtype):
    array = np.ones((2, 3), dtype=dtype)
    assert as_finite("X", array, ndim=2) is array


@pytest.mark.parametrize(
    "value",
    [[[1, 2]], np.ones((1, 2), dtype=bool), [["1", "2"]], [[1, 2.5]], np.ones((1, 2), dtype=np.float16)],
)
def test_other_numbers_become_float64(value):
    assert as_finite("X", value).dtype == np.float64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([np.nan, 1.0], "X holds 1 NaN or infinite entries: remove or impute"),
        ([np.inf, -np.inf], "X holds 2 NaN or infinite"),
        ([None, 1.0], "X holds 1 NaN or infinite"),
        (["a"], "X must be numeric"),
        ([{}], "X must be numeric"),
        ([1j], "X must be real"),
        ([[1.0]], "X must have 1 dimensions, got shape \\(1, 1\\)"),
    ],
)
def test_bad_arrays_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        as_finite("X", value, ndim=1)


def test_empty_arrays_are_finite():
    assert as_finite("X", np.empty((0, 3))).shape == (0, 3)


def test_square_matrices_must_be_symmetric_beyond_rounding():
    matrix = np.array([[1.0, 2.0], [2.0 + 1e-14, 3.0]])
    assert as_square("G", matrix) is matrix
    assert as_square("G", np.empty((0, 0))).shape == (0, 0)
    with pytest.raises(ValueError, match=r"G must be square, got shape \(1, 2\)"):
        as_square("G", [[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"G must be symmetric: pass \(G \+ G.T\) / 2"):
        as_square("G", [[1.0, 2.0], [0.0, 3.0]])


def test_scalars_are_finite_and_in_range():
    assert as_scalar("alpha", np.float32(2), low=0.0) == 2.0
    assert as_scalar("alpha", 0, low=0.0) == 0.0
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (-1, {"low": 0.0}, "alpha must be a finite number >= 0, got -1.0"),
        (0, {"low": 0.0, "strict": True}, "alpha must be a finite number > 0, got 0.0"),
        (2, {"low": 0.0, "high": 1.0}, "alpha must be a finite number >= 0 and <= 1, got 2.0"),
        (2, {"high": 1.0}, "alpha must be a finite number <= 1, got 2.0"),
        (np.nan, {}, "alpha must be a finite number, got nan"),
        (np.inf, {"low": 0.0}, "alpha must be a finite number >= 0, got inf"),
        ("x", {}, "alpha must be a number, got 'x'"),
        (None, {}, "alpha must be a number, got None"),
    ]
    for value, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            as_scalar("alpha", value, **settings)


def test_counts_are_integers():
    assert as_count("k", np.int32(3)) == 3
    assert as_count("k", 0, low=0) == 0
    for value in (0, -1, 1.0, True, "2", None):
        with pytest.raises(ValueError, match="k must be an integer >= 1"):
            as_count("k", value)


def test_weights_are_checked():
    assert as_weights("w", None, 3) is None
    weights = as_weights("w", [1, 0, 2], 3)
    assert weights is not None
    assert weights.dtype == np.float64
    cases: list[tuple[Any, str]] = [
        ([1.0], "w has 1 entries for 3 rows"),
        ([[1.0]], "w must have 1 dimensions"),
        ([1.0, -1.0, 1.0], "w must be non-negative with a positive sum"),
        ([0.0, 0.0, 0.0], "w must be non-negative with a positive sum"),
        ([1.0, np.nan, 1.0], "w holds 1 NaN"),
    ]
    for value, message in cases:
        with pytest.raises(ValueError, match=message):
            as_weights("w", value, 3)
