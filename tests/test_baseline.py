import logging
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from liftopt import (
    AvgPool2d,
    BackpropClassifier,
    BackpropRegressor,
    Conv2d,
    Dense,
    Flatten,
    Network,
    get_activation,
)
from liftopt.backprop import Settings, rate_factor
from liftopt.input_map import fit_input_map


@parametrize_with_checks([BackpropClassifier(max_iter=40), BackpropRegressor(max_iter=40)], xfail_strict=True)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X.astype(np.float32), y, test_size=0.3, random_state=0, stratify=y)


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "adamw"}, {"optimizer": "momentum", "learning_rate_init": 0.1}, {"schedule": "cosine"},
     {"input_map": "pca"}, {"input_map": {"n_components": 40}}, {"activation": "tanh"},
     {"early_stopping": True}],
)  # fmt: skip
def test_digits_reach_the_accuracy_of_scikit_learns_mlp(options):
    X, X_test, y, y_test = digits()
    model = BackpropClassifier(hidden_layer_sizes=(64,), max_iter=30, random_state=0, **options).fit(X, y)
    assert model.score(X_test, y_test) > 0.95  # scikit-learn's MLP with Adam: 0.96 to 0.98
    assert model.network_.dtype == np.float32
    assert [layer.arrays()["weight"].shape for layer in model.network_.layers] == [(64, 64), (64, 10)]


def test_no_worse_than_scikit_learns_mlp_at_equal_epochs():
    X, X_test, y, y_test = digits()
    scale = StandardScaler().fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer = MLPClassifier((64,), learning_rate_init=0.01, batch_size=64, max_iter=30, random_state=0)
        peer.fit(scale.transform(X), y)
    ours = BackpropClassifier(hidden_layer_sizes=(64,), max_iter=30, random_state=0).fit(X, y)
    assert ours.score(X_test, y_test) >= peer.score(scale.transform(X_test), y_test) - 0.01


def test_without_hidden_layers_it_is_logistic_regression():
    X, y = load_iris(return_X_y=True)
    model = BackpropClassifier(
        hidden_layer_sizes=(), alpha=0.0, max_iter=600, learning_rate_init=0.3, batch_size=150, random_state=0
    ).fit(X, y)
    reference = LogisticRegression(C=np.inf, max_iter=10000, tol=1e-8).fit(X, y)
    assert np.mean(model.predict(X) == reference.predict(X)) > 0.98


def test_without_hidden_layers_it_is_least_squares():
    X, y = load_diabetes(return_X_y=True)
    model = BackpropRegressor(
        hidden_layer_sizes=(), alpha=0.0, max_iter=800, learning_rate_init=0.1, batch_size=500, random_state=0
    ).fit(X, y)
    np.testing.assert_allclose(model.predict(X), Ridge(alpha=1e-10).fit(X, y).predict(X), atol=1.0)


def test_without_hidden_layers_input_noise_is_a_ridge():
    """Its expectation adds ``noise^2 |W|^2`` to the mean squared error."""
    X, y = load_diabetes(return_X_y=True)
    model = BackpropRegressor(
        hidden_layer_sizes=(), alpha=0.0, input_noise=0.7, max_iter=800, batch_size=500, random_state=0
    ).fit(X, y)
    ridge = make_pipeline(StandardScaler(), Ridge(alpha=0.7**2 * len(y))).fit(X, y)
    least_squares = Ridge(alpha=1e-10).fit(X, y)
    error, effect = (np.std(model.predict(X) - other.predict(X)) for other in (ridge, least_squares))
    assert error < 0.1 * effect


