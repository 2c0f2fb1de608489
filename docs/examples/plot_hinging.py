"""
Oblique hinges in the plane
===========================

Hinging hyperplanes fit a linear function and a few hinges in any direction by least squares; the fit is a
ReLU network with one unit a hinge, equal to it everywhere.
"""

# %%
# A ridge that no coordinate axis sees.

import matplotlib.pyplot as plt
import numpy as np

from liftopt import HingingHyperplaneRegressor, SplineRegressor

rng = np.random.default_rng(0)


def truth(X):
    return np.abs(X @ [1.0, 1.5] - 0.3) - np.maximum(X @ [-1.0, 0.8] - 0.4, 0.0)


X, fresh = rng.uniform(-1, 1, (800, 2)), rng.uniform(-1, 1, (2000, 2))
y = truth(X) + 0.05 * rng.normal(size=len(X))

oblique = HingingHyperplaneRegressor(n_hinges=6).fit(X, y)
aligned = SplineRegressor(max_degree=2).fit(X, y)
for name, model in (("oblique", oblique), ("axis-aligned", aligned)):
    error = np.sqrt(np.mean((model.predict(fresh) - truth(fresh)) ** 2))
    print(f"{name:13s} error to the truth {error:.4f}, {model.network_}")

# %%
# The lines where the fit bends, over its values.

model = oblique.hyperplanes_
axis = np.linspace(-1, 1, 101)
grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
figure, axes = plt.subplots(figsize=(4.5, 4), layout="constrained")
image = axes.imshow(oblique.predict(grid).reshape(101, 101), origin="lower", extent=(-1, 1, -1, 1))
axes.contour(axis, axis, truth(grid).reshape(101, 101), colors="white", linewidths=0.5)
for slope, offset in zip(model.slopes.T, model.offsets, strict=True):
    axes.axline(-offset * slope, slope=-slope[0] / slope[1], color="black")
axes.set(
    xlim=(-1, 1), ylim=(-1, 1), xlabel="$x_1$", ylabel="$x_2$", title="fit, truth (white), hinges (black)"
)
figure.colorbar(image)
plt.show()
