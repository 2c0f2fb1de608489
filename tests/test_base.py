import logging
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score

from liftopt import Conv2d, Dense, Flatten, Network, get_activation
from liftopt.base import (
    TrainingData,
    check_layer_sizes,
    holdout_split,
    initial_network,
    score_of,
    score_outputs,
    starting_network,
)
from liftopt.methods import make_estimator
from liftopt.recording import Recorder, run_interruptible


def classes(codes, weight=None, X=None):
    codes = np.asarray(codes)
    target = np.eye(codes.max() + 1)[codes]
    return TrainingData(np.zeros((len(codes), 2)) if X is None else X, target, codes, weight)


def targets(target, weight=None):
    target = np.asarray(target, dtype=float).reshape(len(target), -1)
    return TrainingData(np.zeros((len(target), 2)), target, None, weight)


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5), fraction=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_holdout_is_stratified_and_keeps_every_class_in_train(counts, fraction, seed):
    codes = np.repeat(np.arange(len(counts)), counts)
    train, held = holdout_split(classes(codes), fraction, np.random.RandomState(seed))
    assert sorted([*train, *held]) == list(range(len(codes)))
    assert set(codes[train]) == set(codes)
    expected = np.floor(fraction * np.array(counts)).astype(int)
    if expected.sum() >= 10:
        assert np.bincount(codes[held], minlength=len(counts)).tolist() == expected.tolist()
    else:
        assert held.size == 0


def test_holdout_is_random_repeatable_and_spares_zero_weights():
    weight = np.ones(200)
    weight[:150] = 0
    data = targets(np.arange(200), weight)
    one = holdout_split(data, 0.5, np.random.RandomState(0))[1]
    np.testing.assert_array_equal(one, holdout_split(data, 0.5, np.random.RandomState(0))[1])
    assert not np.array_equal(one, holdout_split(data, 0.5, np.random.RandomState(1))[1])
    assert (weight[one] > 0).all()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, np.nan])
def test_holdout_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match=r"validation_fraction must be in \[0, 1\)"):
        holdout_split(classes([0, 1] * 20), fraction, np.random.RandomState(0))


def test_scores_equal_scikit_learn(rng):
    weight = rng.random(50)
    data, outputs = classes(rng.integers(0, 3, 50), weight), rng.normal(size=(50, 3))
    expected = accuracy_score(data.codes, outputs.argmax(axis=1), sample_weight=weight)
    assert score_outputs(outputs, data) == pytest.approx(expected)
    data, outputs = targets(rng.normal(size=(50, 2)), weight), rng.normal(size=(50, 2))
    assert score_outputs(outputs, data) == pytest.approx(r2_score(data.target, outputs, sample_weight=weight))


def test_score_of_constant_targets_is_finite():
    data = targets(np.full(20, 3.0))
    assert score_outputs(data.target, data) == 1.0
    assert np.isfinite(score_outputs(data.target + 1, data))


def test_score_of_a_network(rng):
    X = rng.normal(size=(30, 2))
    codes = (X[:, 0] > 0).astype(int)
    network = Network([Dense(np.array([[-1.0, 1.0], [0.0, 0.0]]), np.zeros(2), get_activation("softmax"))])
    assert score_of(network, classes(codes, X=X)) == 1.0


def test_recorder_stamps_logs_and_asks_the_callback(caplog):
    seen = []

    def second(record):
        seen.append(record)
        return len(seen) == 2

    recorder = Recorder("fit", verbose=1, callback=second)
    with caplog.at_level(logging.INFO, "liftopt"):
        assert [recorder.add(loss=0.5), recorder.add(loss=0.25, note="x")] == [False, True]
    assert recorder.history == seen
    assert [record["iteration"] for record in seen] == [0, 1]
    assert 0 <= seen[0]["time"] <= seen[1]["time"]
    assert "fit iteration=1" in caplog.text
    assert "loss=0.25 note=x" in caplog.text
    caplog.clear()
    assert Recorder("fit").add(loss=1.0) is False
    assert caplog.text == ""
    with pytest.raises(ValueError, match="callback must be callable, got 3"):
        Recorder("fit", callback=3)  # type: ignore[arg-type]


def test_interruption_warns_and_other_errors_pass():
    def interrupted():
        raise KeyboardInterrupt

    def broken():
        raise ZeroDivisionError

    with pytest.warns(ConvergenceWarning, match="m was interrupted: the best network so far is kept"):
        run_interruptible(interrupted, "m")
    with pytest.raises(ZeroDivisionError):
        run_interruptible(broken, "m")


