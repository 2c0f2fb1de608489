import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from liftopt import Dense, ManifoldClassifier, ManifoldRegressor, Network
from liftopt.activations import Identity, LeakyReLU, Sigmoid
from liftopt.layers import Normalize
from liftopt.manifold import PAPER
from liftopt.manifold_cycle import low_rank_target, transpose_target
from liftopt.manifold_descent import (
    DescentSettings,
    Penalty,
    RowBlockDescent,
    Rows,
    carry_linear,
    initial_weights,
)
from liftopt.solvers.affine import AffineMap
from liftopt.solvers.least_squares import solve_ridge


@parametrize_with_checks(
    [
        ManifoldClassifier((12,), max_iter=10),
        ManifoldRegressor((12,), max_iter=10),
    ]
)
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)


EXACT = Penalty(decay=0.0, ridge=1e-10)


def linear_rows(rng, n=60, k=5, c=3):
    Z = np.hstack([rng.normal(size=(n, k)), np.ones((n, 1))])
    return Rows(Z, rng.normal(size=(n, c)), None)


def descent_of(rows, weights, activation, *, one_sided=False, penalty=EXACT, **settings):
    exact = {"step": 1.0, "momentum": 0.0, "proximity": 0.0, "damping": 0.0, "trust": np.inf, "clip": np.inf}
    return RowBlockDescent(
        rows,
        weights,
        activation,
        one_sided=one_sided,
        block_size=rows.Z.shape[0],
        penalty=penalty,
        settings=DescentSettings(**(exact | settings)),
    )


# --- the blocks of the descent ---------------------------------------------------------------------------


def test_one_exact_step_of_a_linear_layer_is_the_least_squares_fit(rng):
    rows = linear_rows(rng)
    descent = descent_of(rows, [rng.normal(size=(6, 4))], Identity())
    descent.step(None, 1.0)
    expected = rows.Z @ np.linalg.lstsq(rows.Z, rows.Y, rcond=None)[0]
    np.testing.assert_allclose(descent.outputs(rows.Z), expected, atol=1e-6)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("widths", [(7,), (8, 7)])
def test_the_step_descends_the_loss_of_the_network(rng, one_sided, widths):
    rows = linear_rows(rng, n=200)
    if one_sided:
        rows = rows._replace(Y=np.sign(rows.Y))
    weights = initial_weights(rows, widths, LeakyReLU(), np.random.RandomState(0))
    descent = descent_of(rows, weights, LeakyReLU(), one_sided=one_sided, proximity=1.0, step=1e-3)
    before = [W.copy() for W in weights]
    descent.step(None, 1.0)
    head = descent.B
    moved = descent.loss(*rows)
    for W, old in zip(descent.weights, before, strict=True):
        W[:] = old
    np.testing.assert_array_equal(descent.B, head)
    assert moved < descent.loss(*rows)


def test_minimum_change_target_is_stationary(rng):
    # min_D p |D|^2 + |R - D B|_H^2 has the solution the descent uses
    heads, residual, active = rng.normal(size=(6, 3)), rng.normal(size=(10, 3)), np.array([0.2, 0.5, 1.0])
    proximity = 0.3
    gain = np.linalg.inv((heads.T @ heads) * active + proximity * np.eye(3))
    # R stands for H times the target change: the rows inside the margin only
    D = (residual * active) @ gain @ heads.T
    gradient = proximity * D - ((residual - D @ heads) * active) @ heads.T
    assert np.abs(gradient).max() < 1e-12


def test_hidden_layers_have_full_rank(digits):
    X, _, y, _ = digits
    network = ManifoldClassifier((40,), random_state=0).fit(X, y).network_
    assert np.linalg.matrix_rank(network.layers[0].arrays()["weight"], rtol=1e-9) > 9


@pytest.mark.parametrize("widths", [(6,), (8, 6), (9, 9, 9)])
@pytest.mark.parametrize(("activation", "tolerance"), [(LeakyReLU(), 1e-10), (Sigmoid(), 1e-3)])
def test_carried_layers_represent_the_linear_model(rng, widths, activation, tolerance):
    rows = linear_rows(rng)
    weights = carry_linear(rows, widths, activation, 1e-12)
    features = descent_of(rows, weights, activation).hidden(rows.Z)
    linear = rows.Z @ np.linalg.lstsq(rows.Z, rows.Y, rcond=None)[0]
    read = features @ np.linalg.lstsq(features, linear, rcond=None)[0]
    np.testing.assert_allclose(read, linear, atol=tolerance)


