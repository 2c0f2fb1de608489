"""Checkpoints: exact round trips, whole files at any moment, the same network after a kill."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes, load_iris

from liftopt import (
    FenchelRegressor,
    ManifoldClassifier,
    ManifoldRegressor,
    ModelFileError,
)
from liftopt.checkpoint import (
    Checkpoint,
    fingerprint,
    random_bits,
    read_state,
    restore_bits,
    write_state,
)
from liftopt.network import dense_network

DTYPES = [np.float32, np.float64, np.int64, np.uint8, np.bool_]


def same_network(first, second):
    return [array.tobytes() for layer in first.layers for array in layer.arrays().values()] == [
        array.tobytes() for layer in second.layers for array in layer.arrays().values()
    ]


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(tree=trees)
def test_any_tree_comes_back(tree):
    with tempfile.TemporaryDirectory() as folder:
        write_state(Path(folder, "c"), {"tree": tree}, "me")
        assert read_state(Path(folder, "c")) == ({"tree": tree}, "me")


def test_arrays_keep_bits_order_and_owner(tmp_path, rng):
    arrays = [rng.normal(size=(3, 4)).astype(dtype) for dtype in DTYPES]
    state = {"a": arrays, "f": np.asfortranarray(arrays[1]), "e": np.zeros((0, 2)), "n": float("inf")}
    write_state(tmp_path / "c", state, "")
    found, _ = read_state(tmp_path / "c")
    for one, other in zip(found["a"], arrays, strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()
        one[0, 0] = 1  # its own memory
    assert found["f"].flags.f_contiguous
    assert found["f"].tolist() == arrays[1].tolist()
    assert found["e"].shape == (0, 2)
    assert found["n"] == float("inf")


def test_networks_and_random_numbers_come_back(tmp_path, rng):
    network = dense_network([rng.normal(size=(2, 3)), rng.normal(size=(3, 1))], [np.ones(3), np.zeros(1)])
    legacy = np.random.RandomState(3)
    legacy.normal()
    state = {"network": network, "legacy": random_bits(legacy), "new": random_bits(rng)}
    write_state(tmp_path / "c", state, "")
    expected = legacy.normal(size=3), rng.normal(size=3)
    found, _ = read_state(tmp_path / "c")
    assert same_network(found["network"], network)
    restore_bits(legacy, found["legacy"])
    restore_bits(rng, found["new"])
    assert legacy.normal(size=3).tolist() == expected[0].tolist()
    assert rng.normal(size=3).tolist() == expected[1].tolist()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c"
    write_state(path, {"sweep": 1}, "me")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_state(path, {"sweep": 2}, "me")
    assert read_state(path) == ({"sweep": 1}, "me")
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_bad_files_are_refused(tmp_path):
    path = tmp_path / "c"
    write_state(path, {"sweep": np.ones(50)}, "me")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ModelFileError, match="truncated or damaged"):
        Checkpoint(path, "me")
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelFileError, match="no safetensors file"):
        Checkpoint(path, "me")
    dense_network([np.ones((1, 1))], [np.zeros(1)]).save(path)
    with pytest.raises(ModelFileError, match="is no liftopt checkpoint"):
        Checkpoint(path, "me")
    path.write_bytes(whole.replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(ModelFileError, match="newer than 1: upgrade"):
        Checkpoint(path, "me")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="holds another fit"):
        Checkpoint(path, "you")
    with pytest.raises(ValueError, match="there is no folder"):
        Checkpoint(tmp_path / "none" / "c", "me")
    assert Checkpoint(path, "me").found is not None


def test_fingerprints_tell_fits_apart(rng):
    X = rng.normal(size=(5, 2))
    base = fingerprint(ManifoldRegressor(random_state=1), X)
    assert base == fingerprint(ManifoldRegressor(random_state=1, verbose=True, checkpoint="c"), X.copy())
    assert base != fingerprint(ManifoldRegressor(random_state=2), X)
    assert base != fingerprint(ManifoldClassifier(random_state=1), X)
    assert base != fingerprint(ManifoldRegressor(random_state=1), X + 1)
    network = dense_network([np.ones((2, 1))], [np.zeros(1)])
    with_start = fingerprint(ManifoldRegressor(random_state=1, init=network), X)
    assert with_start == fingerprint(ManifoldRegressor(random_state=1, init=network.astype(float)), X)
    assert with_start != base


FITS = {
    "manifold": "ManifoldClassifier((12, 8), max_iter=20, ",
    "cycle": "ManifoldClassifier((12,), **{**PAPER, 'max_iter': 6}, ",
    "stochastic": "FenchelClassifier(hidden_layer_sizes=(12, 8), mode='stochastic', max_iter=8, ",
    "monotone": "FenchelClassifier(hidden_layer_sizes=(8,), mode='monotone', max_iter=6, ",
    "adam": "BackpropClassifier(hidden_layer_sizes=(8,), max_iter=7, early_stopping=True, input_noise=0.1, ",
    "refine": "BackpropClassifier(hidden_layer_sizes=(8,), max_iter=7, sampling='momentum', ",
    "ternary": "TernaryClassifier(hidden_layer_sizes=(8,), tol=0.0, max_iter=6, ",
    "ternary_linear": "TernaryClassifier(hidden_layer_sizes=(), tol=0.0, values=[-2, -1, 0, 1, 2], ",
}
IMPORTS = """
from liftopt import *
from liftopt.manifold import PAPER
"""
KILLED = """
import os, signal
from sklearn.datasets import load_iris
seen = []
def stop(record):
    seen.append(record)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
