"""
Closed forms only, and what they do with few labels
===================================================

The manifold method alternates forward ridge regressions, low-rank backward targets and a decision layer on
the Stiefel manifold with an adaptive support vector machine. With few labelled rows that is worth most.
"""

# %%
# Accuracy on held-out digits against the number of training rows, beside a linear classifier.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from liftopt import ManifoldClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=0, stratify=y)
rows = [100, 200, 400, 1000]
linear, ours = [], []
for n in rows:
    part = slice(0, n)
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    linear.append(reference.fit(X_train[part], y_train[part]).score(X_test, y_test))
    model = ManifoldClassifier(random_state=0).fit(X_train[part], y_train[part])
    ours.append(model.score(X_test, y_test))
    print(f"{n:5d} rows: linear {linear[-1]:.3f}, manifold network {ours[-1]:.3f}")

figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.semilogx(rows, linear, marker="s", label="logistic regression")
axes.semilogx(rows, ours, marker="o", label="manifold network")
axes.set(xlabel="training rows", ylabel="test accuracy")
axes.legend()
plt.show()

# %%
# The network is a value: layers of arrays, which know nothing of how they were trained.

print(model.network_)
print("first layer", model.network_.layers[0].weight.shape, np.round(model.network_.nbytes / 1024), "KiB")
