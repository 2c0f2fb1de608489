import importlib
import json

import numpy as np

from liftopt import doctor
from liftopt.doctor import OPTIONAL, REQUIRED, diagnose, is_sound, versions
from liftopt.threads import VARIABLES


def test_a_sound_installation():
    record = diagnose()
    assert is_sound(record)
    assert json.loads(json.dumps(record)) == record
    assert set(record["required"]) == set(REQUIRED)
    assert set(record["optional"]) == set(OPTIONAL)
    assert record["required"]["numpy"] == np.__version__
    assert not record["broken"]
    assert all(pool["threads"] >= 1 for pool in record["blas"])


def test_missing_packages_are_named_with_the_remedy(monkeypatch):
    def partly(packages):
        return {
            name: number
            for name, number in versions(packages).items()
            if name not in ("osqp", "torch", "onnx")
        }

    monkeypatch.setattr(doctor, "versions", partly)
    record = diagnose()
    assert not is_sound(record)
    assert record["required"]["osqp"] is None
    assert "osqp is missing: pip install osqp" in record["hints"]
    assert "torch not installed (optional): pip install 'liftopt[torch]'" in record["hints"]


def test_broken_packages_are_told_apart_from_missing_ones(monkeypatch):
    def broken(name):
        if name in ("torch", "numba"):
            raise OSError("no such library")
        return importlib.import_module(name)

    monkeypatch.setattr(doctor, "import_module", broken)
    record = diagnose()
    assert set(record["broken"]) == {"torch", "numba"}
    assert not is_sound(record)
    assert "torch is broken, install it again (OSError: no such library)" in record["hints"]


def test_threads_and_data_hints(monkeypatch, tmp_path):
    pools = [{"user_api": "blas", "internal_api": "openblas", "version": "1", "num_threads": 8}] * 2
    monkeypatch.setattr(doctor, "threadpool_info", lambda: pools)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("LIFTOPT_DATA", str(tmp_path))
    record = diagnose()
    assert record["blas"] == [{"library": "openblas", "version": "1", "threads": 8}]
    assert record["data"] == {"folder": str(tmp_path), "exists": True, "sets": ["mnist"]}
    assert any("OMP_NUM_THREADS=1" in hint for hint in record["hints"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert not any("OMP_NUM_THREADS" in hint for hint in diagnose()["hints"])
