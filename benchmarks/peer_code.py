"""Fit one peer in the interpreter that has it: ``peer_code.py PEER IN.npz OUT.npz``, exit code 3 if missing.

Reads ``X, y, X_test, classes, seed``; writes ``predicted`` and ``cpu``. A fifth of the rows chooses the
size or the strength; the fit is then repeated on all rows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Fit = Callable[[Any, Any, Any], Callable[[Any], Any]]


def hpelm_fit(units: int, classes: bool) -> Fit:
    from hpelm import ELM

    def fit(X: Any, Y: Any, seed: Any) -> Callable[[Any], Any]:
        np.random.seed(seed)  # noqa: NPY002, the package draws from the global state
        model = ELM(X.shape[1], Y.shape[1], classification="c" if classes else "")
        model.add_neurons(units, "sigm")
        model.train(X, Y, *(["c"] if classes else []))
        return model.predict

    return fit


def scnn_fit(strength: float, classes: bool) -> Fit:
    from scnn.optimize import optimize
    from scnn.regularizers import NeuronGL1

    def fit(X: Any, Y: Any, seed: Any) -> Callable[[Any], Any]:
        rows, targets = X.astype(np.float32), Y.astype(np.float32)
        model, _ = optimize("gated_relu", 200, rows, targets, regularizer=NeuronGL1(strength), seed=int(seed))
        return lambda fresh: model(fresh.astype(np.float32))

    return fit


CANDIDATES = {
    "hpelm": (hpelm_fit, (50, 100, 200, 400, 800)),
    "scnn": (scnn_fit, (1e-4, 1e-3, 1e-2)),
}


def main() -> int:
    peer, source, target = sys.argv[1:]
    data = np.load(source)
    X, y, classes, seed = data["X"], data["y"], bool(data["classes"]), data["seed"]
    labels, codes = np.unique(y, return_inverse=True)
    centre, spread = (0.0, 1.0) if classes else (y.mean(), y.std())
    Y = np.eye(labels.size)[codes] if classes else (y[:, None] - centre) / spread
    make, choices = CANDIDATES[peer]
    try:
        make(choices[0], classes)
    except ImportError as error:
        print(f"{peer}: {error}", file=sys.stderr)
        return 3
    start = time.process_time()
    held = np.random.default_rng(int(seed)).random(len(X)) < 0.2

    def loss(choice: Any) -> float:
        out = make(choice, classes)(X[~held], Y[~held], seed)(X[held])
        return float(np.mean(out.argmax(1) != codes[held]) if classes else np.mean((out - Y[held]) ** 2))

    best = min(choices, key=loss)
    out = make(best, classes)(X, Y, seed)(data["X_test"])
    predicted = labels[out.argmax(1)] if classes else out[:, 0] * spread + centre
    np.savez(target, predicted=predicted, cpu=time.process_time() - start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