@pytest.mark.parametrize("input_map", ["standardise", {"n_components": 5}, None])
def test_one_full_batch_step_of_momentum_is_the_gradient_step_on_mapped_inputs(rng, input_map):
    """The oracle is autograd on the mapped rows, then the fold."""
    X, y = rng.normal(size=(40, 8)), rng.integers(0, 3, 40)
    weight = rng.integers(1, 4, 40).astype(float)
    options: dict[str, Any] = {
        "hidden_layer_sizes": (6,), "activation": "tanh", "optimizer": "momentum", "schedule": "constant",
        "batch_size": 40, "input_map": input_map, "random_state": 0, "n_iter_no_change": 100,
    }  # fmt: skip
    with pytest.warns(ConvergenceWarning, match="no plateau"):
        first = BackpropClassifier(max_iter=1, learning_rate_init=1e-12, **options).fit(X, y, weight).network_
    second = BackpropClassifier(max_iter=1, learning_rate_init=0.1, alpha=0.0, **options)
    with pytest.warns(ConvergenceWarning, match="no plateau"):
        second.fit(X, y, weight)
    first_layer, tanh, head, _ = first.to_torch()
    logits = head(tanh(first_layer(torch.from_numpy(X))))
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none")
    loss = losses @ torch.from_numpy(weight / weight.sum())
    (gradient,) = torch.autograd.grad(loss, [next(head.parameters())])
    step = -0.1 * 1.9 * gradient.numpy().T  # Nesterov's first step: 1 + momentum times the gradient
    found = second.network_.layers[-1].arrays()["weight"] - first.layers[-1].arrays()["weight"]
    np.testing.assert_allclose(found, step, atol=1e-8)


def test_pca_map_is_the_shared_one(rng):
    """Training on the map inside equals training on mapped rows outside."""
    X, X_test, y, _ = digits()
    outside = fit_input_map(X, n_components=30)
    options: dict[str, Any] = {"hidden_layer_sizes": (16,), "max_iter": 3, "random_state": 1}
    inner = BackpropClassifier(input_map=None, **options).fit(outside.transform(X), y)
    folded = BackpropClassifier(input_map={"n_components": 30}, **options).fit(X, y)
    np.testing.assert_allclose(
        folded.decision_function(X_test), inner.decision_function(outside.transform(X_test)), atol=1e-3
    )


def test_same_seed_same_weights_and_global_torch_state_untouched():
    X, _, y, _ = digits()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    fits = [BackpropClassifier(max_iter=2, random_state=3).fit(X, y).network_ for _ in range(2)]
    for one, two in zip(fits[0].layers, fits[1].layers, strict=True):
        np.testing.assert_array_equal(one.arrays()["weight"], two.arrays()["weight"])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    other = BackpropClassifier(max_iter=2, random_state=4).fit(X, y).network_
    assert not np.array_equal(other.layers[0].arrays()["weight"], fits[0].layers[0].arrays()["weight"])


def test_history_callback_and_log(caplog):
    X, _, y, _ = digits()
    seen = []

    def stop_after_three(record):
        seen.append(record)
        return record["iteration"] == 2

    with caplog.at_level(logging.INFO, "liftopt"):
        model = BackpropClassifier(
            max_iter=9, early_stopping=True, callback=stop_after_three, verbose=True, random_state=0
        ).fit(X, y)
    assert model.n_iter_ == 3
    assert model.history_ == seen
    times = [record["time"] for record in model.history_]
    assert times == sorted(times)
    assert {"loss", "learning_rate", "validation_score", "cpu"} <= set(seen[0])
    assert caplog.text.count("BackpropClassifier iteration=") == 3


def test_early_stopping_keeps_the_best_epoch():
    X, X_test, y, _ = digits()
    options: dict[str, Any] = {
        "hidden_layer_sizes": (32,),
        "early_stopping": True,
        "random_state": 0,
        "n_iter_no_change": 4,
    }
    model = BackpropClassifier(max_iter=60, tol=0.002, **options).fit(X, y)
    scores = [record["validation_score"] for record in model.history_]
    assert model.n_iter_ == len(scores) < 60
    best = int(np.argmax(scores))
    cut: dict[str, Any] = {
        "max_iter": 60,
        "tol": 0.002,
        "callback": lambda record: record["iteration"] == best,
    }
    again = BackpropClassifier(**options, **cut).fit(X, y)
    np.testing.assert_array_equal(again.decision_function(X_test), model.decision_function(X_test))


def test_constant_schedule_stops_at_a_plateau():
    X, y = load_iris(return_X_y=True)
    options: dict[str, Any] = {
        "schedule": "constant",
        "optimizer": "momentum",
        "random_state": 0,
        "hidden_layer_sizes": (5,),
    }
    model = BackpropClassifier(max_iter=2000, n_iter_no_change=5, tol=1e-3, **options).fit(X, y)
    assert model.n_iter_ < 2000
    with pytest.warns(ConvergenceWarning, match="no plateau within max_iter=3"):
        BackpropClassifier(max_iter=3, **options).fit(X, y)


