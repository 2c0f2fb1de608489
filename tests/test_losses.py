"""Loss heads: gradients by finite differences, curvature and its bound, known values."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from liftopt.losses import CLASSIFICATION_HEADS, HEADS, Huber, get_head

ALL = [kind() for kind in HEADS.values()]


def rows(rng, n=6, outputs=4):
    return rng.normal(size=(n, outputs)), np.eye(outputs)[rng.integers(outputs, size=n)]


@pytest.mark.parametrize("head", ALL, ids=lambda head: head.name)
def test_residual_is_the_gradient(head, rng):
    u, t = rows(rng)
    numeric = np.empty_like(u)
    for j in range(u.shape[1]):
        step = np.zeros_like(u)
        step[:, j] = 1e-6
        numeric[:, j] = (head.losses(u + step, t) - head.losses(u - step, t)) / 2e-6
    np.testing.assert_allclose(head.residual(u, t), numeric, atol=1e-7)


@pytest.mark.parametrize("head", ALL, ids=lambda head: head.name)
def test_curvature_is_the_mean_jacobian_within_its_bound(head, rng):
    u, t = rows(rng)
    numeric = np.empty((4, 4))
    for j in range(4):
        step = np.zeros_like(u)
        step[:, j] = 1e-6
        numeric[j] = ((head.residual(u + step, t) - head.residual(u - step, t)) / 2e-6).mean(axis=0)
    np.testing.assert_allclose(head.curvature(u, t), numeric, atol=1e-7)
    assert np.linalg.eigvalsh(head.curvature(u, t))[-1] <= head.bound + 1e-12


def test_cross_entropy_is_log_loss_and_survives_extremes(rng):
    head = get_head("cross_entropy", CLASSIFICATION_HEADS)
    u, t = rows(rng)
    p = np.exp(u) / np.exp(u).sum(axis=1, keepdims=True)
    assert head.mean_loss(u, t) == pytest.approx(log_loss(t.argmax(axis=1), p, labels=range(4)))
    assert np.isfinite(head.losses(1e4 * u, t)).all()
    assert np.isfinite(head.residual(1e4 * u, t)).all()


def test_unknown_names_and_parameters_are_refused():
    with pytest.raises(ValueError, match="loss must be one of cross_entropy"):
        get_head("hinge?", CLASSIFICATION_HEADS)
    with pytest.raises(ValueError, match="delta"):
        Huber(np.nan)
