"""Stochastic block steps: back-propagation as a limit, second-order V-step, scale freedom, noise, the run."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liftopt.activations import get_activation
from liftopt.block_steps import BlockTrainer, Noise
from liftopt.layers import AvgPool2d, Conv2d, Dense, Flatten
from liftopt.linear_maps import channels_last, linear_maps, rebuild
from liftopt.losses import CrossEntropy, Squared, SquaredHinge
from liftopt.network import Network, dense_network
from liftopt.recording import Recorder
from liftopt.stochastic import Budget, Resting, Rows, StochasticRun


def network(rng, sizes=(6, 8, 7, 3), activation="relu"):
    weights = [rng.normal(size=(a, b)) / a**0.5 for a, b in itertools.pairwise(sizes)]
    return dense_network(weights, [rng.normal(size=W.shape[1]) / 9 for W in weights], activation, "softmax")


def data(rng, n=32):
    return rng.normal(size=(n, 6)), np.eye(3)[rng.integers(3, size=n)]


def silent(random_state=None):
    return Noise(0.0, 0.0, 0.0, 32, random_state or np.random.RandomState(0))


def gradients(trainer, Z, target):
    inputs, shapes, slopes = trainer._forward(Z, silent())
    trainer._refresh_factors(target, slopes)
    trainer._backward(trainer.head.residual(trainer._scores, target), inputs, shapes, slopes, Z.shape[0])
    return [(gradient[:-1], gradient[-1]) for gradient in trainer._gradients]


def torch_gradients(net, X, target):
    module = net.to_torch()[:-1]
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(target))
    loss.backward()
    return [np.asarray(p.grad) for p in module.parameters()]


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu"])
def test_large_multiplier_is_back_propagation(activation, rng):
    net = network(rng, activation=activation)
    Z, target = data(rng)
    found = gradients(BlockTrainer(linear_maps(net), CrossEntropy(), 1e9, np.float64), Z, target)
    expected = torch_gradients(net, Z, target)
    for layer, (dW, db) in enumerate(found):
        np.testing.assert_allclose(dW, expected[2 * layer].T, atol=1e-7)
        np.testing.assert_allclose(db, expected[2 * layer + 1], atol=1e-7)


def convolutional_network(rng):
    relu = get_activation("relu")
    conv = Conv2d(rng.normal(size=(4, 1, 3, 3)), np.zeros(4), relu, 1, 1)
    second = Conv2d(rng.normal(size=(3, 4, 3, 3)) / 6, np.zeros(3), relu)
    head = Dense(rng.normal(size=(12, 3)), np.zeros(3))
    return Network([conv, AvgPool2d(2), second, AvgPool2d(1), Flatten(), head], (1, 8, 8))


def test_convolutional_gradient_is_back_propagation(rng):
    net = convolutional_network(rng)
    X, target = rng.normal(size=(5, 64)), np.eye(3)[[0, 1, 2, 0, 1]]
    trainer = BlockTrainer(linear_maps(net), CrossEntropy(), 1e12, np.float64)
    found = gradients(trainer, channels_last(X, (1, 8, 8)), target)
    module = net.to_torch()
    torch.nn.functional.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(target)).backward()
    step = rebuild(net, trainer.maps, [dW for dW, _ in found], [db for _, db in found])
    kernels = [layer.weight for layer in step.layers if isinstance(layer, Conv2d)]
    convolutions = [part for part in module if isinstance(part, torch.nn.Conv2d)]
    for kernel, part in zip(kernels, convolutions, strict=True):
        np.testing.assert_allclose(kernel, np.asarray(part.weight.grad), atol=1e-7)


def test_value_step_is_the_newton_step_of_the_batch_model(rng):
    net = network(rng, sizes=(6, 8, 3))
    Z, target = data(rng)
    lam = 0.3
    trainer = BlockTrainer(linear_maps(net), CrossEntropy(), lam, np.float64)
    (dW, _), _ = gradients(trainer, Z, target)
    W0, W1 = trainer.weights
    u = Z @ W0 + trainer.biases[0]
    scores = np.maximum(u, 0) @ W1 + trainer.biases[1]
    H = W1 @ CrossEntropy().curvature(scores, target) @ W1.T
    g = CrossEntropy().residual(scores, target) @ W1.T
    change = -np.linalg.solve(lam * np.eye(8) + H, g.T).T * (u > 0)
    np.testing.assert_allclose(dW, -lam * Z.T @ change / 32, atol=1e-10)


def test_scores_of_many_rows_are_those_of_few(rng):
    net = network(rng)
    trainer = BlockTrainer(linear_maps(net), CrossEntropy(), 1.0, np.float64)
    Z, _ = data(rng, n=777)
    np.testing.assert_allclose(trainer.scores(Z), net.scores(Z), rtol=1e-10)
    assert trainer.scores(Z[:0]).shape == (0, 3)


def test_zero_loss_gradient_moves_nothing(rng):
    net = network(rng, sizes=(6, 8, 3))
    trainer = BlockTrainer(linear_maps(net), Squared(), 0.3, np.float64)
    Z, _ = data(rng)
    before = trainer.state()[:-1]  # the last is the number of steps
    trainer.step(Z, trainer.scores(Z), None, 0.1, silent())
    for old, new in zip(before, trainer.state()[:-1], strict=True):
        np.testing.assert_allclose(new, old, atol=1e-12)


def test_steps_do_not_depend_on_the_scale_of_the_loss_weights(rng):
    net = network(rng)
    Z, target = data(rng)
    moved = []
    for scale in (1.0, 1e3):
        trainer = BlockTrainer(linear_maps(net), CrossEntropy(), 0.3, np.float64)
        for _ in range(5):
            trainer.step(Z, target, np.full(32, scale), 0.05, silent())
        moved.append(trainer.weights[0])
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-9)


def test_ridge_pulls_where_no_row_has_a_residual(rng):
    trainer = BlockTrainer(linear_maps(network(rng)), SquaredHinge(), 0.3, np.float64, alpha=0.1)
    before = np.linalg.norm(trainer.weights[0])
    trainer.step(np.empty((0, 6)), np.empty((0, 3)), None, 0.1, silent(), 40)
    assert np.linalg.norm(trainer.weights[0]) < before


@pytest.mark.parametrize("convolutional", [False, True])
def test_rows_without_a_residual_can_be_left_out(convolutional, rng):
    net = convolutional_network(rng) if convolutional else network(rng, sizes=(64, 8, 7, 3))
    Z = channels_last(rng.normal(size=(40, 64)), net.input_shape)
    target = np.eye(3)[rng.integers(3, size=40)]
    moved = []
    for left_out in (False, True):
        trainer = BlockTrainer(linear_maps(net), SquaredHinge(), 0.3, np.float64)
        trainer.biases[-1][...] = 0.0
        trainer.weights[-1][...] *= 40.0  # large margins, right or wrong
        for _ in range(3):
            residual = np.any(SquaredHinge().residual(trainer.scores(Z), target), axis=1)
            assert 0 < residual.sum() < 40
            kept = np.flatnonzero(residual) if left_out else np.arange(40)
            active = trainer.step(Z[kept], target[kept], None, 0.02, silent(), 40)
            np.testing.assert_array_equal(active, residual[kept])
        moved.append([*trainer.weights, *trainer.biases])
    for one, other in zip(*moved, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("convolutional", [False, True])
def test_empty_batch_leaves_a_network_at_rest(convolutional, rng):
    net = convolutional_network(rng) if convolutional else network(rng)
    trainer = BlockTrainer(linear_maps(net), SquaredHinge(), 0.3, np.float64)
    before = trainer.state()[:-1]
    nothing = channels_last(np.empty((0, int(np.prod(net.input_shape)))), net.input_shape)
    active = trainer.step(nothing, np.empty((0, 3)), None, 0.1, silent(), 40)
    assert active.size == 0
    for old, new in zip(before, trainer.state()[:-1], strict=True):
        np.testing.assert_array_equal(new, old)


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=8))
def test_a_row_rests_for_one_pass_after_a_visit_without_residual(visits):
    resting, index = Resting(6), np.arange(6)
    rested = np.zeros(6, dtype=bool)
    for residual in visits:
        resting.begin_pass()
        awake = resting.awake(index)
        np.testing.assert_array_equal(np.isin(index, awake), ~rested)
        resting.seen(awake, np.array(residual)[awake])
        rested = ~rested & ~np.array(residual)


def test_noise_keeps_the_mean_and_its_strength_switches_it_off():
    noise = Noise(0.25, 0.5, 0.0, 400, np.random.RandomState(0))
    V = np.ones((400, 50), dtype=np.float32)
    kept = noise.kept(V)
    assert kept is not None
    assert kept.mean() == pytest.approx(1.0, abs=0.02)
    assert (noise.jitter(V) - V).std() == pytest.approx(0.5, abs=0.02)
    noise.strength = 0.0
    assert noise.kept(V) is None
    assert noise.jitter(V) is V
    noise.floor = 0.5
    assert (noise.jitter(V) - V).std() == pytest.approx(0.25, abs=0.01)


def trained(rng_seed, step, max_iter=6, **changes):
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(600, 6)).astype(np.float32)
    codes = np.argmax(Z[:, :3] ** 2 + Z[:, 3:], axis=1)
    target = np.eye(3, dtype=np.float32)[codes]
    trainer = BlockTrainer(linear_maps(network(rng, (6, 30, 3))), CrossEntropy(), 0.2, np.float32)
    budget = Budget(step, 20, max_iter, 0.1, 0.1, 0.0)
    recorder = Recorder("run")
    run = StochasticRun(
        trainer,
        Rows(Z[:400], target[:400]),
        Rows(Z[400:], target[400:]),
        budget,
        np.random.RandomState(rng_seed),
        recorder,
        judge=lambda outputs: float(np.mean(outputs.argmax(axis=1) == codes[400:])),
    )
    run.fit()
    return trainer, run, recorder.history


def test_run_is_reproducible_and_learns():
    first, _, records = trained(0, 0.06, max_iter=20)
    second, _, _ = trained(0, 0.06, max_iter=20)
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert max(record["validation_score"] for record in records) > 0.82


def test_last_passes_go_over_all_rows():
    trainer, run, records = trained(0, 0.06, max_iter=10)
    before = [W.copy() for W in trainer.weights]
    run.finish()
    assert run.passes > len(records)
    assert trainer.finite
    assert any(not np.array_equal(a, b) for a, b in zip(before, trainer.weights, strict=True))


def test_best_pass_is_returned():
    trainer, run, records = trained(0, 0.06)
    assert run._assess()[1] == max(record["validation_score"] for record in records)
    assert trainer.finite