def test_divergence_warns_and_keeps_finite_weights(rng):
    X, y = rng.normal(size=(200, 4)), rng.normal(size=200)
    model = BackpropRegressor(
        optimizer="momentum", learning_rate_init=1e6, random_state=0, hidden_layer_sizes=(8, 8)
    )
    with pytest.warns(ConvergenceWarning, match="diverged in epoch .*: reduce learning_rate_init"):
        model.fit(X, y)
    assert np.isfinite(model.predict(X)).all()


def test_interruption_keeps_the_last_epoch():
    X, X_test, y, _ = digits()

    def interrupt(record):
        if record["iteration"] == 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"max_iter": 20, "random_state": 0}
    with pytest.warns(ConvergenceWarning, match="interrupted: the best network so far is kept"):
        model = BackpropClassifier(callback=interrupt, **options).fit(X, y)
    stopped = BackpropClassifier(callback=lambda record: record["iteration"] == 2, **options).fit(X, y)
    np.testing.assert_array_equal(model.decision_function(X_test), stopped.decision_function(X_test))


def test_warm_start_and_init_continue_from_the_network():
    X, X_test, y, y_test = digits()
    model = BackpropClassifier(max_iter=5, warm_start=True, random_state=0).fit(X, y)
    first, network = model.score(X_test, y_test), model.network_
    tiny: dict[str, Any] = {"learning_rate_init": 1e-12, "optimizer": "momentum", "max_iter": 1, "alpha": 0.0}
    kept = model.set_params(**tiny).fit(X, y)
    assert kept.score(X_test, y_test) == first
    continued = BackpropClassifier(init=network, random_state=0, **tiny).fit(X, y)
    np.testing.assert_allclose(continued.decision_function(X), network.scores(X)[:, :], atol=1e-3)


def test_init_accepts_a_network_of_logits_without_softmax(rng):
    X, y = load_iris(return_X_y=True)
    init = Network([Dense(rng.normal(size=(4, 3)), np.zeros(3))])
    model = BackpropClassifier(init=init, max_iter=2, random_state=0).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)


def test_regressor_continues_from_a_network(rng):
    X, y = rng.normal(size=(60, 3)), 1e6 + 1e5 * rng.normal(size=(60, 2))
    init = BackpropRegressor(random_state=0, hidden_layer_sizes=(7,), max_iter=5).fit(X, y).network_
    tiny: dict[str, Any] = {"learning_rate_init": 1e-12, "optimizer": "momentum", "max_iter": 1, "alpha": 0.0}
    again = BackpropRegressor(init=init, random_state=0, **tiny).fit(X, y)
    np.testing.assert_allclose(again.predict(X), init(X), rtol=1e-9)


def test_convolutional_networks_train_through_init(rng):
    X, X_test, y, y_test = digits()
    relu, softmax = get_activation("relu"), get_activation("softmax")
    draw = lambda *shape: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)  # noqa: E731
    zeros = lambda n: np.zeros(n, np.float32)  # noqa: E731
    start = Network(
        [Conv2d(draw(12, 1, 3, 3), zeros(12), relu, padding=1), AvgPool2d(2), Flatten(),
         Dense(draw(10, 192).T.copy(), zeros(10), softmax)],
        (1, 8, 8), {"note": "kept"},
    )  # fmt: skip
    model = BackpropClassifier(init=start, input_map=None, max_iter=15, random_state=0).fit(X / 16, y)
    assert model.score(X_test / 16, y_test) > 0.95
    assert model.network_.input_shape == (1, 8, 8)
    assert model.network_.metadata == {"note": "kept"}
    with pytest.raises(ValueError, match="first Dense layer only: use input_map=None"):
        BackpropClassifier(init=start).fit(X, y)


def test_scales_of_features_and_targets_do_not_matter(rng):
    X, y = rng.normal(size=(150, 4)), rng.normal(size=150)
    units = np.array([1e-8, 1.0, 1e4, 1e8])
    options: dict[str, Any] = {"random_state": 0, "max_iter": 20, "alpha": 0.0}
    plain = BackpropRegressor(**options).fit(X, y).predict(X)
    scaled = BackpropRegressor(**options).fit(X * units, y * 1e6 + 1e7).predict(X * units)
    np.testing.assert_allclose((scaled - 1e7) / 1e6, plain, atol=1e-6)


