"""Splines from streams beyond memory, against those from arrays."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from liftopt import ChunkError, SplineClassifier, SplineRegressor, stream
from liftopt.executor import JoblibExecutor
from liftopt.solvers import HingeBasis
from liftopt.streams import Stream

N, D = 12_000, 6
LIMIT = 2_000_000  # of 2.3 MB with its copies


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(N, D)) + 2.0
    X[:, 5] = rng.integers(0, 5, N)
    f = np.abs(X[:, 0] - 2.0) + (X[:, 1] - 2.0) * (X[:, 2] - 2.0) + 0.5 * X[:, 3]
    return X, f + 0.1 * rng.normal(size=N), np.where(f > 2.5, "high", np.where(f < 1.0, "low", "mid"))


@pytest.fixture
def all_rows_sampled(monkeypatch):
    """The sample holds all rows, and products need no memory: streams then have what arrays have."""
    monkeypatch.setattr("liftopt.spline_stream._SAMPLE_SHARE", 1e-3)
    monkeypatch.setattr("liftopt.spline_stream._PRODUCTS_SHARE", 1e-3)


def rows_of(X, y, weight=None, executor="serial", limit=LIMIT):
    rows = stream(X, y, sample_weight=weight, memory_limit=limit, executor=executor)
    assert not rows.fits_in_memory
    return rows


def same(first, second):
    return all(
        a.weight.tobytes() == b.weight.tobytes() and a.bias.tobytes() == b.bias.tobytes()
        for a, b in zip(first.layers, second.layers, strict=True)
    )


def weights(kind):
    rng = np.random.default_rng(7)
    return {"none": None, "whole": rng.integers(0, 3, N), "real": rng.random(N)}[kind]


@pytest.mark.usefixtures("all_rows_sampled")
@pytest.mark.parametrize("kind", ["none", "whole", "real"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"max_degree": 1}, {"interaction": "product"}, {"pruning": "none"}],
    ids=str,
)
def test_regression_equals_that_of_arrays(data, settings, kind):
    X, y, _ = data
    weight = weights(kind)
    Y = np.c_[y, 1e3 * X[:, 5]]
    settings = {"max_terms": 25, **settings}
    whole = SplineRegressor(**settings).fit(X, Y, weight)
    streamed = SplineRegressor(random_state=0, **settings).fit(rows_of(X, Y, weight))
    assert streamed.result_.x.terms == whole.result_.x.terms
    np.testing.assert_allclose(streamed.predict(X), whole.predict(X), rtol=1e-6, atol=1e-6)
    assert streamed.spline_.n_samples == pytest.approx(whole.spline_.n_samples)
    assert streamed.summary().splitlines()[0] == whole.summary().splitlines()[0]
    assert [step["n_terms"] for step in streamed.history_] == [step["n_terms"] for step in whole.history_]


@pytest.mark.usefixtures("all_rows_sampled")
@pytest.mark.parametrize("kind", ["none", "whole", "real"])
def test_classification_equals_that_of_arrays(data, kind):
    X, _, labels = data
    weight = weights(kind)
    whole = SplineClassifier(max_terms=25).fit(X, labels, weight)
    streamed = SplineClassifier(max_terms=25).fit(rows_of(X, labels, weight))
    assert streamed.classes_.tolist() == ["high", "low", "mid"]
    assert streamed.result_.x.terms == whole.result_.x.terms
    np.testing.assert_allclose(streamed.predict_proba(X), whole.predict_proba(X), atol=2e-3)


def test_knots_move_by_the_sample_where_all_rows_gain(data, monkeypatch):
    X, y, _ = data
    with pytest.warns(ConvergenceWarning, match="sample of 2604 rows does not determine every term"):
        SplineRegressor(max_terms=25, random_state=0, refine=True).fit(rows_of(X, y))
    monkeypatch.setattr("liftopt.spline_stream._SAMPLE_SHARE", 4)
    plain = SplineRegressor(max_terms=25, random_state=0).fit(rows_of(X, y))
    moved = SplineRegressor(max_terms=25, random_state=0, refine=True).fit(rows_of(X, y))
    assert len(moved.spline_.basis) == len(plain.spline_.basis)
    assert moved.score(X, y) > plain.score(X, y) + 0.001
    assert moved.spline_.r2 == pytest.approx(moved.score(X, y), abs=1e-9)
    monkeypatch.setattr(
        "liftopt.spline_stream.refine_knots", lambda basis, *_, **__: SimpleNamespace(x=worse(basis))
    )
    kept = SplineRegressor(max_terms=25, random_state=0, refine=True).fit(rows_of(X, y))
    np.testing.assert_allclose(kept.predict(X), plain.predict(X), rtol=1e-7, atol=1e-7)


def worse(basis):
    """The basis with its knots at other places."""
    terms = [tuple(hinge._replace(knot=hinge.knot + 0.3) for hinge in term) for term in basis.terms]
    return HingeBasis(tuple(terms), basis.scale, basis.product)


def test_a_sample_of_knots_is_enough(data, monkeypatch):
    X, y, labels = data
    monkeypatch.setattr("liftopt.spline_stream._SAMPLE_ROWS", 1000)
    fit = SplineRegressor(random_state=0).fit
    assert fit(rows_of(X, y)).score(X, y) > fit(X, y).score(X, y) - 0.005
    few = SplineClassifier(random_state=0).fit(rows_of(X, labels))
    assert few.score(X, labels) > SplineClassifier().fit(X, labels).score(X, labels) - 0.01


def test_float32_rows_give_a_float32_network_of_the_same_values(data):
    X, y, _ = data
    rows = rows_of(X.astype(np.float32), y, limit=LIMIT // 2)
    model = SplineRegressor(max_terms=25, random_state=0).fit(rows)
    assert model.network_.dtype == np.float32
    np.testing.assert_allclose(model.predict(rows), model.spline_(X.astype(np.float32))[:, 0], atol=1e-3)
    assert model.score(rows) == pytest.approx(model.score(X, y), abs=1e-6)


@pytest.mark.parametrize("estimator", [SplineRegressor, SplineClassifier])
def test_executors_give_the_same_bits(data, estimator):
    distributed = pytest.importorskip("distributed")
    X, *targets = data
    y = targets[estimator is SplineClassifier]
    make = estimator(max_terms=15, max_degree=2, random_state=0).fit
    expected = make(rows_of(X, y)).network_
    assert same(make(rows_of(X, y, executor=JoblibExecutor(2))).network_, expected)
    killed: list[int] = []
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())

        def kill(step):
            if not killed:
                killed.append(pids[0])
                Timer(0.01, os.kill, (pids[0], signal.SIGKILL)).start()

        model = estimator(max_terms=15, max_degree=2, random_state=0, callback=kill)
        assert same(model.fit(rows_of(X, y, executor=client)).network_, expected)
    assert killed


def test_folds_are_sets_of_chunks(data):
    X, y, _ = data
    settings: dict[str, Any] = {"max_terms": 31, "max_degree": 1, "random_state": 0}
    full = SplineRegressor(pruning="none", **settings).fit(rows_of(X, y))
    pruned = SplineRegressor(pruning="cv", **settings).fit(rows_of(X, y))
    assert 2 < len(pruned.spline_.basis) < len(full.spline_.basis)
    assert pruned.score(X, y) > full.score(X, y) - 0.02
    with pytest.raises(ValueError, match="folds of a stream beyond memory are sets of its 5 chunks"):
        SplineRegressor(pruning="cv", cv=8, **settings).fit(rows_of(X, y))


def counted(monkeypatch):
    """Number of passes made, as a list that grows."""
    made: list[object] = []
    reduce = Stream.reduce

    def count(self, task, *arguments, **settings):
        made.append(task)
        return reduce(self, task, *arguments, **settings)

    monkeypatch.setattr(Stream, "reduce", count)
    return made


@pytest.mark.parametrize("estimator", [SplineRegressor, SplineClassifier])
def test_a_resumed_fit_is_the_same_and_makes_no_pass_twice(data, estimator, tmp_path, monkeypatch):
    X, *targets = data
    rows = rows_of(X, targets[estimator is SplineClassifier])
    made = counted(monkeypatch)
    expected = estimator(max_terms=25, random_state=3).fit(rows)
    passes, path = len(made), tmp_path / "c"

    def crash(step):
        if step["n_terms"] > 9:
            raise RuntimeError("power failure")

    monkeypatch.setattr("liftopt.checkpoint._SHARE", 0.0)
    made.clear()
    with pytest.raises(RuntimeError, match="power failure"):
        estimator(max_terms=25, random_state=3, checkpoint=path, callback=crash).fit(rows)
    before = len(made)
    assert 2 < before < passes
    resumed = estimator(max_terms=25, random_state=3, checkpoint=path).fit(rows)
    assert same(resumed.network_, expected.network_)
    assert len(made) == passes + 1  # the survey is made again
    assert not list(tmp_path.iterdir())
    assert [step["n_terms"] for step in resumed.history_] == [step["n_terms"] for step in expected.history_]
    assert not path.exists()
    with pytest.raises(ValueError, match="there is no folder"):
        estimator(checkpoint=tmp_path / "none" / "c").fit(rows)


def test_a_fit_goes_on_after_ctrl_c(data, tmp_path, monkeypatch):
    X, _, labels = data
    monkeypatch.setattr("liftopt.checkpoint._SHARE", 0.0)
    settings: dict[str, Any] = {"max_terms": 25, "random_state": 3}

    def interrupt(step):
        if step["n_terms"] > 9:
            raise KeyboardInterrupt

    path = tmp_path / "c"
    with pytest.warns(UserWarning, match="interrupted"):
        SplineClassifier(**settings, checkpoint=path, callback=interrupt).fit(rows_of(X, labels))
    assert path.exists()
    resumed = SplineClassifier(**settings, checkpoint=path).fit(rows_of(X, labels))
    assert same(resumed.network_, SplineClassifier(**settings).fit(rows_of(X, labels)).network_)
    assert not path.exists()


_KILLED = """
import os, signal, sys
import numpy as np
import liftopt.checkpoint
from liftopt import SplineRegressor, stream

