"""Manifold networks and predictions from streams, against those from arrays."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from liftopt import (
    ChunkError,
    HingingHyperplaneRegressor,
    ManifoldClassifier,
    ManifoldRegressor,
    SplineRegressor,
    stream,
)
from liftopt.executor import JoblibExecutor
from liftopt.solvers import (
    Status,
    add_pulls,
    moments,
    pull_of_rows,
    solve_margin,
    solve_margin_passes,
    tree_reduce,
)

N, D = 12000, 6
LIMIT = 1_000_000  # of 2.3 MB with its copies


def signal_of(X):
    return np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + 0.5 * X[:, 3]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(N, D)) + 2.0
    f = signal_of(X - 2.0)
    return X, f + 0.1 * rng.normal(size=N), np.where(f > 0.5, "high", np.where(f < -0.5, "low", "mid"))


@pytest.fixture(scope="module")
def unseen():
    X = np.random.default_rng(6).normal(size=(2000, D)) + 2.0
    f = signal_of(X - 2.0)
    return X, f, np.where(f > 0.5, "high", np.where(f < -0.5, "low", "mid"))


def same(first, second):
    return all(
        a.weight.tobytes() == b.weight.tobytes() for a, b in zip(first.layers, second.layers, strict=True)
    )


def test_streamed_regression_is_as_good(data, unseen):
    X, y, _ = data
    rows = stream(X, y, memory_limit=LIMIT, executor="serial")
    assert not rows.fits_in_memory
    model = ManifoldRegressor((64,), random_state=0).fit(rows)
    whole = ManifoldRegressor((64,), random_state=0).fit(X, y)
    assert model.score(*unseen[:2]) > whole.score(*unseen[:2]) - 0.03
    assert model.n_features_in_ == D
    assert len(model.history_) == model.n_iter_


def test_streamed_classes_are_as_good(data, unseen):
    X, _, labels = data
    rows = stream(X, labels, memory_limit=LIMIT, executor="serial")
    model = ManifoldClassifier((64,), random_state=0).fit(rows)
    whole = ManifoldClassifier((64,), random_state=0).fit(X, labels)
    assert model.classes_.tolist() == ["high", "low", "mid"]
    assert model.score(unseen[0], unseen[2]) > whole.score(unseen[0], unseen[2]) - 0.03
    np.testing.assert_allclose(model.predict_proba(unseen[0]).sum(axis=1), 1.0)


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_executors_fit_the_same_network(kind, data):
    X, y, labels = data
    estimator = ManifoldRegressor if kind == "regression" else ManifoldClassifier
    target = y if kind == "regression" else labels
    networks = [
        estimator((16,), random_state=0, max_iter=3)
        .fit(stream(X, target, memory_limit=LIMIT, executor=executor))
        .network_
        for executor in ("serial", JoblibExecutor(2))
    ]
    assert same(*networks)


def test_statistics_climb_to_float64_where_they_must(data, unseen, monkeypatch):
    X, y, _ = data
    monkeypatch.setattr("liftopt.solvers.least_squares._ACCEPTED_ERROR", 1e-7)
    rows = stream(X.astype(np.float32), y, memory_limit=LIMIT // 2, executor="serial")
    model = ManifoldRegressor((32,), random_state=0, max_iter=4).fit(rows)  # and no warning
    assert model.score(*unseen[:2]) > 0.7


def test_what_fits_in_memory_is_fitted_as_arrays(data):
    X, y = data[0][:1000], data[1][:1000]
    rows = stream(X, y, memory_limit="1 GiB")
    by_stream = ManifoldRegressor((16,), random_state=0, max_iter=4).fit(rows)
    by_array = ManifoldRegressor((16,), random_state=0, max_iter=4).fit(X, y)
    assert same(by_stream.network_, by_array.network_)
    spline, expected = SplineRegressor(max_terms=11).fit(rows), SplineRegressor(max_terms=11).fit(X, y)
    np.testing.assert_array_equal(spline.predict(X), expected.predict(X))


def test_what_does_not_fit_says_what_to_do(data):
    X, y, labels = data
    rows = stream(X, labels, memory_limit=LIMIT)
    with pytest.raises(
        ValueError, match=r"HingingHyperplaneRegressor works on all rows at once.*rows\.sample"
    ):
        HingingHyperplaneRegressor().fit(stream(X, y, memory_limit=LIMIT))
    with pytest.raises(ValueError, match="backward='low_rank' works on all rows"):
        ManifoldClassifier(backward="low_rank", activation="sigmoid").fit(rows)
    with pytest.raises(ValueError, match="head='stiefel_svm' needs all rows"):
        ManifoldClassifier(head="stiefel_svm").fit(rows)


def test_predictions_come_chunk_by_chunk(data):
    X, y, labels = data
    rows = stream(X, memory_limit=LIMIT, executor="serial")
    assert len(rows.chunks) > 5
    model = ManifoldClassifier((8,), random_state=0, max_iter=3).fit(X[:500], labels[:500])
    assert (model.predict(rows) == model.predict(X)).all()
    np.testing.assert_allclose(model.predict_proba(rows), model.predict_proba(X), rtol=1e-12)
    np.testing.assert_allclose(model.decision_function(rows), model.decision_function(X), rtol=1e-12)
    weight = np.arange(N) % 3
    judged = stream(X, labels, sample_weight=weight, memory_limit=LIMIT, executor="serial")
    assert model.score(judged) == pytest.approx(model.score(X, labels, weight))
    regressor = ManifoldRegressor((8,), random_state=0, max_iter=3).fit(X[:500], np.c_[y, 2 * y][:500])
    targets = stream(X, np.c_[y, y**2], sample_weight=weight, memory_limit=LIMIT, executor="serial")
    assert regressor.score(targets) == pytest.approx(regressor.score(X, np.c_[y, y**2], weight))
    parallel = stream(X, memory_limit=LIMIT, executor=JoblibExecutor(2))
    assert regressor.predict(parallel).tobytes() == regressor.predict(rows).tobytes()


def test_weights_count(data, unseen):
    X, y, _ = data
    weight = np.ones(N)
    weight[::2] = weight[:3000] = 0.0  # a whole chunk among them
    y = np.where(weight > 0, y, 100.0)  # rows without weight must not be seen
    rows = stream(X, y, sample_weight=weight, memory_limit=LIMIT, executor="serial")
    assert ManifoldRegressor((32,), random_state=0).fit(rows).score(*unseen[:2]) > 0.7


def test_dask_arrays_are_taken_as_they_are(data):
    da = pytest.importorskip("dask.array")
    X, y, _ = data
    by_array = ManifoldRegressor((8,), random_state=0, max_iter=3).fit(X[:900], y[:900])
    by_dask = ManifoldRegressor((8,), random_state=0, max_iter=3).fit(
        da.from_array(X[:900], chunks=200), da.from_array(y[:900], chunks=300)
    )
    assert same(by_dask.network_, by_array.network_)
    assert by_dask.predict(da.from_array(X[:50])).shape == (50,)


def test_columns_are_remembered(data, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    X, y, _ = data
    frame = pd.DataFrame(X, columns=list("abcdef")).assign(y=y)
    frame.to_parquet(tmp_path / "t.parquet")
    frame[[*"bacdef", "y"]].to_parquet(tmp_path / "other.parquet")
    rows = stream(tmp_path / "t.parquet", target="y", memory_limit=LIMIT, executor="serial")
    model = ManifoldRegressor((8,), random_state=0, max_iter=3).fit(rows)
    assert model.feature_names_in_.tolist() == list("abcdef")
    assert model.predict(frame[list("abcdef")]).shape == (N,)
    with pytest.raises(ValueError, match="columns of other names, or in another order"):
        model.score(stream(tmp_path / "other.parquet", target="y"))
    with pytest.raises(ValueError, match="is expecting 6 features"):
        model.predict(stream(X[:, :3]))


def test_bad_streams(data):
    X, y, labels = data
    with pytest.raises(ValueError, match="fit needs targets"):
        ManifoldRegressor().fit(stream(X, memory_limit=LIMIT))
    with pytest.raises(ValueError, match="fit needs targets"):
        ManifoldRegressor().fit(stream(X))
    with pytest.raises(NotFittedError):
        ManifoldRegressor().predict(stream(X))
    with pytest.raises(ChunkError, match=r"chunk 1 of .*could not convert"):
        ManifoldRegressor().fit(stream(X, labels, memory_limit=LIMIT, executor="serial"))
    with pytest.raises(ValueError, match="needs at least two classes"):
        ManifoldClassifier().fit(stream(X, np.full(N, "a"), memory_limit=LIMIT, executor="serial"))
    with pytest.raises(ValueError, match="leaves room for"):
        ManifoldRegressor().fit(stream(X, y, memory_limit=20_000, executor="serial"))
    bad = X.copy()
    bad[5000, 1] = np.nan
    rows = stream(bad, y, memory_limit=LIMIT, executor="serial")
    with pytest.raises(ChunkError, match="first in row 5000"):
        ManifoldRegressor((8,), max_iter=2, random_state=0).fit(rows)
    with pytest.raises(ChunkError, match="sample_weight must be non-negative"):
        ManifoldRegressor((8,)).fit(
            stream(X, y, sample_weight=np.full(N, -1.0), memory_limit=LIMIT, executor="serial")
        )


def test_a_linear_network_and_a_start(data, unseen):
    X, y, _ = data
    rows = stream(X, y, memory_limit=LIMIT, executor="serial")
    linear = ManifoldRegressor((), random_state=0).fit(rows)
    from sklearn.linear_model import LinearRegression

    expected = LinearRegression().fit(X, y).predict(unseen[0])
    np.testing.assert_allclose(linear.predict(unseen[0]), expected, atol=0.02)
    first = ManifoldRegressor((32,), random_state=0, max_iter=4).fit(rows)
    second = ManifoldRegressor((32,), random_state=0, max_iter=4, init=first.network_).fit(rows)
    assert second.score(*unseen[:2]) > 0.7


def test_a_resumed_stream_fit_is_the_same(data, tmp_path):
    X, y, _ = data
    rows = stream(X, y, memory_limit=LIMIT, executor="serial")
    seen: list[object] = []

    def interrupt(record):
        seen.append(record)
        if len(seen) == 4:
            raise KeyboardInterrupt

    path = tmp_path / "c"
    with pytest.warns(UserWarning, match="interrupted"):
        early = ManifoldRegressor((16,), random_state=0, max_iter=8, callback=interrupt, checkpoint=path).fit(
            rows
        )
    assert early.score(X, y) > 0.3
    resumed = ManifoldRegressor((16,), random_state=0, max_iter=8, checkpoint=path).fit(rows)
    assert same(resumed.network_, ManifoldRegressor((16,), random_state=0, max_iter=8).fit(rows).network_)
    assert not path.exists()


@pytest.fixture
def margin(rng):
    X = rng.normal(size=(400, 5)) + 1.0
    Y = np.where(X @ rng.normal(size=(5, 3)) + 0.5 * rng.normal(size=(400, 3)) > 0, 1.0, -1.0)
    return X, Y, rng.integers(1, 4, 400).astype(float)


def test_passes_reach_the_margin_solution(margin):
    X, Y, weight = margin

    def measure(models):
        parts = (slice(i, i + 100) for i in range(0, 400, 100))
        pulls = ([pull_of_rows(X[p], Y[p], model, weight[p]) for model in models] for p in parts)
        return tree_reduce(add_pulls, pulls)

    statistics = moments(X, Y, sample_weight=weight)
    expected = solve_margin(X, Y, alpha=100.0, sample_weight=weight, tol=1e-8)
    found = solve_margin_passes(statistics, measure, alpha=100.0, tol=1e-6, max_iter=500)
    assert found.status == Status.OPTIMAL
    assert found.objective == pytest.approx(expected.objective, rel=1e-8)
    np.testing.assert_allclose(found.x.weight, expected.x.weight, atol=1e-4)
    objectives = [record["objective"] for record in found.history]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(objectives))
    started = solve_margin_passes(statistics, measure, alpha=100.0, tol=1e-6, start=expected.x)
    assert started.n_iter == 0
    with pytest.warns(UserWarning, match="max_iter"):
        solve_margin_passes(statistics, measure, alpha=100.0, tol=1e-12, max_iter=2)
