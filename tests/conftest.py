import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from liftopt.base import NetworkClassifier, NetworkRegressor
from liftopt.methods import METHODS, Method
from liftopt.network import dense_network
from liftopt.recording import Recorder

# the same examples in every run, and no verdict from the clock of a busy machine
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _least_squares_network(data, head):
    """Linear network, good enough to be compared."""
    rows = np.column_stack([data.X, np.ones(len(data.X))]).astype(float)
    solution = np.linalg.lstsq(rows, data.target - data.target.mean(axis=0), rcond=1e-6)[0]
    bias = solution[-1] + data.target.mean(axis=0)
    return dense_network([solution[:-1]], [bias], head=head)


class _StandIn:
    _check_training_data: Any
    head = "softmax"

    def __init__(
        self,
        hidden_layer_sizes=(10,),
        input_map=None,
        learning_rate_init=0.001,
        max_iter=3,
        early_stopping=True,
        n_iter_no_change=10,
        random_state=None,
        callback=None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.input_map = input_map
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.callback = callback

    def fit(self, X, y, sample_weight=None):
        data = self._check_training_data(X, y, sample_weight)
        recorder = Recorder("stand-in", callback=self.callback)
        self.network_ = _least_squares_network(data, self.head)
        for k in range(3):
            held = {"validation_score": 0.5 + 0.1 * k} if self.early_stopping else {}
            recorder.add(objective=1.0 / (k + 1), stationarity=10.0**-k, **held)
        self.history_, self.n_iter_ = recorder.history, 3
        return self


class StandInClassifier(_StandIn, NetworkClassifier):
    pass


class StandInRegressor(_StandIn, NetworkRegressor):
    head = "identity"


@pytest.fixture
def stand_ins(monkeypatch):
    """``METHODS`` with a quick linear method named "linear" and in place of Adam, and nothing else."""
    module = SimpleNamespace(Classifier=StandInClassifier, Regressor=StandInRegressor)
    monkeypatch.setitem(sys.modules, "stand_ins", module)
    quick = Method("stand_ins", "Classifier", "Regressor")
    for name in reversed(list(METHODS)):  # undone in the order of before
        monkeypatch.delitem(METHODS, name)
    monkeypatch.setitem(METHODS, "linear", quick)
    monkeypatch.setitem(METHODS, "adam", quick)
    return module
