"""
Thousands of bounded least-squares problems at once
===================================================

Block solvers take arrays and know nothing of networks. ``solve_box_qp`` solves many box-constrained quadratic
programs that share one Hessian; here it decodes noisy mixtures with non-negative coefficients.
"""

# %%
# 2000 right-hand sides with one matrix: non-negative least squares, one problem a row.

import time

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import nnls

from liftopt.solvers import solve_box_qp

rng = np.random.default_rng(0)
A = np.abs(rng.normal(size=(120, 40)))
coefficients = np.maximum(rng.normal(size=(2000, 40)), 0.0)
B = coefficients @ A.T + 0.1 * rng.normal(size=(2000, 120))

solve_box_qp(A.T @ A, B[:9] @ A, lower=0.0)  # compiles, once a machine
start = time.perf_counter()
result = solve_box_qp(A.T @ A, B @ A, lower=0.0, tol=1e-8)
batched = time.perf_counter() - start
print(result.status, {name: f"{value:.1e}" for name, value in result.residuals.items()})

# %%
# SciPy solves them one by one, to the same answer.

start = time.perf_counter()
one_by_one = np.array([nnls(A, b)[0] for b in B])
print(f"all at once {batched:.3f} s, one by one {time.perf_counter() - start:.3f} s")
print("largest difference", np.abs(result.x - one_by_one).max())

# %%
# Every row carries its own residual and its own number of iterations.

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].hist(result.info["row_iterations"], bins=30)
axes[0].set(xlabel="iterations of a row", ylabel="rows")
axes[1].scatter(coefficients.ravel()[::40], result.x.ravel()[::40], s=3)
axes[1].set(xlabel="true coefficient", ylabel="decoded")
plt.show()
