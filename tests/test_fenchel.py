"""Fenchel estimators: scikit-learn's checks, the user's path, bad input, equivalences."""

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits, load_iris, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from liftopt import AvgPool2d, Conv2d, Dense, FenchelClassifier, FenchelRegressor, Flatten, Network
from liftopt.activations import get_activation
from liftopt.methods import make_estimator


@parametrize_with_checks(
    [FenchelClassifier(max_iter=3, alpha=1e-2), FenchelRegressor(max_iter=3, alpha=1e-2)]
)
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X, y, random_state=0, stratify=y)


@pytest.mark.parametrize(("mode", "least"), [("monotone", 0.955), ("stochastic", 0.96)])
def test_digits(digits, mode, least):
    X, X_test, y, y_test = digits
    model = FenchelClassifier(hidden_layer_sizes=(64,), mode=mode, max_iter=12, random_state=0)
    model.set_params(alpha=1e-3 if mode == "monotone" else "auto").fit(X, y)
    assert model.score(X_test, y_test) > least
    assert model.network_.layers[0].arrays()["weight"].shape == (64, 64)
    np.testing.assert_allclose(model.predict_proba(X_test).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("depth", [3, 10])
def test_depth_does_not_collapse(digits, depth):
    X, X_test, y, y_test = digits
    hidden = (50,) * depth
    model = FenchelClassifier(hidden_layer_sizes=hidden, mode="stochastic", max_iter=40, random_state=0)
    assert model.fit(X, y).score(X_test, y_test) > 0.92


@pytest.mark.parametrize("factor", [1 / 16, 16.0])
def test_step_race_forgives_a_far_first_step(digits, factor):
    X, X_test, y, y_test = digits
    model = FenchelClassifier(step=0.08 * factor, mode="stochastic", max_iter=15, random_state=0).fit(X, y)
    assert model.history_[0]["step"] != 0.08 * factor
    assert model.score(X_test, y_test) > 0.96


@pytest.mark.parametrize("mode", ["stochastic", "monotone"])
def test_every_pass_has_a_validation_score(digits, mode):
    X, _, y, _ = digits
    model = FenchelClassifier(mode=mode, max_iter=3, random_state=0).fit(X[:500], y[:500])
    scores = [record["validation_score"] for record in model.history_]
    assert 0.5 < max(scores) <= 1.0


def test_scores_of_the_margin_head_are_calibrated(digits):
    X, X_test, y, y_test = digits
    model = FenchelClassifier(mode="stochastic", max_iter=15, random_state=0).fit(X, y)
    assert log_loss(y_test, model.predict_proba(X_test)) < 0.25


def test_monotone_history_falls_and_reports_the_gap():
    X, y = load_iris(return_X_y=True)
    model = FenchelClassifier(alpha=1e-2, max_iter=15, random_state=0).fit(X, y)
    objectives = [record["objective"] for record in model.history_]
    assert np.diff(objectives).max() <= 1e-8
    for key in ("lifted_loss", "forward_loss", "gap", "penalties", "values", "weights", "ridge"):
        assert key in model.history_[-1]


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge", "squared"])
@pytest.mark.parametrize("mode", ["monotone", "stochastic"])
def test_classification_heads(loss, mode):
    X, y = load_iris(return_X_y=True)
    model = FenchelClassifier(loss=loss, mode=mode, max_iter=20, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.85


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("mode", ["monotone", "stochastic"])
def test_regression_heads_and_outputs(loss, mode):
    X, y = make_regression(300, 6, n_targets=3, random_state=0)
    model = FenchelRegressor(loss=loss, mode=mode, max_iter=40, alpha=1e-5, random_state=0).fit(X, 1e3 * y)
    assert model.predict(X).shape == (300, 3)
    assert model.score(X, 1e3 * y) > 0.9


def test_small_regression_is_regularised():
    X, y = load_diabetes(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    assert FenchelRegressor(random_state=0).fit(X, y).score(X_test, y_test) > 0.3


def test_string_labels_class_weight_and_unequal_classes():
    X, y = load_iris(return_X_y=True)
    names = np.array(["a", "b", "c"])[y]
    model = FenchelClassifier(max_iter=5, class_weight={"a": 1.0, "b": 1.0, "c": 1e-9}, random_state=0)
    assert "c" not in model.fit(X, names).predict(X)
    balanced = FenchelClassifier(max_iter=5, class_weight="balanced", random_state=0).fit(X, names)
    assert balanced.score(X, names) > 0.9


def lenet(rng):
    relu, softmax = get_activation("relu"), get_activation("softmax")
    conv = Conv2d(rng.normal(size=(6, 1, 3, 3)) / 3, np.zeros(6), relu)
    dense = Dense(rng.normal(size=(54, 10)) / 7, np.zeros(10), softmax)
    return Network([conv, AvgPool2d(2), Flatten(), dense], (1, 8, 8))


@pytest.mark.parametrize("mode", ["auto", "monotone"])
def test_convolutional_start_keeps_its_architecture(digits, rng, mode):
    X, X_test, y, y_test = digits
    model = FenchelClassifier(init=lenet(rng), mode=mode, max_iter=20, alpha=1e-3, random_state=0)
    model.fit(X[:600] / 16, y[:600])
    assert isinstance(model.network_.layers[0], Conv2d)
    assert model.score(X_test / 16, y_test) > 0.8


def test_any_method_can_start(digits):
    X, X_test, y, y_test = digits
    first = FenchelClassifier(mode="stochastic", max_iter=5, random_state=0).fit(X, y)
    again = FenchelClassifier(init=first.network_, mode="stochastic", max_iter=3, random_state=0).fit(X, y)
    assert again.score(X_test, y_test) > first.score(X_test, y_test) - 0.02
    named = make_estimator("fenchel", "classification", init="manifold", mode="stochastic", max_iter=1)
    assert named.fit(X[:300], y[:300]).network_.input_shape == (64,)


def test_no_hidden_layer_and_warm_start(digits):
    X, _, y, _ = digits
    model = FenchelClassifier(
        mode="monotone",
        hidden_layer_sizes=(),
        alpha=1e-2,
        max_iter=3,
        warm_start=True,
        validation_fraction=0.0,  # else the best sweep is kept, not the last
    )
    loss = model.fit(X, y).history_[-1]["objective"]
    assert model.fit(X, y).history_[0]["objective"] <= loss + 1e-6


def test_callback_stops_and_same_seed_same_weights(digits):
    X, _, y, _ = digits
    models = [
        FenchelClassifier(mode="stochastic", callback=lambda record: record["iteration"] >= 1, random_state=3)
        for _ in range(2)
    ]
    one, two = (model.fit(X, y) for model in models)
    assert one.n_iter_ == 2
    np.testing.assert_array_equal(one.network_(X), two.network_(X))


def awkward(case):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 5)), rng.integers(3, size=60)
    match case:
        case "constant features":
            X[:] = 7.0
        case "duplicate features":
            X[:, 1:] = X[:, :1]
        case "huge scale":
            X *= 1e8
        case "tiny scale":
            X *= 1e-8
        case "mixed scales":
            X *= 10.0 ** np.array([-8, -4, 0, 4, 8])
        case "one sample a class":
            X, y = X[:3], np.arange(3)
        case "unbalanced":
            y[:] = 0
            y[0] = 1
    return X, y


CASES = (
    "constant features",
    "duplicate features",
    "huge scale",
    "tiny scale",
    "mixed scales",
    "one sample a class",
    "unbalanced",
)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", ["monotone", "stochastic"])
def test_awkward_data_give_a_finite_network(case, mode):
    X, y = awkward(case)
    model = FenchelClassifier(mode=mode, max_iter=5, random_state=0).fit(X, y)
    assert np.isfinite(model.decision_function(X)).all()
    regressor = FenchelRegressor(mode=mode, max_iter=5, random_state=0).fit(X, y.astype(float))
    assert np.isfinite(regressor.predict(X)).all()


@pytest.mark.parametrize("mode", ["monotone", "stochastic"])
def test_equal_and_extreme_targets(mode):
    X = np.random.default_rng(0).normal(size=(50, 3))
    constant = FenchelRegressor(mode=mode, max_iter=5, random_state=0).fit(X, np.full(50, 4.0))
    np.testing.assert_allclose(constant.predict(X), 4.0, atol=1e-4)
    tiny = FenchelRegressor(mode=mode, max_iter=20, random_state=0).fit(X, 1e-8 * X[:, 0])
    assert tiny.score(X, 1e-8 * X[:, 0]) > 0.8


def test_dead_units_are_harmless(digits):
    X, _, y, _ = digits
    network = FenchelClassifier(mode="stochastic", max_iter=1, random_state=0).fit(X, y).network_
    width = network.layers[1].arrays()["weight"].shape[0]
    dead = Dense(np.zeros((64, width)), np.full(width, -1e3), get_activation("relu"))
    model = FenchelClassifier(init=Network([dead, network.layers[1]]), mode="stochastic", max_iter=3)
    assert np.isfinite(model.fit(X, y).decision_function(X)).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"multiplier": np.nan}, "multiplier must be a finite number"),
        ({"multiplier": -1.0}, "multiplier must be a finite number"),
        ({"step": np.nan}, "step must be a finite number"),
        ({"step": -0.1}, "step must be a finite number"),
        ({"alpha": -1.0}, "alpha must be a finite number"),
        ({"dropout": 1.0}, "dropout must be a finite number"),
        ({"input_noise": np.inf}, "input_noise must be a finite number"),
        ({"max_iter": 0}, "max_iter must be an integer"),
        ({"batch_size": 0}, "batch_size must be an integer"),
        ({"mode": "fast"}, "mode must be one of auto"),
        ({"loss": "huber"}, "loss must be one of cross_entropy"),
        ({"order": "random"}, "order must be one of parallel"),
        ({"multiplier_schedule": "up"}, "multiplier_schedule must be one of fixed"),
        ({"n_jobs": 0}, "n_jobs must be an integer"),
        ({"input_map": "zca"}, "input_map must be"),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes must be an integer"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=message):
        FenchelClassifier(**parameters).fit(X, y)


