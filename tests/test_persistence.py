"""Whole estimators in pickle and skops files: equal predictions, and no type to trust but liftopt's own."""

import pickle

import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_iris

from liftopt import HingingHyperplaneClassifier, HingingHyperplaneRegressor
from liftopt.methods import METHODS, make_estimator

COMMON = {"hidden_layer_sizes": (6,), "max_iter": 4, "random_state": 0}
NAMES = [*METHODS, "manifold+adam", "hinging"]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("name", NAMES)
def test_estimators_come_back_equal(task, name):
    X, y = load_iris(return_X_y=True)
    if name == "hinging":
        model = HingingHyperplaneClassifier() if task == "classification" else HingingHyperplaneRegressor()
    else:
        model = make_estimator(name, task, common=COMMON)
    model.fit(X, y)
    pickled = pickle.loads(pickle.dumps(model))
    data = skops.io.dumps(model)
    untrusted = skops.io.get_untrusted_types(data=data)
    assert all(kind.startswith("liftopt.") for kind in untrusted)
    restored = skops.io.loads(data, trusted=untrusted)
    for copy in (pickled, restored):
        np.testing.assert_array_equal(copy.predict(X), model.predict(X))
        assert repr(copy.network_) == repr(model.network_)
        assert copy.get_params().keys() == model.get_params().keys()
