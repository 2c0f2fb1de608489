import numpy as np
import pytest

from liftopt.solvers.unit_search import Features, Unit, improve_unit

VALUES = np.array([-1.0, 0.0, 1.0])


def quadratic_unit(rng, n=200, d=12):
    X = rng.normal(size=(n, d))
    target = X @ rng.integers(-1, 2, d) * 0.7 + 0.3
    unit = Unit(rng.integers(0, 3, d).astype(np.uint8), 0.5, 0.0)
    return X, target, unit


def test_every_accepted_step_lowers_the_exact_loss_and_finds_the_planted_weights(rng):
    X, target, unit = quadratic_unit(rng)
    features = Features(np.ascontiguousarray(X.T), 200)

    def evaluate(u):
        return float(((u - target) ** 2).sum() / 2)

    u = X @ VALUES[unit.codes] * unit.scale + unit.bias
    loss = evaluate(u)
    for _ in range(30):
        step = improve_unit(
            features, VALUES, unit, u, u - target, np.ones(200), evaluate, loss, threshold=1e-9
        )
        if step is None:
            break
        assert step.loss < loss
        unit, u, loss = step.unit, step.pre_activation, step.loss
        np.testing.assert_allclose(u, X @ VALUES[unit.codes] * unit.scale + unit.bias, atol=1e-10)
        assert step.loss == pytest.approx(evaluate(u))
    assert loss < 1e-6


def test_a_wrong_model_is_never_accepted(rng):
    X, target, unit = quadratic_unit(rng)
    features = Features(np.ascontiguousarray(X.T), 100)
    u = X @ VALUES[unit.codes] * unit.scale
    ascent = -(u - target)
    step = improve_unit(
        features,
        VALUES,
        unit,
        u,
        ascent,
        np.ones(200),
        lambda v: float(((v - target) ** 2).sum()),
        0.0,
        threshold=0.0,
    )
    assert step is None


def test_threshold_stops(rng):
    X, target, unit = quadratic_unit(rng)
    features = Features(np.ascontiguousarray(X.T), 200)
    u = X @ VALUES[unit.codes] * unit.scale
    loss = float(((u - target) ** 2).sum() / 2)
    step = improve_unit(
        features,
        VALUES,
        unit,
        u,
        u - target,
        np.ones(200),
        lambda v: float(((v - target) ** 2).sum() / 2),
        loss,
        threshold=10 * loss,
    )
    assert step is None
