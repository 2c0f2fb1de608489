"""Use an installed liftopt with whatever extra is there: fit, save, load, predict, call a block solver."""

import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris

import liftopt
from liftopt.solvers import solve_box_qp

USES = {
    "torch": lambda network, X: network.to_torch(),
    "onnx": lambda network, X: network.to_onnx(Path(tempfile.mkdtemp()) / "network.onnx"),
}
MODULES = {"cli": "rich", "plots": "matplotlib", "dask": "distributed", "stream": "pyarrow"}

label = sys.argv[1]
assert "site-packages" in liftopt.__file__, liftopt.__file__
X, y = load_iris(return_X_y=True)
for name in ("ManifoldClassifier", "SplineClassifier", "TernaryClassifier", "FenchelClassifier"):
    model = getattr(liftopt, name)().fit(X, y)
    assert model.score(X, y) > 0.85, name
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "network.safetensors"
    model.network_.save(path)
    assert np.array_equal(liftopt.Network.load(path)(X), model.network_(X))
H = np.cov(X.T) + np.eye(4)
assert solve_box_qp(H, X[:10], lower=0.0).status == "optimal"
if label in MODULES:
    importlib.import_module(MODULES[label])
if label in USES:
    USES[label](model.network_, X)
print(f"{label}: liftopt {liftopt.__version__}, numpy {np.__version__}: ok")