def test_blocks_of_all_rows_equal_full_passes(rng):
    rows = linear_rows(rng)
    start = initial_weights(rows, (10,), LeakyReLU(), np.random.RandomState(0))
    full = descent_of(rows, [start[0].copy()], LeakyReLU(), proximity=1.0)
    block = descent_of(rows, [start[0].copy()], LeakyReLU(), proximity=1.0)
    block.full, block._memory = False, 0.0
    for _ in range(3):
        full.step(None, 1.0)
        block.step(np.arange(60), 1.0)
    np.testing.assert_allclose(full.weights[0], block.weights[0], rtol=1e-9)


# --- the published cycle ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target_of", [low_rank_target, transpose_target])
def test_cycle_targets_are_functions_of_the_label(rng, target_of):
    codes = rng.integers(0, 3, size=50)
    Y = 2.0 * np.eye(3)[codes] - 1.0
    target = target_of(Y, AffineMap(rng.normal(size=(7, 3)), rng.normal(size=3)), Sigmoid())
    for label in range(3):
        own = target[codes == label]
        np.testing.assert_allclose(own, np.broadcast_to(own[0], own.shape))
    layer = solve_ridge(rng.normal(size=(50, 9)), target, alpha=0.3).x
    assert np.linalg.matrix_rank(layer.weight, rtol=1e-9) <= 2


def test_the_published_method_has_rank_one_less_than_classes(digits):
    X, X_test, y, y_test = digits
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        model = ManifoldClassifier((20, 15), **{**PAPER, "max_iter": 5}, random_state=0).fit(X / 16, y)
    first, between, second, *_ = model.network_.layers
    assert isinstance(between, Normalize)
    assert max(np.linalg.matrix_rank(layer.arrays()["weight"], rtol=1e-9) for layer in (first, second)) <= 9
    assert model.score(X_test / 16, y_test) > 0.8


def test_the_cycle_refuses_activations_without_a_squash(digits):
    X, _, y, _ = digits
    with pytest.raises(ValueError, match="sigmoid"):
        ManifoldClassifier((10,), backward="low_rank").fit(X, y)


# --- the estimators --------------------------------------------------------------------------------------


def test_digits_beat_the_linear_model(digits):
    X, X_test, y, y_test = digits
    model = ManifoldClassifier((100,), random_state=0).fit(X, y)
    linear = ManifoldClassifier((), random_state=0).fit(X, y)
    assert model.score(X_test, y_test) > max(0.965, linear.score(X_test, y_test))
    np.testing.assert_allclose(model.predict_proba(X_test).sum(axis=1), 1.0)


def test_not_worse_than_ridge_where_the_truth_is_linear():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(400, 10))
    y = X @ rng.normal(size=10) + 3.0 * rng.normal(size=400)
    X_test = rng.normal(size=(2000, 10))
    truth = Ridge(alpha=1.0).fit(X, y).predict(X_test)
    found = ManifoldRegressor((50,), random_state=0).fit(X, y).predict(X_test)
    assert np.std(found - truth) < 1.0


def test_history_is_time_stamped_and_counts_the_sweeps(digits):
    X, _, y, _ = digits
    model = ManifoldClassifier((30,), max_iter=7, random_state=0).fit(X, y)
    assert model.n_iter_ == len(model.history_) <= 7
    times = [record["time"] for record in model.history_]
    assert times == sorted(times)
    assert all({"loss", "validation_score", "decay", "cpu"} <= record.keys() for record in model.history_)


def test_same_seed_same_bits_and_float32_close(digits):
    X, X_test, y, y_test = digits
    first = ManifoldClassifier((30,), random_state=3).fit(X, y)
    again = ManifoldClassifier((30,), random_state=3).fit(X, y)
    np.testing.assert_array_equal(first.network_(X_test), again.network_(X_test))
    single = ManifoldClassifier((30,), random_state=3).fit(X.astype(np.float32), y)
    assert single.network_.dtype == np.float32
    assert abs(single.score(X_test.astype(np.float32), y_test) - first.score(X_test, y_test)) < 0.03


