"""
A spline that is a ReLU network
===============================

Fit a hinge spline (MARS) to a known function of six variables, read its terms, draw the partial curves,
write it down as a ReLU network, refine it, and export the result.
"""

# %%
# Friedman's function: an interaction of the first two variables, a parabola, two straight lines, and one
# variable that does nothing.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from liftopt import Network, SplineRegressor

rng = np.random.default_rng(0)


def truth(X):
    return 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2 + 10 * X[:, 3] + 5 * X[:, 4]


X, fresh = rng.random((2000, 6)), rng.random((2000, 6))
y = truth(X) + rng.normal(size=len(X))


def error(model):
    return np.sqrt(np.mean((model.predict(fresh) - truth(fresh)) ** 2))


# %%
# The fit: selection, pruning and conversion. The table lists the terms by what the fit would lose without
# them.

model = SplineRegressor(max_terms=41).fit(X, y)
print(model.summary())
print(f"error to the truth {error(model):.3f}; the forward pass stopped because: {model.result_.message}")

# %%
# What the variables do: their importance along the pruning path, the sets of variables that interact, and the
# partial curves, exact from the pieces. The sixth variable is left out.

print("importance", model.variable_importance("rss").round(2))
for record in model.anova()[:4]:
    print(f"{' and '.join(record['variables']):<10} share of the variance {record['share']:.2f}")
figure = model.plot_partial(X)
plt.show()

# %%
# The same function as a network: equal to rounding, far outside of the data too.

print(model.network_)
far = 100 * rng.normal(size=(1000, 6))
print("largest difference", np.abs(model.network_(far) - model.spline_(far)).max())

# %%
# Refining the knots keeps the form and lowers the error. With torch, ``refine=20`` would train all weights
# for twenty epochs from here, and keep the spline if no epoch is better on rows held out.

refined = SplineRegressor(max_terms=41, refine=True).fit(X, y)
print(f"error to the truth with refined knots {error(refined):.3f}")

# %%
# Export: one file of weights, read back without executing code.

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "spline.safetensors"
    refined.network_.save(path)
    restored = Network.load(path)
print("read back equal:", np.array_equal(restored(fresh), refined.network_(fresh)))