more = {"checkpoint": "c", "callback": stop}
"""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("method", FITS)
def test_a_killed_fit_ends_with_the_same_network(method, tmp_path):
    call = f"{FITS[method]}random_state=0, **more)"
    code = f"{IMPORTS}{KILLED}{call}.fit(*load_iris(return_X_y=True))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    path = tmp_path / "c"
    assert path.exists()
    names: dict[str, object] = {}
    exec(IMPORTS, names)
    X, y = load_iris(return_X_y=True)
    resumed = eval(call, names | {"more": {"checkpoint": path}}).fit(X, y)
    expected = eval(call, names | {"more": {}}).fit(X, y)
    assert not path.exists()
    assert len(resumed.history_) == len(expected.history_)
    assert same_network(resumed.network_, expected.network_)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("schedule", ["fixed", "augmented"])
@pytest.mark.parametrize("after", [2, 9, 12])
def test_the_monotone_mode_goes_on_in_any_of_its_runs(schedule, after, tmp_path):
    X, y = load_diabetes(return_X_y=True)
    settings: dict[str, Any] = {
        "hidden_layer_sizes": (6,), "mode": "monotone", "max_iter": 6, "random_state": 0,
        "multiplier_schedule": schedule,
    }  # fmt: skip
    path = tmp_path / "c"
    with pytest.warns(UserWarning, match="interrupted"):
        FenchelRegressor(checkpoint=path, callback=interrupted_after(after), **settings).fit(X, y)
    resumed = FenchelRegressor(checkpoint=path, **settings).fit(X, y)
    expected = FenchelRegressor(**settings).fit(X, y)
    assert same_network(resumed.network_, expected.network_)
    assert [r["objective"] for r in resumed.history_] == [r["objective"] for r in expected.history_]
    assert resumed.n_iter_ == expected.n_iter_


def test_an_unseeded_fit_goes_on_with_its_own_numbers(tmp_path):
    X, y = load_iris(return_X_y=True)
    path = tmp_path / "c"
    with pytest.warns(UserWarning, match="interrupted"):
        ManifoldClassifier((12,), max_iter=9, checkpoint=path, callback=interrupted_after(4)).fit(X, y)
    state = path.read_bytes()
    first = ManifoldClassifier((12,), max_iter=9, checkpoint=path).fit(X, y)
    path.write_bytes(state)
    second = ManifoldClassifier((12,), max_iter=9, checkpoint=path).fit(X, y)
    assert same_network(first.network_, second.network_)


def interrupted_after(count):
    seen = []

    def interrupt(record):
        seen.append(record)
        if len(seen) == count:
            raise KeyboardInterrupt

    return interrupt


def test_an_interrupted_fit_keeps_its_best_and_its_checkpoint(tmp_path):
    X, y = load_diabetes(return_X_y=True)
    path = tmp_path / "c"
    settings = {"hidden_layer_sizes": (12,), "random_state": 0, "checkpoint": path, "max_iter": 20}
    with pytest.warns(UserWarning, match="interrupted"):
        early = ManifoldRegressor(callback=interrupted_after(8), **settings).fit(X, y)
    assert early.score(X, y) > 0.3
    assert path.exists()
    resumed = ManifoldRegressor(**settings).fit(X, y)
    assert not path.exists()
    expected = ManifoldRegressor((12,), random_state=0, max_iter=20).fit(X, y)
    assert same_network(resumed.network_, expected.network_)
    assert [r["loss"] for r in resumed.history_] == [r["loss"] for r in expected.history_]
    assert [r["iteration"] for r in resumed.history_] == list(range(len(resumed.history_)))


def test_another_fit_is_refused(tmp_path):
    X, y = load_iris(return_X_y=True)
    path = tmp_path / "c"
    with pytest.warns(UserWarning, match="interrupted"):
        ManifoldClassifier((8,), checkpoint=path, callback=interrupted_after(3)).fit(X, y)
    for other in (
        ManifoldClassifier((9,), checkpoint=path),
        ManifoldClassifier((8,), alpha=1.0, checkpoint=path),
    ):
        with pytest.raises(ValueError, match="holds another fit"):
            other.fit(X, y)
    with pytest.raises(ValueError, match="holds another fit"):
        ManifoldClassifier((8,), checkpoint=path).fit(X + 1, y)


def test_writing_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    """A state is not written again before twenty times the duration of the last writing."""
    import time

    clock = [0.0]
    written: list[float] = []

    def write(*arguments):
        written.append(clock[0])
        clock[0] += 1.0

    monkeypatch.setattr("liftopt.checkpoint.write_state", write)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    checkpoint = Checkpoint(tmp_path / "c", "")
    for _ in range(100):
        checkpoint.offer(dict)
        clock[0] += 1.0
    assert len(written) == 5
