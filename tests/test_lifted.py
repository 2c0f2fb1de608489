"""The relaxed problem: value, gradients, bound property, descent for every activation, block oracles."""

import itertools
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import LogisticRegression, Ridge

from liftopt.continuation import Descent, Outcome, descend_lifted, refit_head
from liftopt.lifted import LiftedProblem
from liftopt.lifted_parts import PartedProblem, Point, in_parts
from liftopt.lifted_steps import box_values, settle_values
from liftopt.linear_maps import linear_maps
from liftopt.losses import CrossEntropy, Huber, Squared, SquaredHinge
from liftopt.monotone import BlockDescent
from liftopt.network import dense_network
from liftopt.solvers import solve_box_qp
from liftopt.solvers.result import Record

ACTIVATIONS = ("identity", "relu", "leaky_relu", "elu", "sigmoid", "tanh", "hard_sigmoid", "soft_threshold")


def lifted(rng, head=None, activation="relu", hidden=(5,), n=40, lam=0.3, alpha=1e-2, weight=None):
    sizes = (4, *hidden, 3)
    shapes = list(itertools.pairwise(sizes))
    weights = [rng.normal(size=shape) / 2 for shape in shapes]
    biases = [rng.normal(size=shape[1]) / 4 for shape in shapes]
    maps = linear_maps(dense_network(weights, biases, activation))
    X, target = rng.normal(size=(n, 4)), np.eye(3)[rng.integers(3, size=n)]
    problem = LiftedProblem(maps, head or CrossEntropy(), X, target, (lam,) * len(hidden), alpha, weight)
    return problem, problem.forward(weights, biases)


def disturbed(problem, blocks, rng):
    for layer, V in enumerate(blocks.values):
        low, high = problem.maps[layer].activation.range
        margin = 1e-3 if np.isfinite(low) and np.isfinite(high) else 0.0
        moved = np.clip(V + 0.1 * rng.normal(size=V.shape), low + margin, high - margin)
        blocks = blocks.with_value(layer, moved)
    return blocks


def at(blocks):
    return Point(blocks.weights, blocks.biases, (blocks.values,))


def descended(problem, blocks, sweeps, **options):
    return BlockDescent(in_parts(problem), **options).run(at(blocks), max_iter=sweeps, tol=0.0)


