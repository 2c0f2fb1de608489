"""Fenchel networks in monotone mode from rows beyond memory: descent, the same bits anywhere, resuming."""

import os
import signal
from dataclasses import replace
from itertools import pairwise
from threading import Timer
from typing import Any

import numpy as np
import pytest

from liftopt import FenchelClassifier, FenchelRegressor, stream
from liftopt.activations import get_activation
from liftopt.continuation import refit_head
from liftopt.executor import JoblibExecutor, SerialExecutor
from liftopt.fenchel_parts import counted_labels, merged_counts
from liftopt.layers import Conv2d, Dense, Flatten
from liftopt.lifted import LiftedProblem
from liftopt.lifted_parts import PartedProblem, Point
from liftopt.lifted_store import store_rows
from liftopt.linear_maps import linear_maps
from liftopt.losses import CrossEntropy
from liftopt.monotone import BlockDescent
from liftopt.network import Network, dense_network
from liftopt.scratch import read_arrays, write_arrays

N, D = 3000, 6
LIMIT = 550_000  # of 0.58 MB with its copies
SETTINGS: dict[str, Any] = {
    "hidden_layer_sizes": (16,), "mode": "monotone", "alpha": 1e-3, "max_iter": 8,
    "random_state": 0,
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(N, D))
    f = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + 0.5 * X[:, 3]
    return X, f + 0.1 * rng.normal(size=N), np.where(f > 0.5, "high", np.where(f < -0.5, "low", "mid"))


def rows_of(X, y, executor="serial", **changes):
    return stream(X, y, memory_limit=LIMIT, executor=executor, **changes)


def same_weights(one, other):
    return all(
        a.arrays()[name].tobytes() == b.arrays()[name].tobytes()
        for a, b in zip(one.network_.layers, other.network_.layers, strict=True)
        for name in ("weight", "bias")
    )


@pytest.mark.parametrize("kind", [FenchelRegressor, FenchelClassifier])
def test_streamed_networks_are_as_good_and_descend(kind, data):
    X, y, labels = data
    y = y if kind is FenchelRegressor else labels
    settings = SETTINGS | {"max_iter": 20}
    streamed = kind(**settings).fit(rows_of(X, y))
    assert streamed.score(X, y) > (0.5 if kind is FenchelRegressor else 0.6)  # after 10 sweeps over all rows
    objectives = [record["objective"] for record in streamed.history_]
    forward = [i for i, record in enumerate(streamed.history_) if abs(record["gap"]) < 1e-9]
    assert len(forward) == 2  # the sample's start, and that of all rows
    for stage in (objectives[: forward[1]], objectives[forward[1] :]):
        assert len(stage) > 5
        assert all(after <= before + 1e-10 for before, after in pairwise(stage))


def test_processes_do_not_change_a_bit(data):
    X, _, labels = data
    settings = SETTINGS | {"max_iter": 4, "order": "sequence", "hidden_layer_sizes": (8, 6)}
    expected = FenchelClassifier(**settings).fit(rows_of(X, labels))
    found = FenchelClassifier(**settings).fit(rows_of(X, labels, JoblibExecutor(2)))
    assert same_weights(found, expected)


def test_a_killed_worker_does_not_change_a_bit(data):
    distributed = pytest.importorskip("distributed")
    X, y, _ = data
    settings = SETTINGS | {"max_iter": 4}
    expected = FenchelRegressor(**settings).fit(rows_of(X, y))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        victims = list(client.run(os.getpid).values())[:1]

        def kill(record):
            """Once, in the middle of the next pass over all rows."""
            if victims and len(found.history_) > 5:
                Timer(0.02, os.kill, (victims.pop(), signal.SIGKILL)).start()

        found = FenchelRegressor(callback=kill, **settings)
        found.fit(rows_of(X, y, client))
    assert not victims
    assert same_weights(found, expected)
    assert [r["objective"] for r in found.history_] == [r["objective"] for r in expected.history_]


