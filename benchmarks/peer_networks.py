"""Networks without back-propagation by other packages, beside ours: one hidden layer, at most 2000 rows.

Extreme learning machines (hpelm: random hidden units, ridge outputs; 50 to 800 units, chosen on a fifth of
the training rows), convex ReLU networks (pyscnn, gated ReLU with 200 gates; three strengths of the group
penalty, chosen likewise), and scikit-learn's MLP (100 units, defaults). Ours run with their defaults, 100
units. Inputs are standardised for all. The peers run in an interpreter apart (``benchmarks/peers.sh``);
one that cannot be imported there is reported as missing. Times include the choice.
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

from common import measure, parse_arguments, peers_python, write_record  # isort: skip

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from liftopt.data import load
from liftopt.methods import make_estimator

NAMES = ("digits", "satimage", "segment", "dna", "concrete", "energy", "kin8nm", "wine_quality_red")
MOST_ROWS, SEEDS = 2000, (0, 1, 2)
OURS = ("manifold", "fenchel", "hinging")
PEERS = {"hpelm": "extreme learning machine (hpelm)", "scnn": "convex network (pyscnn)"}
CODE = Path(__file__).with_name("peer_code.py")


def splits(name: str, seed: int) -> tuple[Any, ...]:
    """Standardised training and test inputs, targets, and the task."""
    data = load(name)
    X, X_test, y, y_test = data.split(random_state=seed)
    rows = np.random.default_rng(seed).permutation(len(X))[:MOST_ROWS]
    scaler = StandardScaler().fit(X[rows])
    return scaler.transform(X[rows]), scaler.transform(X_test), y[rows], y_test, data.task


def score(predicted: Any, truth: Any, task: str) -> float:
    """Accuracy or explained variance in per cent."""
    if task == "classification":
        return 100 * float(np.mean(predicted == truth))
    return 100 * (1.0 - float(np.sum((predicted - truth) ** 2) / np.sum((truth - truth.mean()) ** 2)))


def here(method: str, X: Any, X_test: Any, y: Any, task: str, seed: int) -> tuple[float, Any]:
    """CPU seconds and predictions of one of our methods, or of scikit-learn's MLP."""
    if method == "MLP":
        kind = MLPClassifier if task == "classification" else MLPRegressor
        model = kind(random_state=seed, max_iter=500)
    else:
        model = make_estimator(method, task)
        known = model.get_params()
        wanted = {"hidden_layer_sizes": (100,), "random_state": seed}
        model.set_params(**{key: value for key, value in wanted.items() if key in known})
    centre, spread = (y.mean(), y.std()) if task == "regression" else (0.0, 1.0)
    target = (y - centre) / spread if task == "regression" else y
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = measure(lambda: model.fit(X, target))
    predicted = model.predict(X_test)
    return fitted.cpu, predicted * spread + centre if task == "regression" else predicted


def there(peer: str, X: Any, X_test: Any, y: Any, task: str, seed: int) -> tuple[float, Any] | None:
    """The same of a peer in its interpreter; None where it cannot be imported."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, X=X, X_test=X_test, y=y, classes=task == "classification", seed=seed)
        command = [peers_python() or "python", "-P", str(CODE), peer, str(source), str(target)]
        if subprocess.run(command, check=False).returncode:
            return None
        done = np.load(target)
        return float(done["cpu"]), done["predicted"]


def main() -> None:
    quick = parse_arguments(__doc__).quick
    names, seeds = (NAMES[:1], SEEDS[:1]) if quick else (NAMES, SEEDS)
    missing = [peer for peer in PEERS if there(peer, *splits("iris", 0)[:3], "classification", 0) is None]
    peers = [peer for peer in PEERS if peer not in missing]
    here("fenchel", *splits("iris", 0)[:3], "classification", 0)  # compiles
    runs: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in names:
        found = runs[name] = {method: {"score": [], "cpu": []} for method in (*OURS, "MLP", *peers)}
        for seed in seeds:
            X, X_test, y, y_test, task = splits(name, seed)
            for method, record in found.items():
                outcome = (there if method in PEERS else here)(method, X, X_test, y, task, seed)
                if outcome is not None:
                    record["cpu"].append(outcome[0])
                    record["score"].append(score(outcome[1], y_test, task))
        print(
            name,
            {method: np.round(record["score"], 2).tolist() for method, record in found.items()},
            flush=True,
        )
    methods = (*OURS, "MLP", *peers)
    rows = [[name, *(cell(found[method]) for method in methods)] for name, found in runs.items()]
    notes = ["Median score in per cent (accuracy or explained variance), and CPU seconds, choice included."]
    if missing:
        notes.append(
            f"Not measured, because it cannot be imported: {', '.join(PEERS[peer] for peer in missing)}."
        )
    table = {
        "title": "Networks trained without back-propagation: other packages",
        "columns": ["set", *OURS, "MLP (scikit-learn)", *(PEERS[peer] for peer in peers)],
        "rows": rows,
        "notes": notes,
    }
    write_record(
        "peer_networks", {"seeds": seeds, "runs": runs, "missing": missing, "table": table}, quick=quick
    )


def cell(record: dict[str, list[float]]) -> str:
    """Medians as ``score (seconds)``."""
    if not record["score"]:
        return "failed"
    return f"{np.median(record['score']):.2f} ({np.median(record['cpu']):.2f} s)"


if __name__ == "__main__":
    main()
