import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftopt.solvers.value_sets import as_values, quantize

SETS = [(-1, 0, 1), (-1, 1), (0, 1), (1, 2), (-2, -1, 0, 1, 2), (-0.5, 0, 1, 3)]


@pytest.mark.parametrize("values", SETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_against_enumeration(rng, values, weighted):
    for _ in range(5):
        W = rng.normal(size=(5, 2))
        h = rng.random(5) if weighted else np.ones(5)
        result = quantize(W, values, importance=h)
        for k in range(2):
            best = np.inf
            for point in itertools.product(values, repeat=5):
                t = np.array(point)
                p, q = (h * t * W[:, k]).sum(), (h * t * t).sum()
                best = min(best, (h * W[:, k] ** 2).sum() - (max(p, 0.0) ** 2 / q if q > 0 else 0.0))
            assert result.info["error"][k] == pytest.approx(best, abs=1e-10)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
def test_ternary_threshold_form(column):
    """The optimum is the sign of the k largest entries, for the best k."""
    w = np.array(column)[:, None]
    ordered = np.sort(np.abs(w[:, 0]))[::-1]
    best = max(np.cumsum(ordered) ** 2 / np.arange(1, w.size + 1))
    assert quantize(w).objective == pytest.approx((w**2).sum() - best, abs=1e-7)


def test_zero_columns_get_scale_zero():
    result = quantize(np.zeros((4, 1)), (-1, 1))
    assert result.x.scale[0] == 0.0
    assert not result.x.dense().any()


@pytest.mark.parametrize(
    ("values", "message"),
    [((), "two"), ((3,), "two"), ((1, 1), "repeat"), ((0, np.inf), "finite"), (range(300), "at most")],
)
def test_bad_value_sets(values, message):
    with pytest.raises(ValueError, match=message):
        as_values(values)


def test_bad_input():
    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="non-negative"):
        quantize(np.ones((2, 1)), importance=[-1.0, 1.0])
