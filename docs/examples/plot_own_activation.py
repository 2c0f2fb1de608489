"""
Tutorial: an activation of your own
===================================

Lifted training needs more of an activation than its values: the convex potential it is the gradient of, and
the conjugate of that potential. With them the Fenchel gap ``Phi*(v) + Phi(u) - u v`` is zero exactly where
``v = phi(u)``. Here is the softplus, ``phi(u) = log(1 + exp(u))``.
"""

# %%
# The potential of the softplus is minus the dilogarithm of ``-exp(u)``; the conjugate follows from the
# inverse, ``Phi*(v) = v phi^-1(v) - Phi(phi^-1(v))``. The proximal step has a generic Newton fallback.

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit, spence
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from liftopt import FenchelClassifier, Network
from liftopt.activations import ACTIVATIONS, Activation


@dataclass(frozen=True)
class Softplus(Activation):
    """``phi(u) = log(1 + exp(u))``."""

    name: ClassVar[str] = "softplus"
    range: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def __call__(self, u):
        return np.logaddexp(0.0, u).astype(u.dtype)

    def derivative(self, u):
        return expit(u)

    def potential(self, u):
        """Integral of phi: ``-Li2(-exp(u))``, by reflection for positive u."""
        small = -spence(1.0 + np.exp(-np.abs(u)))
        return np.where(u <= 0, small, np.pi**2 / 6 + u**2 / 2 - small)

    def inverse(self, v):
        return v + np.log(-np.expm1(-v))

    def conjugate(self, v):
        inside = np.maximum(v, np.finfo(float).tiny)
        u = self.inverse(inside)
        return np.where(v >= 0, inside * u - self.potential(u), np.inf)


# The table of activations is where saved networks look their names up.
ACTIVATIONS["softplus"] = Softplus

# %%
# Check the mathematics before training with it: the gap is non-negative and vanishes at the activation.

softplus = Softplus()
u = np.linspace(-6, 6, 241)
slope = np.gradient(softplus.potential(u), u, edge_order=2)
print("potential' against phi:", np.abs(slope - softplus(u))[1:-1].max())
print("gap at v = phi(u):", softplus.gap(softplus(u), u).max())
print("least gap elsewhere:", softplus.gap(np.linspace(0.01, 6, 241), u[::-1]).min())

figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for level in (-2.0, 0.0, 2.0):
    v = np.linspace(0.01, 4, 200)
    axes.plot(v, softplus.gap(v, np.full_like(v, level)), label=f"u = {level:g}")
axes.set(xlabel="v", ylabel="Fenchel gap")
axes.legend()
plt.show()

# %%
# Then it trains like any other, and is saved by its name.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
model = FenchelClassifier(activation=softplus, random_state=0).fit(X_train, y_train)
print(f"test accuracy {model.score(X_test, y_test):.3f}, {model.network_}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "softplus.safetensors"
    model.network_.save(path)
    print("read back equal:", np.array_equal(Network.load(path)(X_test), model.network_(X_test)))