def test_awkward_data_train_to_finite_networks(rng):
    cases = {
        "constant and duplicate columns": np.c_[np.ones(30), np.arange(30.0), np.arange(30.0)],
        "all constant": np.ones((30, 2)),
        "fewer rows than features": rng.normal(size=(30, 100)),
        "float32 with an offset": (rng.normal(size=(30, 3)) + 1e5).astype(np.float32),
    }
    y = np.arange(30) % 3
    for X in cases.values():
        for input_map in ("standardise", "pca"):
            options: dict[str, Any] = {"input_map": input_map, "max_iter": 3, "random_state": 0}
            assert np.isfinite(BackpropClassifier(**options).fit(X, y).predict_proba(X)).all()
            assert np.isfinite(BackpropRegressor(**options).fit(X, y * 1.0).predict(X)).all()
    assert np.allclose(
        BackpropRegressor(max_iter=3).fit(cases["all constant"], np.full(30, 5.0)).predict([[1, 1]]), 5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lbfgs"}, "optimizer must be one of adam, adamw, momentum, sgd, schedule_free"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"learning_rate_init": 0.0}, "learning_rate_init must be a finite number > 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"max_iter": 2.5}, "max_iter must be an integer"),
        ({"alpha": -1.0}, "alpha must be"),
        ({"input_noise": -1.0}, "input_noise must be"),
        ({"hidden_layer_sizes": (3, 0)}, "hidden_layer_sizes must be an integer >= 1"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
        ({"input_map": "zca"}, "input_map must be"),
        ({"validation_fraction": 1.0, "early_stopping": True}, "validation_fraction must be"),
        ({"init": "magic"}, "unknown method 'magic'; choose one of"),
        ({"init": 3}, "init must be None, a method name or a Network"),
        (
            {"init": Network([Dense(np.eye(2), np.zeros(2))])},
            "init maps 2 features to 2 outputs, the data need 4 to 3",
        ),
        ({"callback": 3}, "callback must be callable"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be"),
        ({"tol": np.nan}, "tol must be"),
    ],
)
def test_bad_parameters_are_named(change, message):
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=message):
        BackpropClassifier(**change).fit(X, y)


def test_bad_data_are_explained():
    X, y = load_breast_cancer(return_X_y=True)
    with pytest.raises(ValueError, match="at least two classes, y holds one class"):
        BackpropClassifier().fit(X, np.zeros_like(y))
    with pytest.raises(ValueError, match=r"sample_weight is zero|non-zero number"):
        BackpropClassifier().fit(X, y, sample_weight=np.zeros(len(y)))
    with pytest.raises(ValueError, match="Negative values"):
        BackpropClassifier().fit(X, y, sample_weight=-np.ones(len(y)))
    broken = X.copy()
    broken[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        BackpropClassifier().fit(broken, y)
    model = BackpropClassifier(max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        model.predict(broken)


def test_too_few_rows_for_a_hold_out_warn():
    X, y = load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="too few rows to hold any out"):
        model = BackpropClassifier(early_stopping=True, max_iter=2).fit(X[::5], y[::5])
    assert "validation_score" not in model.history_[0]


def test_missing_torch_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ImportError, match=r"pip install 'liftopt\[torch\]'"):
        BackpropClassifier().fit(X, y)


def test_schedules_start_peak_and_end_where_they_say():
    assert rate_factor("constant", 0.7) == 1.0
    assert rate_factor("cosine", 0.0) == 1.0
    assert rate_factor("one_cycle", 0.0) == pytest.approx(0.04)
    assert rate_factor("one_cycle", 0.25) == 1.0
    for schedule in ("one_cycle", "cosine"):
        assert rate_factor(schedule, 1.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("batch_size", "n", "steps"),
    [
        ("auto", 1, 1),
        ("auto", 120, 2),
        ("auto", 1437, 23),
        ("auto", 5000, 40),
        ("auto", 60000, 235),
        (7, 15, 3),
    ],
)
def test_steps_of_an_epoch(batch_size, n, steps):
    settings = Settings("adam", 0.01, "one_cycle", batch_size, 1, 0.0, 1, 0.0)
    assert settings.n_batches(n) == steps
