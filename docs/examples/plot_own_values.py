"""
Tutorial: a value set of your own
=================================

Ternary weights are one choice. Any finite set of numbers works, and the search that finds the weights is a
block solver that can be called alone: least squares over ``values x scale``, from the Gram matrix of the
inputs.
"""

# %%
# The block on its own: which three, five or nine values a weight may take, against the squared error of the
# best real weights. Rounding comes first, the search over single weights improves it.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from liftopt import TernaryClassifier
from liftopt.solvers import quantize, search_gram

rng = np.random.default_rng(0)
X = rng.normal(size=(500, 40)) @ rng.normal(size=(40, 40)) / 6
real = rng.normal(size=(40, 8))
H, C = X.T @ X, X.T @ (X @ real)
sets = {
    "ternary": (-1, 0, 1),
    "five levels": (-2, -1, 0, 1, 2),
    "powers of two": (-4, -2, -1, 0, 1, 2, 4),
    "nine levels": tuple(range(-4, 5)),
}
power = np.sum((X @ real) ** 2)
errors = {}
for name, values in sets.items():
    rounded = quantize(real, values).x.dense()
    searched = search_gram(H, C, values, on_limit="ignore").x.dense()
    errors[name] = [np.sum((X @ (real - W)) ** 2) / power for W in (rounded, searched)]
    print(f"{name:14s} relative error rounded {errors[name][0]:.4f}, searched {errors[name][1]:.4f}")

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
places = np.arange(len(sets))
for offset, label, column in ((-0.2, "rounded", 0), (0.2, "searched", 1)):
    axes.bar(places + offset, [errors[name][column] for name in sets], width=0.4, label=label)
axes.set_xticks(places, list(sets))
axes.set(ylabel="relative squared error", yscale="log")
axes.legend()
plt.show()

# %%
# And in a network: the same estimator, another set.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
for name in ("ternary", "five levels"):
    model = TernaryClassifier(hidden_layer_sizes=(32,), values=sets[name], random_state=0)
    accuracy = model.fit(X_train, y_train).score(X_test, y_test)
    print(f"{name:12s} test accuracy {accuracy:.3f}, {model.network_.nbytes / 1024:.1f} KiB")
