"""
Lifted training, watched block by block
=======================================

A network is trained on the handwritten digits without back-propagation as the driver: every sweep minimises
the lifted, Lagrange-relaxed objective over one block at a time. The full-batch mode descends at every
sweep; the stochastic mode is faster and is what larger data get.
"""

# %%
# The full-batch mode records the relaxed objective, the lifted fit and the loss of the forward pass. The
# relaxation treats targets of the hidden units as variables of their own, so lifted fit and forward loss
# differ: the gap is reported, never hidden.

import warnings
from itertools import pairwise

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from liftopt import FenchelClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # a picture of the course needs no rest point
    monotone = FenchelClassifier(mode="monotone", max_iter=15, random_state=0).fit(X_train, y_train)
objective = [record["objective"] for record in monotone.history_]
print("never rises:", all(after <= before for before, after in pairwise(objective)))
print(f"monotone mode, test accuracy {monotone.score(X_test, y_test):.3f}")

# %%
# The stochastic mode with default settings: nothing to tune.

stochastic = FenchelClassifier(mode="stochastic", random_state=0).fit(X_train, y_train)
print(f"stochastic mode, test accuracy {stochastic.score(X_test, y_test):.3f}")

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].semilogy(objective, marker="o")
axes[0].set(xlabel="sweep", ylabel="relaxed objective", title="monotone")
losses = [record["loss"] for record in stochastic.history_ if "loss" in record]
axes[1].semilogy(losses, marker="o")
axes[1].set(xlabel="epoch", ylabel="training loss", title="stochastic")
plt.show()
