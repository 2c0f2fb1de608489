import itertools

import numpy as np
import pytest
from scipy import special

from liftopt.solvers.network_search import DiscreteNetwork, search_network
from liftopt.solvers.result import Status


def forward(x, X):
    for index, codes in enumerate(x.codes):
        W = x.values[codes]
        X = X @ W[:-1] + W[-1]
        X = np.maximum(X, 0) if index < len(x.codes) - 1 else X
    return X


def loss_of(x, X, Y, loss, weights):
    z = forward(x, X)
    rows = special.logsumexp(z, axis=1) - (Y * z).sum(1) if loss == "softmax" else 0.5 * ((z - Y) ** 2).sum(1)
    return float(weights @ rows)


@pytest.mark.parametrize("loss", ["softmax", "squared"])
@pytest.mark.parametrize("hidden", [(), (3,), (3, 2), (2, 2, 2)])
def test_one_flip_optimal_by_exhaustion(rng, loss, hidden):
    X, Y = rng.normal(size=(30, 3)), np.eye(2)[rng.integers(0, 2, 30)]
    weights = rng.random(30)
    result = search_network(X, Y, hidden, loss=loss, weights=weights, n_starts=2)
    assert result.status is Status.LOCAL_OPTIMUM
    here = loss_of(result.x, X, Y, loss, weights)
    assert result.objective == pytest.approx(here)
    for layer, part in enumerate(result.x.codes):
        for place, code in itertools.product(np.ndindex(part.shape), range(3)):
            changed = part.copy()
            changed[place] = code
            codes = (*result.x.codes[:layer], changed, *result.x.codes[layer + 1 :])
            assert loss_of(DiscreteNetwork(result.x.values, codes), X, Y, loss, weights) >= here - 1e-8


def test_loss_falls_and_start_is_used(rng):
    X, Y = rng.normal(size=(50, 4)), np.eye(3)[rng.integers(0, 3, 50)]
    first = search_network(X, Y, (5,), max_iter=1, on_limit="ignore")
    again = search_network(X, Y, (5,), start=first.x)
    assert again.objective <= first.objective
    losses = [record["objective"] for record in again.history]
    assert losses == sorted(losses, reverse=True)


def test_bad_input(rng):
    X, Y = rng.normal(size=(5, 2)), np.ones((5, 1))
    with pytest.raises(ValueError, match="unknown loss"):
        search_network(X, Y, (2,), loss="hinge")  # type: ignore[arg-type]
    start = DiscreteNetwork(np.array([-1.0, 0.0, 1.0]), (np.zeros((3, 4), np.uint8),))
    with pytest.raises(ValueError, match="fit layer sizes"):
        search_network(X, Y, (2,), start=start)