def test_many_rows_run_in_blocks():
    X, y = make_classification(3000, 10, n_informative=8, n_redundant=0, random_state=0)
    model = ManifoldClassifier((20,), max_iter=5, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.9


def test_a_weight_of_two_is_a_repetition():
    X, y = load_iris(return_X_y=True)
    X, y = X[::3], y[::3]  # too few rows to hold any out: no random split
    weight = np.where(np.arange(50) % 2, 2.0, 1.0)
    weighted = ManifoldClassifier((9,), random_state=0).fit(X, y, sample_weight=weight)
    doubled = np.repeat(np.arange(50), weight.astype(int))
    repeated = ManifoldClassifier((9,), random_state=0).fit(X[doubled], y[doubled])
    np.testing.assert_allclose(weighted.network_.scores(X), repeated.network_.scores(X), rtol=1e-5, atol=1e-6)


def test_callback_stops_and_interruption_keeps_the_best(digits):
    X, X_test, y, y_test = digits
    stopped = ManifoldClassifier((20,), callback=lambda record: record["iteration"] == 2).fit(X, y)
    assert stopped.n_iter_ == 3

    def interrupt(record):
        if record["iteration"] == 5:
            raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match="interrupted"):
        kept = ManifoldClassifier((40,), callback=interrupt, random_state=0).fit(X, y)
    assert kept.score(X_test, y_test) > 0.85


def test_starts_from_a_network_and_goes_on_warm(digits):
    X, X_test, y, y_test = digits
    rough = ManifoldClassifier((40,), max_iter=3, random_state=0).fit(X, y)
    onward = ManifoldClassifier(init=rough.network_, random_state=0).fit(X, y)
    assert onward.network_.layers[0].arrays()["weight"].shape == (64, 40)
    assert onward.score(X_test, y_test) >= rough.score(X_test, y_test)
    warm = clone(rough).set_params(warm_start=True, max_iter=20).fit(X, y)
    assert warm.fit(X, y).score(X_test, y_test) > 0.9


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "elu", "hard_sigmoid", "soft_threshold"])
def test_every_activation_trains(digits, activation):
    X, X_test, y, y_test = digits
    model = ManifoldClassifier((60,), activation=activation, random_state=0).fit(X, y)
    assert model.score(X_test, y_test) > 0.9


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_depth_does_not_collapse(digits, depth):
    X, X_test, y, y_test = digits
    model = ManifoldClassifier((40,) * depth, random_state=0).fit(X, y)
    assert model.score(X_test, y_test) > 0.93


def test_several_outputs_keep_their_units(rng):
    X = rng.normal(size=(300, 4))
    Y = np.column_stack([1e4 * X[:, 0] + 5e4, 1e-3 * np.abs(X[:, 1]), np.full(300, 7.0)])
    predicted = ManifoldRegressor((40,), random_state=0).fit(X, Y).predict(X)
    assert np.std(predicted[:, 0] - Y[:, 0]) < 0.1 * np.std(Y[:, 0])
    assert np.std(predicted[:, 1] - Y[:, 1]) < 0.5 * np.std(Y[:, 1])
    np.testing.assert_allclose(predicted[:, 2], 7.0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_degenerate_features_give_finite_networks(rng, scale):
    X = rng.normal(size=(60, 80)) * scale
    X[:, 1] = X[:, 0]
    X[:, 2] = 5.0
    y = (X[:, 0] > 0).astype(int)
    model = ManifoldClassifier((200,), random_state=0).fit(X, y)
    assert isinstance(model.network_, Network)
    assert isinstance(model.network_.layers[0], Dense)
    assert np.isfinite(model.predict_proba(X)).all()
    assert model.score(X, y) > 0.8


def test_all_features_constant_predicts_the_majority():
    y = np.array([0] * 30 + [1] * 70)
    model = ManifoldClassifier((5,), random_state=0).fit(np.ones((100, 3)), y)
    assert (model.predict(np.ones((4, 3))) == 1).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"backward": "sideways"}, "backward"),
        ({"head": "tail"}, "head"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"max_iter": 0}, "max_iter"),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes"),
        ({"activation": "swish"}, "activation"),
        ({"input_map": "magic"}, "input_map"),
        ({"validation_fraction": 1.5}, "validation_fraction"),
        ({"init": "nobody"}, "unknown method"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=message):
        ManifoldClassifier(**parameters).fit(X, y)


def test_one_class_and_nan_are_refused():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="one class"):
        ManifoldClassifier().fit(X[:50], y[:50])
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ManifoldClassifier().fit(X, y)