liftopt.checkpoint._SHARE = 0.0
steps = []

def kill(step):
    steps.append(step)
    if len(steps) == 5:
        os.kill(os.getpid(), signal.SIGKILL)

rows = stream("X.npy", "y.npy", memory_limit=2_000_000, executor="serial")
SplineRegressor(max_terms=25, random_state=3, checkpoint="c", callback=kill).fit(rows)
"""


def test_a_killed_process_goes_on_from_its_checkpoint(data, tmp_path, monkeypatch):
    X, y, _ = data
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", y)
    monkeypatch.chdir(tmp_path)
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _KILLED], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    rows = stream("X.npy", "y.npy", memory_limit=LIMIT, executor="serial")
    resumed = SplineRegressor(max_terms=25, random_state=3, checkpoint="c").fit(rows)
    assert same(resumed.network_, SplineRegressor(max_terms=25, random_state=3).fit(rows).network_)


@pytest.mark.parametrize("streamed", [False, True])
def test_ctrl_c_keeps_the_terms_so_far(data, streamed):
    X, y, labels = data

    def interrupt(step):
        if step["n_terms"] > 5:
            raise KeyboardInterrupt

    for estimator, target in ((SplineRegressor, y), (SplineClassifier, labels)):
        model = estimator(max_terms=25, callback=interrupt)
        with pytest.warns(UserWarning, match="the forward pass was interrupted"):
            model = model.fit(rows_of(X, target)) if streamed else model.fit(X, target)
        assert 5 < len(model.result_.x) < 10
        assert model.result_.message == "interrupted"
        assert model.result_.residuals["stationarity"] < 1e-9
        assert model.score(X, target) > 0.3


def test_bad_streams(data, tmp_path):
    X, y, labels = data
    with pytest.raises(ValueError, match="SplineRegressor with refine=5 works on all rows at once"):
        SplineRegressor(refine=5).fit(rows_of(X, y))
    with pytest.raises(ValueError, match="fit needs targets"):
        SplineRegressor().fit(stream(X, memory_limit=LIMIT))
    with pytest.raises(ChunkError, match=r"chunk 1 of .*could not convert"):
        SplineRegressor().fit(rows_of(X, labels))
    with pytest.raises(ValueError, match="needs at least two classes"):
        SplineClassifier().fit(rows_of(X, np.full(N, "a")))
    with pytest.raises(ChunkError, match="sample_weight must be non-negative"):
        SplineRegressor().fit(rows_of(X, y, np.full(N, -1.0)))
    with pytest.raises(ValueError, match="zero for every row"):
        SplineRegressor().fit(rows_of(X, y, np.zeros(N)))
    with pytest.raises(ValueError, match="lower max_knots or raise memory_limit"):
        SplineRegressor(max_knots=None, minspan=1).fit(rows_of(X, y))
    bad = X.copy()
    bad[5000, 1] = np.nan
    with pytest.raises(ChunkError, match="first in row 5000"):
        SplineRegressor().fit(rows_of(bad, y))


def test_rows_and_features_that_teach_nothing(data):
    X, y, _ = data
    X = X.copy()
    X[:, 1] = 4.0
    weight = np.ones(N)
    weight[:6000] = 0.0
    y = np.where(weight > 0, y, 100.0)
    model = SplineRegressor(max_terms=15, random_state=0).fit(rows_of(X, y, weight))
    assert all(hinge.variable != 1 for term in model.result_.x.terms for hinge in term)
    assert np.abs(model.predict(X)).max() < 50
    constant = SplineRegressor(random_state=0).fit(rows_of(X, np.full(N, 3.0)))
    np.testing.assert_allclose(constant.predict(X[:5]), 3.0)
