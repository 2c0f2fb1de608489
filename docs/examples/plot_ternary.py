"""
Weights of two bits, found by combinatorial search
==================================================

Every weight is -1, 0 or 1 times a scale of its unit. The search evaluates changes of single weights
exactly, in the space of the layer's Gram matrix. The result is stored in two bits a weight.
"""

# %%
# A float network of the same shape is the reference.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from liftopt import ManifoldClassifier, TernaryClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
reference = ManifoldClassifier(hidden_layer_sizes=(64,), random_state=0).fit(X_train, y_train)
model = TernaryClassifier(init=reference.network_, random_state=0).fit(X_train, y_train)
for name, fitted in (("float", reference), ("ternary", model)):
    size = fitted.network_.nbytes / 1024
    print(f"{name:8s} test accuracy {fitted.score(X_test, y_test):.3f}, {size:6.1f} KiB")

# %%
# The incoming weights of 24 hidden units, as images of the 8 x 8 pixels they look at.

weight = model.network_.layers[0].weight
figure, axes = plt.subplots(3, 8, figsize=(7, 3), layout="constrained")
for ax, column in zip(axes.flat, weight.T[:24], strict=True):
    ax.imshow(column.reshape(8, 8), cmap="RdBu", vmin=-abs(column).max(), vmax=abs(column).max())
    ax.set_axis_off()
plt.show()