def objective(problem, blocks):
    return in_parts(problem).first_order(at(blocks))[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_point_has_no_penalty(activation, rng):
    problem, blocks = lifted(rng, activation=activation, hidden=(5, 4))
    *penalties, loss = problem.costs(blocks)
    assert max(penalties) < 1e-12
    assert loss == pytest.approx(problem.forward_loss(blocks), abs=1e-12)
    assert sum(problem.costs(disturbed(problem, blocks, rng))[:-1]) > 1e-4


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_weight_gradient_by_finite_differences(layer, rng):
    problem, blocks = lifted(rng, hidden=(5, 4), weight=rng.uniform(0.5, 2.0, size=40))
    blocks = disturbed(problem, blocks, rng)
    W, b = blocks.weights[layer], blocks.biases[layer]
    dW, db = rng.normal(size=W.shape), rng.normal(size=b.shape)
    ahead = objective(problem, blocks.with_layer(layer, W + 1e-6 * dW, b + 1e-6 * db))
    behind = objective(problem, blocks.with_layer(layer, W - 1e-6 * dW, b - 1e-6 * db))
    (gradient,) = in_parts(problem).gradients(at(blocks), [layer])
    slope = np.vdot(gradient, np.vstack([dW, db]))
    assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("order", ["parallel", "sequence"])
def test_descent_for_every_activation(activation, order, rng):
    problem, blocks = lifted(rng, activation=activation, hidden=(5, 4))
    run = descended(problem, disturbed(problem, blocks, rng), 8, order=order)
    objectives = np.array([record["objective"] for record in run.history])
    assert (np.diff(objectives) <= 1e-8 * np.abs(objectives[:-1])).all()
    assert objectives[-1] < objectives[0]


@pytest.mark.parametrize("head", [CrossEntropy(), Squared(), SquaredHinge(), Huber(0.5)])
def test_descent_for_every_head_with_weights(head, rng):
    weight = rng.integers(0, 3, size=40).astype(float)
    problem, blocks = lifted(rng, head, weight=weight)
    run = descended(problem, blocks, 15)
    assert np.diff([record["objective"] for record in run.history]).max() <= 1e-12
    assert run.history[-1]["gap"] == pytest.approx(
        run.history[-1]["forward_loss"] - run.history[-1]["lifted_loss"]
    )


def converged_values(problem, blocks, steps=1500):
    return settle_values((0,), steps, problem, blocks, (1.0,))[0]


def test_values_below_squares_are_nnls(rng):
    problem, blocks = lifted(rng, Squared(), n=6)
    found = converged_values(problem, blocks).values[0]
    u, W, b = problem.linear(blocks, 0), blocks.weights[1], blocks.biases[1]
    rows = np.vstack([np.sqrt(0.3) * np.eye(5), W.T])
    for i in range(6):
        expected, _ = nnls(rows, np.concatenate([np.sqrt(0.3) * u[i], problem.target[i] - b]))
        np.testing.assert_allclose(found[i], expected, atol=1e-7)


@pytest.mark.parametrize("backend", ["osqp", "cvxpy"])
def test_box_values_agree_with_the_reference_solvers(rng, backend):
    problem, blocks = lifted(rng, Squared(), n=6)
    u, W, T = problem.linear(blocks, 0), blocks.weights[1], problem.target - blocks.biases[1]
    found = box_values(blocks.values[0], u, T, W, 0.3, 0.0)
    hessian, linear = 0.3 * np.eye(5) + W @ W.T, 0.3 * u + T @ W.T
    expected = solve_box_qp(hessian, linear, tol=1e-8, backend=backend, on_limit="ignore").x
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_joint_steps_descend_further_than_the_blocks_alone(rng, monkeypatch):
    problem, blocks = lifted(rng, SquaredHinge(), hidden=(5, 4), n=200)
    joint = descended(problem, blocks, 40).history[-1]["objective"]
    monkeypatch.setattr(BlockDescent, "_joint_step", lambda *arguments: None)
    assert joint < 0.99 * descended(problem, blocks, 40).history[-1]["objective"]


def test_many_rows_take_over_from_a_sample(rng):
    problem, start = lifted(rng, n=200)
    records: list[Record] = []
    outcome = Outcome(at(start))
    settings = Descent(0.3, "fixed", "parallel", 10, 0.0, (1e-2,))
    few = problem.rows(slice(None, None, 4))
    descend_lifted(in_parts(few), in_parts(problem), outcome, settings, records.append)
    assert outcome.n_iter == 15
    assert outcome.point.kept[0][0].shape[0] == 200
    objectives = np.array([record["objective"] for record in records])
    sample, full = objectives[:11], objectives[11:]
    assert np.diff(sample).max() <= 1e-10
    assert np.diff(full).max() <= 1e-10


def test_values_below_cross_entropy_agree_with_cvxpy(rng):
    problem, blocks = lifted(rng, n=5)
    found = converged_values(problem, blocks)
    u, W, b = problem.linear(blocks, 0), blocks.weights[1], blocks.biases[1]
    V = cp.Variable(u.shape, nonneg=True)
    scores = V @ W + np.tile(b, (5, 1))
    ce = cp.sum(cp.log_sum_exp(scores, axis=1)) - cp.sum(cp.multiply(problem.target, scores))
    gap = cp.sum_squares(V) / 2 - cp.sum(cp.multiply(u, V)) + np.sum(np.maximum(u, 0) ** 2) / 2
    oracle = cp.Problem(cp.Minimize((ce + 0.3 * gap) / 5)).solve(solver=cp.CLARABEL)
    assert sum(problem.costs(found)) == pytest.approx(oracle, abs=1e-6)


def test_weights_of_an_identity_layer_are_ridge_in_one_step(rng):
    problem, blocks = lifted(rng, activation="identity")
    blocks = disturbed(problem, blocks, rng)
    moved = BlockDescent(in_parts(problem)).weight_blocks(at(blocks), [0])
    W, b = moved.weights[0], moved.biases[0]
    ridge = Ridge(alpha=problem.alpha * 40 / 0.3).fit(problem.X, blocks.values[0])
    np.testing.assert_allclose(W, ridge.coef_.T, atol=1e-6)
    np.testing.assert_allclose(b, ridge.intercept_, atol=1e-6)


def test_no_hidden_layer_is_logistic_regression(rng):
    problem, blocks = lifted(rng, hidden=())
    refitted = refit_head(in_parts(problem), at(blocks))
    model = LogisticRegression(C=1 / (problem.alpha * 40), tol=1e-10, max_iter=1000)
    model.fit(problem.X, problem.target.argmax(axis=1))
    np.testing.assert_allclose(refitted.weights[0], model.coef_.T, atol=1e-3)
    assert refit_loss(problem, refitted) <= refit_loss(problem, descended(problem, blocks, 50).state.point)


def refit_loss(problem, blocks):
    return problem.forward_loss(blocks) + in_parts(problem).ridge(blocks.weights)


def test_minimum_over_values_is_below_the_forward_loss_and_rises_with_the_multiplier(rng):
    values = []
    for lam in (0.1, 1.0, 10.0, 1000.0):
        problem, blocks = lifted(np.random.default_rng(0), lam=lam, n=10)
        values.append(sum(problem.costs(converged_values(problem, blocks, 500))))
    forward = problem.forward_loss(blocks)
    assert np.all(np.diff(values) > 0)
    assert values[-1] <= forward
    assert values[-1] == pytest.approx(forward, abs=2e-3)


def test_relu_scaling_leaves_the_loss_and_shrinks_the_penalty(rng):
    problem, blocks = lifted(rng)
    blocks = disturbed(problem, blocks, rng)
    penalty, loss = problem.costs(blocks)
    scaled = (
        blocks.with_value(0, blocks.values[0] / 3)
        .with_layer(0, blocks.weights[0] / 3, blocks.biases[0] / 3)
        .with_layer(1, blocks.weights[1] * 3, blocks.biases[1])
    )
    np.testing.assert_allclose(problem.costs(scaled), [penalty / 9, loss], rtol=1e-10)


def test_sample_order_and_repetition(rng):
    problem, blocks = lifted(rng)
    expected = descended(problem, blocks, 5).state.point.weights
    order = rng.permutation(40)
    shuffled = replace(problem, X=problem.X[order], target=problem.target[order])
    again = descended(shuffled, shuffled.forward(blocks.weights, blocks.biases), 5).state.point.weights
    np.testing.assert_allclose(again[0], expected[0], atol=1e-8)
    copies = rng.integers(0, 3, size=40)
    weighted = replace(problem, weight=copies.astype(float))
    repeated = replace(problem, X=problem.X.repeat(copies, 0), target=problem.target.repeat(copies, 0))
    found = [
        descended(p, p.forward(blocks.weights, blocks.biases), 5).state.point.weights[0]
        for p in (weighted, repeated)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-7)


@pytest.mark.parametrize("schedule", ["fixed", "geometric", "increasing", "augmented"])
def test_multiplier_schedules(schedule, rng):
    problem, blocks = lifted(rng, hidden=(5, 4))
    settings = Descent(0.2, schedule, "parallel", 12, 0.0, (1e-2,))
    outcome, records = Outcome(at(blocks)), []
    descend_lifted(in_parts(problem), None, outcome, settings, lambda record: records.append(record))
    assert outcome.n_iter == 12
    assert refit_loss(problem, outcome.best) < refit_loss(problem, blocks)


@pytest.mark.parametrize("head", [CrossEntropy(), Squared(), SquaredHinge()])
@pytest.mark.parametrize("order", ["parallel", "sequence"])
def test_parts_descend_as_the_whole(head, order, rng, monkeypatch):
    monkeypatch.setattr("liftopt.lifted_parts._PART_ROWS", 9)
    problem, blocks = lifted(rng, head, hidden=(5, 4), weight=rng.uniform(0.5, 2.0, size=40))
    parted, whole = in_parts(problem), PartedProblem((problem,), in_parts(problem).executor)
    assert len(parted.parts) == 5
    point = parted.forward(blocks)
    together = whole.forward(blocks)
    assert parted.first_order(point)[0] == pytest.approx(whole.first_order(together)[0], rel=1e-12)
    for one, other in zip(
        parted.gradients(point, range(3)), whole.gradients(together, range(3)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-12)
    assert parted.measure(point).residuals == pytest.approx(whole.measure(together).residuals)
    run = BlockDescent(parted, order=order).run(point, max_iter=10, tol=0.0)
    objectives = [record["objective"] for record in run.history]
    assert np.diff(objectives).max() <= 1e-12
    expected = BlockDescent(whole, order=order).run(together, max_iter=10, tol=0.0).measure.objective
    assert objectives[-1] == pytest.approx(expected, rel=0.25)  # each part has steps of its own length


def test_threads_give_the_same_bits(rng, monkeypatch):
    monkeypatch.setattr("liftopt.lifted_parts._PART_ROWS", 9)
    problem, blocks = lifted(rng, hidden=(5, 4))
    ends = []
    for threads in (1, 2):
        parted = in_parts(problem, threads)
        ends.append(BlockDescent(parted).run(parted.forward(blocks), max_iter=5, tol=0.0).state.point)
    for one, other in zip(ends[0].weights, ends[1].weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("head", [CrossEntropy(), Squared()])
def test_heads_of_parts_are_solved_too(head, rng, monkeypatch):
    problem, blocks = lifted(rng, head)
    expected = refit_head(in_parts(problem), at(blocks))
    monkeypatch.setattr("liftopt.lifted_parts._PART_ROWS", 9)
    parted = in_parts(problem)
    found = refit_head(parted, parted.forward(blocks))
    assert refit_loss(problem, found) == pytest.approx(refit_loss(problem, expected), rel=1e-6)