@pytest.mark.parametrize("after", [3, 12])
def test_a_resumed_fit_is_the_same(after, data, tmp_path):
    X, y, _ = data
    seen: list[object] = []

    def interrupt(record):
        seen.append(record)
        if len(seen) == after:
            raise KeyboardInterrupt

    path = tmp_path / "c"
    with pytest.warns(UserWarning, match="interrupted"):
        FenchelRegressor(callback=interrupt, checkpoint=path, **SETTINGS).fit(rows_of(X, y))
    assert (tmp_path / "c.parts").is_dir()
    resumed = FenchelRegressor(checkpoint=path, **SETTINGS).fit(rows_of(X, y))
    expected = FenchelRegressor(**SETTINGS).fit(rows_of(X, y))
    assert same_weights(resumed, expected)
    assert [r["objective"] for r in resumed.history_] == [r["objective"] for r in expected.history_]
    assert not list(tmp_path.iterdir())


def test_weights_and_classes_count(data):
    X, y, labels = data
    weight = (np.arange(N) % 2).astype(float)
    weight[: N // 4] = 0.0  # whole chunks among them
    spoilt = np.where(weight > 0, y, 100.0)
    rows = rows_of(X, spoilt, sample_weight=weight)
    assert FenchelRegressor(**SETTINGS).fit(rows).score(X, y) > 0.4
    counts = {label: N / (3 * (labels == label).sum()) for label in ("high", "low", "mid")}
    balanced, by_hand = (
        FenchelClassifier(class_weight=spec, **SETTINGS).fit(rows_of(X, labels))
        for spec in ("balanced", counts)
    )
    assert same_weights(balanced, by_hand)


def test_labels_are_counted_over_chunks(data):
    _, _, labels = data
    rows = stream(np.ones((N, 1)), labels, memory_limit=16 * 8 * 700, executor="serial")
    found, counts = rows.reduce(counted_labels, merged_counts)
    expected = np.unique(labels, return_counts=True)
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(counts, expected[1])


def test_images_are_rows_of_a_stream(rng):
    kernels, weight = rng.normal(size=(2, 1, 3, 3)) / 3, rng.normal(size=(2 * 4 * 4, 2)) / 6
    relu = get_activation("relu")
    layers: list[Any] = [Conv2d(kernels, np.zeros(2), relu), Flatten(), Dense(weight, np.zeros(2))]
    network = Network(layers, (1, 6, 6))
    X = rng.normal(size=(2000, 36))
    y = network.scores(X).argmax(axis=1)
    start = Network([*layers[:2], Dense(rng.normal(size=(32, 2)) / 6, np.zeros(2))], (1, 6, 6))
    rows = stream(X, y, memory_limit=600_000, executor="serial")
    model = FenchelClassifier(init=start, mode="monotone", max_iter=8, random_state=0).fit(rows)
    assert model.score(X, y) > 0.9


def test_parts_in_files_descend_as_parts_in_memory(tmp_path, rng):
    sizes = [(4, 5), (5, 3)]
    weights, biases = [rng.normal(size=size) / 2 for size in sizes], [np.zeros(5), np.zeros(3)]
    maps = linear_maps(dense_network(weights, biases))
    X, target = rng.normal(size=(40, 4)), np.eye(3)[rng.integers(3, size=40)]
    problem = LiftedProblem(maps, CrossEntropy(), X, target, (0.3,), 1e-2, rng.uniform(1, 2, 40))
    parts = [replace(problem, total=problem.mass).rows(slice(i, i + 16)) for i in range(0, 40, 16)]
    stored = [store_rows(str(tmp_path), part) for part in parts]
    ends = []
    for kind in (parts, stored):
        parted = PartedProblem(tuple(kind), SerialExecutor())
        start = parted.forward(Point(tuple(weights), tuple(biases)))
        run = BlockDescent(parted).run(start, max_iter=12, tol=0.0)
        assert np.diff([record["objective"] for record in run.history]).max() <= 1e-12
        ends.append((run.state.point.stacked, refit_head(parted, run.state.point).stacked))
    for one, other in zip(*ends, strict=True):
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_files_hold_arrays_and_nothing_is_left_of_a_failed_one(tmp_path, rng):
    arrays = (rng.normal(size=(3, 4)), rng.integers(5, size=7), rng.normal(size=(2, 2, 2)).astype(np.float32))
    name = write_arrays(str(tmp_path), ".values", arrays)
    for one, other in zip(read_arrays(str(tmp_path), name), arrays, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    with pytest.raises(ValueError, match="Object arrays"):
        write_arrays(str(tmp_path), ".values", [np.array([None])])
    assert [path.name for path in tmp_path.iterdir()] == [name]
