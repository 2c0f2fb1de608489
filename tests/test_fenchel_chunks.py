"""Fenchel networks from the chunks of a stream."""

from typing import Any

import numpy as np
import pytest

from liftopt import FenchelClassifier, FenchelRegressor, stream

N, D = 6000, 6
LIMIT = 400_000  # of 1.15 MB with its copies


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(N, D))
    f = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + 0.5 * X[:, 3]
    return X, f + 0.1 * rng.normal(size=N), np.where(f > 0.5, "high", np.where(f < -0.5, "low", "mid"))


def rows_of(X, y, **changes):
    return stream(X, y, memory_limit=LIMIT, executor="serial", **changes)


def test_streamed_networks_are_as_good(data):
    X, y, labels = data
    regressor = FenchelRegressor(hidden_layer_sizes=(48,), max_iter=12, random_state=0).fit(rows_of(X, y))
    assert regressor.score(X, y) > 0.9
    classifier = FenchelClassifier(hidden_layer_sizes=(48,), max_iter=12, random_state=0)
    classifier.fit(rows_of(X, labels))
    assert classifier.score(rows_of(X, labels)) > 0.8
    assert classifier.classes_.tolist() == ["high", "low", "mid"]
    assert classifier.n_features_in_ == D
    assert {"chunk", "chunks", "training_score"} <= set(classifier.history_[-1])


def test_a_resumed_fit_is_the_same(data, tmp_path):
    X, y, _ = data
    settings: dict[str, Any] = {"hidden_layer_sizes": (8,), "max_iter": 2, "random_state": 0}
    seen: list[object] = []

    def interrupt(record):
        seen.append(record)
        if len(seen) == 9:
            raise KeyboardInterrupt

    path = tmp_path / "c"
    with pytest.warns(UserWarning, match="interrupted"):
        early = FenchelRegressor(callback=interrupt, checkpoint=path, **settings).fit(rows_of(X, y))
    assert early.score(X, y) > 0.2
    resumed = FenchelRegressor(checkpoint=path, **settings).fit(rows_of(X, y))
    expected = FenchelRegressor(**settings).fit(rows_of(X, y))
    for one, other in zip(resumed.network_.layers, expected.network_.layers, strict=True):
        assert one.arrays()["weight"].tobytes() == other.arrays()["weight"].tobytes()
    assert len(resumed.history_) == len(expected.history_)
    assert not path.exists()


def test_weights_and_classes_count(data):
    X, y, labels = data
    weight = (np.arange(N) % 2).astype(float)
    weight[: N // 4] = 0.0  # whole chunks among them
    spoilt = np.where(weight > 0, y, 100.0)
    rows = rows_of(X, spoilt, sample_weight=weight)
    assert FenchelRegressor(hidden_layer_sizes=(32,), max_iter=8, random_state=0).fit(rows).score(X, y) > 0.7
    balanced = FenchelClassifier(class_weight="balanced", max_iter=1, random_state=0).fit(rows_of(X, labels))
    assert balanced.score(X, labels) > 0.6