def test_layer_sizes():
    assert check_layer_sizes(7) == (7,)
    assert check_layer_sizes([7, np.int64(3)]) == (7, 3)
    assert check_layer_sizes(()) == ()
    for bad in ((0,), (2.5,), "ab", None, (True,)):
        with pytest.raises(ValueError, match="hidden_layer_sizes must be an integer >= 1"):
            check_layer_sizes(bad)


def test_initial_network_has_unit_scale_signals(rng):
    X = rng.normal(size=(2000, 50))
    for name in ("relu", "leaky_relu", "elu", "tanh", "sigmoid"):
        network = initial_network((50, 400, 400, 3), name, "regression", np.float64, np.random.RandomState(0))
        assert 0.1 < network.hidden(X)[-1].std() < 2.0
        assert [str(layer).split(", ")[1].split("(")[0] for layer in network.layers] == [
            name,
            name,
            "identity",
        ]
    softmax = initial_network((4, 3), "relu", "classification", np.float32, np.random.RandomState(0))
    assert softmax.dtype == np.float32
    np.testing.assert_allclose(softmax(X[:5, :4]).sum(axis=1), 1, rtol=1e-6)


def test_starting_network_is_checked(rng):
    data = classes([0, 1, 2] * 5, X=rng.normal(size=(15, 4)))
    state = np.random.RandomState(0)
    assert starting_network(None, data, state) is None
    logits = Network([Dense(rng.normal(size=(4, 3)), np.zeros(3))], metadata={"a": 1})
    start = starting_network(logits, data, state)
    assert start is not None
    assert start.metadata == {"a": 1}
    np.testing.assert_allclose(start(data.X).sum(axis=1), 1)
    np.testing.assert_array_equal(start.scores(data.X), logits(data.X))
    relu = Network([Dense(np.ones((4, 3)), np.zeros(3), get_activation("relu"))])
    flat = Network([Conv2d(np.ones((3, 1, 2, 2)), np.zeros(3)), Flatten()], (1, 2, 2))
    for network in (relu, flat):
        with pytest.raises(
            ValueError, match="init must end in a Dense layer with a linear or a softmax head"
        ):
            starting_network(network, data, state)
    with pytest.raises(ValueError, match="init maps 3 features to 3 outputs, the data need 4 to 3"):
        starting_network(Network([Dense(np.eye(3), np.zeros(3))]), data, state)


def test_starting_network_fits_the_named_method_with_weights(rng):
    X = rng.normal(size=(60, 3))
    weight = np.where(X[:, 0] > 0, 1.0, 0.0)
    codes = np.where(weight > 0, X[:, 1] > 0, X[:, 1] < 0).astype(int)  # the unweighted rows say the contrary
    start = starting_network(
        "adam", classes(codes, weight, X), np.random.RandomState(0), hidden_layer_sizes=(8,), max_iter=200
    )
    assert start is not None
    assert score_of(start, classes(codes, weight, X)) > 0.9


class StopAfter:
    """Callback of scikit-learn's protocol: notes the tasks, asks to stop after some subtasks."""

    def __init__(self, subtasks):
        self.subtasks, self.seen, self.records = subtasks, [], []

    def setup(self, estimator, context):
        self.seen.append("setup")

    def teardown(self, estimator, context):
        self.seen.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.seen.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.seen.append(f"end {context.task_name}")
        if context.task_name == "iteration":
            assert fitted_estimator is None
            self.records.append(estimator.history_[-1])
        else:
            assert fitted_estimator.network_ is estimator.network_
        return len(self.records) >= self.subtasks


@pytest.mark.skipif(not find_spec("sklearn.callback"), reason="scikit-learn has no callbacks before 1.9")
@pytest.mark.parametrize("name", ["manifold", "fenchel", "ternary", "adam"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_callbacks_of_scikit_learn_follow_the_fit_and_stop_it(name):
    X, y = load_iris(return_X_y=True)
    model = make_estimator(name, "classification", hidden_layer_sizes=(5,), random_state=0, max_iter=20)
    callback = StopAfter(2)
    model.set_callbacks(callback).fit(X, y)
    iteration = ["begin iteration", "end iteration"]
    assert callback.seen == ["setup", "begin fit", *iteration, *iteration, "end fit", "teardown"]
    assert callback.records == model.history_
    assert len(model.history_) == 2
    assert not {name for name in vars(clone(model).fit(X, y)) if "callback_" in name}


def test_progress_bar_of_scikit_learn_runs(capsys):
    callback = pytest.importorskip("sklearn.callback")
    X, y = load_iris(return_X_y=True)
    model = make_estimator("manifold", "classification", hidden_layer_sizes=(5,), random_state=0, max_iter=3)
    model.set_callbacks(callback.ProgressBar()).fit(X, y)
    assert "ManifoldClassifier" in capsys.readouterr().out
