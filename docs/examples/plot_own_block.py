"""
Tutorial: a block solver of your own
====================================

A block solver is a pure function from arrays to a :class:`liftopt.solvers.Result`. The loop, the budgets,
the history and the reason for stopping come from :func:`liftopt.solvers.iterate`; the mathematics is a
``step`` and a ``measure``. The block here is ridge regression with bounded coefficients and an L1 term::

    min over |w| <= 1:  |X w - y|^2 / 2 + rho |w|_1.
"""

# %%
# One step of the proximal gradient method with momentum. The state is a tuple that the step never changes
# in place.

from typing import NamedTuple

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np

from liftopt.solvers import Measure, iterate


class State(NamedTuple):
    w: np.ndarray
    ahead: np.ndarray
    t: float


def solve_bounded_lasso(X, y, rho, *, tol=1e-8, max_iter=5000):
    gram, moment = X.T @ X, X.T @ y
    rate = 1.0 / np.linalg.eigvalsh(gram)[-1]

    def prox_step(w):
        w = w - rate * (gram @ w - moment)
        return np.clip(np.sign(w) * np.maximum(np.abs(w) - rate * rho, 0.0), -1.0, 1.0)

    def step(state):
        w, t = prox_step(state.ahead), (1.0 + np.sqrt(1.0 + 4.0 * state.t**2)) / 2.0
        return State(w, w + (state.t - 1.0) / t * (w - state.w), t)

    def measure(state):
        w = state.w
        objective = np.sum((X @ w - y) ** 2) / 2 + rho * np.abs(w).sum()
        return Measure(objective, {"fixed point": float(np.abs(w - prox_step(w)).max())})

    start = np.zeros(X.shape[1])
    run = iterate(step, State(start, start, 1.0), measure=measure, tol=tol, max_iter=max_iter, check_every=5)
    return run.result(run.state.w)


# %%
# The residual is recomputed at the point returned: the prox step would not move it any more.

rng = np.random.default_rng(0)
X = rng.normal(size=(200, 40))
y = X @ np.where(rng.random(40) < 0.2, 2.0 * rng.normal(size=40), 0.0) + rng.normal(size=200)
result = solve_bounded_lasso(X, y, rho=10.0)
print(result.status, result.n_iter, "iterations", dict(result.residuals))

# %%
# Every block deserves an oracle: the problem written down once more, in a modelling language.

w = cp.Variable(40)
objective = cp.Minimize(cp.sum_squares(X @ w - y) / 2 + 10.0 * cp.norm1(w))
cp.Problem(objective, [w <= 1, w >= -1]).solve()
print("largest difference from cvxpy", np.abs(w.value - result.x).max())

figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
best = result.objective
axes.semilogy([max(record["objective"] - best, 1e-12) for record in result.history])
axes.set(xlabel="measure, every fifth step", ylabel="objective minus the best")
plt.show()
