"""What every method's estimators have in common, on input that users get wrong."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from liftopt import Dense, Network, stream
from liftopt.methods import METHODS, make_estimator

PAIRS = [
    (name, task)
    for name, method in METHODS.items()
    if find_spec(method.module)
    for task in ("classification", "regression")
]
SMALL: dict[str, Any] = {"hidden_layer_sizes": (6,), "max_iter": 5, "random_state": 0}


def of_task(task):
    """Parametrise over the methods for one task only."""
    pairs = [pair for pair in PAIRS if pair[1] == task]
    return pytest.mark.parametrize("estimator", pairs, ids="-".join, indirect=True)


@pytest.fixture(params=PAIRS, ids="-".join)
def estimator(request):
    name, task = request.param
    plain = make_estimator(name, task)
    known = plain.get_params()
    return plain.set_params(**{key: value for key, value in SMALL.items() if key in known})


def longer(estimator):
    """A clone that may run long enough to fit, where its method iterates."""
    return clone(estimator).set_params(**({"max_iter": 100} if "max_iter" in estimator.get_params() else {}))


@pytest.fixture
def codes(estimator):
    """A target that suits the estimator."""
    return lambda n: np.arange(n) % 3 if hasattr(estimator, "predict_proba") else np.arange(n) % 3 * 1.5


def check_finite(estimator, X, y, **fit):
    model = clone(estimator).fit(X, y, **fit)
    out = model.predict(X)
    assert out.shape == y.shape
    assert np.isfinite(out).all()
    for layer in model.network_.layers:
        assert all(np.isfinite(array).all() for array in layer.arrays().values())
    return model


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_awkward_data_give_finite_networks(estimator, codes, rng):
    n = 60
    X = rng.normal(size=(n, 4))
    cases = {
        "constant columns": np.c_[X, np.ones(n), np.zeros(n)],
        "all columns constant": np.ones((n, 3)),
        "duplicate columns": np.c_[X, X],
        "duplicate rows": np.repeat(X[:6], 10, axis=0),
        "scales": X * [1e-8, 1e8, 1.0, 1e-3],
        "offset": X + 1e5,
        "single column": X[:, :1],
        "float32": X.astype(np.float32),
        "integers": rng.integers(0, 5, (n, 4)),
        "not contiguous": np.asfortranarray(X)[::-1],
        "fewer rows than features": rng.normal(size=(n, 100)),
    }
    for name, case in cases.items():
        model = check_finite(estimator, case, codes(n))
        assert model.network_.input_shape == (case.shape[1],), name
        expected = np.float32 if case.dtype == np.float32 else np.float64
        assert model.network_.dtype == expected, name
    check_finite(estimator, rng.normal(size=(7, 50)), codes(7))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_weights_of_zero_and_of_a_single_row_are_fine(estimator, codes, rng):
    X = rng.normal(size=(60, 4))
    weight = np.where(np.arange(60) % 2, 1.0, 0.0)
    check_finite(estimator, X, codes(60), sample_weight=weight)
    check_finite(estimator, X, codes(60), sample_weight=np.eye(60)[5])
    huge = np.ones(60)
    huge[3] = 1e12
    check_finite(estimator, X, codes(60), sample_weight=huge)


def test_unusable_data_are_refused_with_the_reason(estimator, codes, rng):
    X, y = rng.normal(size=(30, 3)), codes(30)
    with_nan, with_inf = X.copy(), X.copy()
    with_nan[2, 1], with_inf[2, 1] = np.nan, np.inf
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (with_nan, y, {}, "NaN"),
        (with_inf, y, {}, "infinity"),
        (X[:0], y[:0], {}, "0 sample"),
        (X[:, :0], y, {}, "0 feature"),
        (X[0], y, {}, "1D array"),
        (X, y[:20], {}, "inconsistent numbers of samples"),
        (X, y, {"sample_weight": np.ones(5)}, "sample_weight"),
        (X, y, {"sample_weight": np.zeros(30)}, r"zero"),
        (X, y, {"sample_weight": -np.ones(30)}, "Negative"),
        (X, y, {"sample_weight": np.full(30, np.nan)}, "NaN"),
    ]
    if hasattr(estimator, "predict_proba"):
        cases += [(X, np.zeros(30, int), {}, "one class"), (X, rng.normal(size=30), {}, "continuous")]
    else:
        cases += [(X, np.where(np.arange(30) == 2, np.nan, y), {}, "NaN")]
    for rows, target, fit, message in cases:
        with pytest.raises(ValueError, match=message):
            clone(estimator).fit(rows, target, **fit)


def test_unknown_names_are_refused_with_the_choices(estimator, codes, rng):
    X, y = rng.normal(size=(30, 3)), codes(30)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"activation": "swish"}, "unknown activation 'swish'; choose one of"),
        ({"init": "magic"}, "unknown method 'magic'; choose one of"),
        (
            {"init": Network([Dense(np.eye(2), np.zeros(2))])},
            "init maps 2 features to 2 outputs, the data need 3",
        ),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes"),
        ({"max_iter": 0}, "max_iter"),
        ({"alpha": -1.0}, "alpha"),
        ({"callback": "loud"}, "callback must be callable"),
    ]
    known = estimator.get_params()
    for change, message in changes:
        if next(iter(change)) in known:
            with pytest.raises(ValueError, match=message):
                clone(estimator).set_params(**change).fit(X, y)


@of_task("classification")
def test_labels_of_any_kind_come_back(estimator, rng):
    X = np.repeat(np.eye(2), 20, axis=0) + 0.01 * rng.normal(size=(40, 2))
    for names in (["b", "a"], [True, False], [10, -3], [np.str_("ü"), np.str_("z")]):
        y = np.repeat(np.array(names), 20)
        model = longer(estimator).fit(X, y)
        assert model.predict(X).dtype == y.dtype
        assert model.classes_.tolist() == sorted(names)


@of_task("regression")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_several_outputs_and_target_units(estimator, rng):
    X = rng.normal(size=(80, 3))
    y = np.c_[X[:, 0] * 1e6 + 1e8, X[:, 1] * 1e-6, np.full(80, 4.0)]
    model = check_finite(longer(estimator), X, y)
    np.testing.assert_allclose(model.predict(X)[:, 2], 4.0, atol=1e-6)
    assert np.corrcoef(model.predict(X)[:, 0], y[:, 0])[0, 1] > 0.9
    assert np.corrcoef(model.predict(X)[:, 1], y[:, 1])[0, 1] > 0.9


@pytest.mark.parametrize("name", ["manifold", "spline", "ternary", "fenchel"])
def test_streamed_labels_and_weights(name):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6000, 6))
    y = np.where(X[:, 0] > 0, "a", "b")
    limit: dict[str, Any] = {"memory_limit": 1_000_000, "executor": "serial"}
    model = make_estimator(name, "classification", common={"random_state": 0, "hidden_layer_sizes": (8,)})
    column = model.fit(stream(X, y[:, None], **limit))
    assert column.predict(X[:5]).shape == (5,)
    assert column.score(stream(X, y[:, None], **limit)) == column.score(X, y) > 0.9
    with pytest.raises(ValueError, match="y should be a 1d array"):
        model.fit(stream(X, np.c_[y, y], **limit))
    with pytest.raises(ValueError, match="sample_weight is zero for every row"):
        model.fit(stream(X, y, sample_weight=np.zeros(6000), **limit))
