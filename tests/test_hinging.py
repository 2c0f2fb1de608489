import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from liftopt import HingingHyperplaneClassifier, HingingHyperplaneRegressor, SplineRegressor


@parametrize_with_checks([HingingHyperplaneRegressor(), HingingHyperplaneClassifier()])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture
def data(rng):
    X = rng.normal(size=(500, 5))
    rotated = X @ np.linalg.qr(rng.normal(size=(5, 5)))[0]
    y = np.abs(rotated[:, 0]) - np.maximum(rotated[:, 1] + 0.5, 0) + 0.3 * rotated[:, 2]
    return X * [1, 10, 100, 0.1, 1] + 3.0, y + 0.05 * rng.normal(size=500)


def everywhere(X):
    """Rows inside and far outside the range of the data."""
    return np.vstack([X, X.mean(0) + 30 * (X - X.mean(0)), X - 100 * X.std(0)])


def test_network_equals_the_hyperplanes_everywhere(data):
    X, y = data
    Y = np.column_stack([y, 1e3 * X[:, 0] ** 2, np.full(len(y), 7.0)])
    model = HingingHyperplaneRegressor(n_hinges=8).fit(X, Y)
    np.testing.assert_allclose(model.network_(X), model.hyperplanes_(X), atol=1e-9)
    rows = everywhere(X)
    np.testing.assert_allclose(model.network_(rows), model.hyperplanes_(rows), rtol=1e-12, atol=1e-8)
    np.testing.assert_array_equal(model.predict(X), model.network_(X))
    hinges = model.hyperplanes_.offsets.size
    shapes = [layer.arrays()["weight"].shape for layer in model.network_.layers]
    assert shapes == [(5, hinges + 6), (hinges + 6, 3)]


def test_raw_function_is_the_fitted_one(data):
    X, y = data
    model = HingingHyperplaneRegressor(n_hinges=4).fit(X, y)
    rows = (X - X.mean(0)) / X.std(0)
    fitted = model.result_.x(rows)[:, 0] * y.std() + y.mean()
    np.testing.assert_allclose(model.predict(X), fitted, atol=1e-9)


def test_beats_axis_aligned_hinges_on_rotated_structure(data):
    X, y = data
    train, held = np.arange(500) % 3 > 0, np.arange(500) % 3 == 0
    oblique = HingingHyperplaneRegressor(n_hinges=6).fit(X[train], y[train])
    aligned = SplineRegressor().fit(X[train], y[train])
    assert oblique.score(X[held], y[held]) > 0.97
    assert oblique.score(X[held], y[held]) > aligned.score(X[held], y[held])


def test_float_weights_have_no_unit(data, rng):
    X, y = data
    weight = rng.random(500) + 0.5
    a = HingingHyperplaneRegressor(n_hinges=3).fit(X, y, weight)
    b = HingingHyperplaneRegressor(n_hinges=3).fit(X, y, 1e-6 * weight)
    np.testing.assert_allclose(a.predict(X), b.predict(X), rtol=1e-6, atol=1e-8)


def test_float32_gives_a_float32_network(data):
    X, y = data
    model = HingingHyperplaneRegressor(n_hinges=4).fit(X.astype(np.float32), y.astype(np.float32))
    assert model.network_.dtype == np.float32
    np.testing.assert_allclose(model.network_(X.astype(np.float32)), model.hyperplanes_(X), atol=1e-3)


def test_classifier_is_a_softmax_regression_on_its_hinges():
    X, y = load_iris(return_X_y=True)
    model = HingingHyperplaneClassifier(n_hinges=4, alpha=0.05).fit(X, y)
    rows = everywhere(X)
    np.testing.assert_allclose(model.network_.scores(rows), model.hyperplanes_(rows), rtol=1e-9, atol=1e-9)
    assert "softmax" in str(model.network_.layers[-1])
    design = np.column_stack([X, model.hyperplanes_.hinges(X)])
    design = (design - design.mean(0)) / design.std(0)
    reference = LogisticRegression(C=1 / (0.05 * len(y)), max_iter=10_000, tol=1e-8).fit(design, y)
    np.testing.assert_allclose(model.predict_proba(X), reference.predict_proba(design), atol=1e-3)


def test_a_class_without_weight_is_never_predicted():
    X, y = load_iris(return_X_y=True)
    model = HingingHyperplaneClassifier().fit(X, y, (y > 0).astype(float))
    assert set(model.predict(X[y > 0])) == {1, 2}


def test_digits_beats_logistic_regression():
    X, y = load_digits(return_X_y=True)
    held = np.arange(len(y)) % 5 == 0
    model = make_pipeline(PCA(20), HingingHyperplaneClassifier()).fit(X[~held], y[~held])
    linear = make_pipeline(PCA(20), LogisticRegression(max_iter=5000)).fit(X[~held], y[~held])
    assert model.score(X[held], y[held]) > linear.score(X[held], y[held])
    assert model.score(X[held], y[held]) > 0.94


def test_bad_parameters_are_refused(data):
    for change, message in (({"n_hinges": 1.5}, "n_hinges"), ({"alpha": 0.0}, "alpha"), ({"tol": -1}, "tol")):
        with pytest.raises(ValueError, match=message):
            HingingHyperplaneRegressor(**change).fit(*data)