def test_input_map_in_front_of_a_convolution_is_refused(digits, rng):
    X, _, y, _ = digits
    with pytest.raises(ValueError, match="first Dense layer"):
        FenchelClassifier(init=lenet(rng), input_map="pca").fit(X, y)


def test_interrupted_fit_keeps_what_it_has(digits):
    X, _, y, _ = digits

    def interrupt(record):
        if record["iteration"] == 2:
            raise KeyboardInterrupt

    for mode in ("monotone", "stochastic"):
        model = FenchelClassifier(mode=mode, callback=interrupt, random_state=0)
        with pytest.warns(ConvergenceWarning, match="interrupted"):
            model.fit(X, y)
        assert model.score(X, y) > 0.8


def test_stream_of_chunks(digits):
    X, X_test, y, y_test = digits
    model = FenchelClassifier(hidden_layer_sizes=(64,), random_state=0)
    for _ in range(8):
        for start in range(0, 1347, 450):
            model.partial_fit(X[start : start + 450], y[start : start + 450], classes=np.arange(10))
    assert model.score(X_test, y_test) > 0.94
    with pytest.raises(ValueError, match="not among the classes"):
        model.partial_fit(X[:20], y[:20] + 1)


def test_stream_of_targets_and_short_first_chunk(rng):
    X = rng.normal(size=(300, 4))
    y = 50.0 + 7.0 * np.abs(X[:, 0])
    with pytest.raises(ValueError, match="at least 10 rows"):
        FenchelRegressor().partial_fit(X[:3], y[:3])
    model = FenchelRegressor(random_state=0)
    for _ in range(30):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.9


def test_a_given_ridge_is_that_of_all_rows(rng):
    X = rng.normal(size=(25_000, 3)).astype(np.float32)
    y = X @ np.array([1.0, -2.0, 0.5])
    settings: dict[str, Any] = {"hidden_layer_sizes": (), "mode": "monotone", "alpha": 1.0, "random_state": 0}
    few, many = (FenchelRegressor(**settings).fit(X[:n], y[:n]) for n in (9_000, 25_000))
    for model in (few, many):  # of which the second begins with a sample
        assert np.std(model.predict(X)) / np.std(y) == pytest.approx(1 / (1 + 1.0), abs=0.03)
