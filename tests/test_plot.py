import sys
from dataclasses import replace
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_iris

from liftopt import Conv2d, Dense, FiniteArray, Flatten, Network, SplineClassifier, get_activation
from liftopt.compare import compare
from liftopt.methods import make_estimator
from liftopt.plot import ComparisonDisplay, ConvergenceDisplay, NetworkDisplay

RELU = get_activation("relu")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


HISTORY = [
    {"iteration": 0, "time": 0.1, "cpu": 0.1, "loss": 3.0},
    {"iteration": 1, "time": 0.3, "cpu": 0.2, "loss": 2.0, "validation_score": 0.5},
    {"iteration": 2, "time": 0.4, "cpu": 0.3, "loss": 1.5, "validation_score": 0.7},
]


def test_convergence_of_a_history():
    display = ConvergenceDisplay.from_history(HISTORY, over="cpu", label="mine", color="red")
    np.testing.assert_array_equal(display.line_.get_xydata(), [[0.2, 0.5], [0.3, 0.7]])
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("CPU seconds", "validation score")
    assert display.line_.get_color() == "red"
    assert display.ax_.get_legend().get_texts()[0].get_text() == "mine"
    loss = ConvergenceDisplay.from_history(HISTORY, quantity="loss", ax=display.ax_)
    assert loss.ax_ is display.ax_
    assert loss.figure_ is display.figure_
    assert len(display.ax_.lines) == 2
    again = loss.plot()
    assert again.ax_ is not display.ax_


def test_convergence_of_estimators_and_recipes():
    X, y = load_iris(return_X_y=True)
    common = {"hidden_layer_sizes": (4,), "random_state": 0}
    recipe = make_estimator("manifold+fenchel", "classification", common=common).fit(X, y)
    display = ConvergenceDisplay.from_estimator(recipe, over="time")
    assert {text.get_text().strip() for text in display.ax_.texts} == {"manifold", "fenchel"}
    assert np.isnan(display.line_.get_ydata()).sum() == 1
    display = ConvergenceDisplay.from_estimator(SplineClassifier().fit(X, y))
    assert (np.diff(display.line_.get_ydata()) < 0).all()
    with pytest.raises(ValueError, match="SplineClassifier has no history_"):
        ConvergenceDisplay.from_estimator(SplineClassifier())


def test_quantities_that_were_not_recorded_are_refused_with_those_that_were():
    with pytest.raises(
        ValueError, match="no record has 'gap'; there are iteration, time, cpu, loss, validation_score"
    ):
        ConvergenceDisplay.from_history(HISTORY, quantity="gap")
    with pytest.raises(ValueError, match="no record has 'cpu'"):
        ConvergenceDisplay.from_history([{"iteration": 0, "loss": 1.0}], over="cpu")


def test_weights_as_matrix_and_as_pictures(rng):
    W = rng.normal(size=(12, 5))
    network = Network([Dense(W, np.zeros(5), RELU), Dense(W[:5], np.zeros(5))])
    matrix = NetworkDisplay.from_network(network)
    np.testing.assert_array_equal(matrix.artists_[0].get_array(), W.T)
    low, high = matrix.artists_[0].get_clim()
    assert -low == high == np.quantile(np.abs(W), 0.98)
    pictures = NetworkDisplay.from_network(network, image_shape=(3, 4)).artists_[0].get_array()
    assert pictures.shape == (2 * 4 - 1, 3 * 5 - 1)
    np.testing.assert_array_equal(pictures[:3, 5:9], W[:, 1].reshape(3, 4))
    assert np.ma.getmaskarray(pictures)[3].all()
    second = NetworkDisplay.from_network(network, layer=1)
    np.testing.assert_array_equal(second.artists_[0].get_array(), W[:5].T)
    assert second.ax_.get_title() == "Dense 5 -> 5, identity"


def test_kernels_and_ternary_maps(rng):
    codes = rng.integers(0, 3, size=(4, 2, 3, 3))
    packed = FiniteArray.from_codes(codes, np.array([-1.0, 0, 1]), rng.uniform(1, 2, 4))
    display = NetworkDisplay.from_network(Network([Conv2d(packed, np.zeros(4)), Flatten()], (2, 4, 4)))
    image = display.artists_[0]
    assert image.get_array().shape == (3 * 4 - 1, 3 * 4 - 1)
    np.testing.assert_array_equal(image.get_array()[:3, 4:7], codes[0, 1])
    assert image.cmap.N == 3
    colourbar = display.figure_.axes[-1]
    assert [text.get_text() for text in colourbar.get_yticklabels()] == ["-1", "0", "1"]
    dense = FiniteArray.from_codes(codes.reshape(4, 18), np.array([-1.0, 0, 1]), rng.uniform(1, 2, 4))
    matrix = NetworkDisplay.from_network(Network([Dense(dense, np.zeros(4))])).artists_[0].get_array()
    np.testing.assert_array_equal(matrix, codes.reshape(4, 18))


def test_hinges_in_one_and_two_dimensions():
    line = Network(
        [Dense(np.array([[2.0, 1.0, 0.0]]), np.array([-1.0, 3.0, 1.0]), RELU), Dense(np.eye(3), np.zeros(3))]
    )
    shown = NetworkDisplay.from_network(line, kind="hinges").artists_
    assert [artist.get_xdata()[0] for artist in shown] == [0.5, -3.0]
    W, b = np.array([[1.0, 2.0], [1.0, -1.0]]), np.array([-2.0, 4.0])
    plane = NetworkDisplay.from_network(Network([Dense(W, b, RELU)]), kind="hinges")
    for artist, weight, offset in zip(plane.artists_, W.T, b, strict=True):
        for point in (artist.get_xy1(), artist.get_xy2()):
            assert weight @ point + offset == pytest.approx(0)


def test_what_cannot_be_drawn_is_refused(rng):
    network = Network([Dense(rng.normal(size=(12, 5)), np.zeros(5), RELU)])
    smooth = Network([Dense(np.eye(2), np.zeros(2), get_activation("tanh"))])
    cases: list[Any] = [
        (network, {"kind": "magic"}, "kind must be"),
        (network, {"layer": 1}, "layer must be below 1"),
        (network, {"image_shape": (3, 5)}, "the 12 inputs of the layer are no 3 x 5 image"),
        (network, {"kind": "hinges"}, "one or two inputs"),
        (smooth, {"kind": "hinges"}, "units of tanh do not bend"),
    ]
    for shown, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            NetworkDisplay.from_network(shown, **settings)


def test_comparison(stand_ins):
    comparison = compare("iris", repeats=2)
    display = ComparisonDisplay.from_comparison(comparison, markersize=9)
    assert [artist.get_label() for artist in display.artists_] == list(comparison.methods)
    for artist, name in zip(display.artists_, comparison.methods, strict=True):
        runs = comparison.runs_of(name)
        np.testing.assert_allclose(artist.get_xydata(), [[run.cpu, 100 * run.score] for run in runs])
    assert display.ax_.get_xscale() == "log"
    assert display.ax_.get_title() == "iris"
    with pytest.raises(ValueError, match="no finished run"):
        ComparisonDisplay.from_comparison(replace(comparison, runs=()))


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'liftopt\[plots\]'"):
        ConvergenceDisplay.from_history(HISTORY)
