"""
Methods that start each other
=============================

Every method gives a network, and a network can start every other method: closed forms first, then convex
blocks, then gradients, then weights of two bits. See what each stage gains and costs, and repair a start in
closed form.
"""

# %%
# A recipe names methods in the order in which they are to run. ``common`` are parameters for all of them.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from liftopt import Dense, FenchelClassifier, Network, TernaryClassifier, refine
from liftopt.methods import make_estimator
from liftopt.plot import ConvergenceDisplay
from liftopt.repair import refit_head

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)

common = {"hidden_layer_sizes": (64,), "random_state": 0}
recipe = make_estimator("manifold+fenchel+refine", "classification", common=common).fit(X_train, y_train)
for stage in recipe.stages_:
    accuracy = stage.estimator.score(X_test, y_test)
    print(f"after {stage.name:<8} accuracy {accuracy:.4f}, {stage.cpu:.2f} CPU seconds")

# %%
# The loss on the rows that each stage held out for itself. ``liftopt fit digits --method
# manifold+fenchel+refine`` runs the same on the command line, and ``liftopt compare --methods`` takes recipes
# too and shows their stages.

ConvergenceDisplay.from_estimator(recipe, quantity="loss", over="cpu")
plt.show()

# %%
# In Python, ``init=`` says it too: by name, or with a network, wherever that comes from.

model = FenchelClassifier(init="manifold", **common).fit(X_train, y_train)
small = TernaryClassifier(init=recipe.network_, random_state=0).fit(X_train, y_train)
print(f"by name {model.score(X_test, y_test):.4f}, ternary from the recipe {small.score(X_test, y_test):.4f}")
print(f"{recipe.network_.nbytes:,} bytes became {small.network_.nbytes:,}")

# %%
# Repairs in closed form. Random hidden units know nothing of the digits; with the best head on top of them (a
# convex problem, solved to its optimum) they are a start that gradients improve on at once.

rng = np.random.default_rng(0)
hidden, head = recipe.network_.layers
random = Network(
    [
        Dense(rng.normal(scale=0.05, size=(64, 64)), np.zeros(64), hidden.activation),
        Dense(rng.normal(scale=0.05, size=(64, 10)), np.zeros(10), head.activation),
    ]
)


def accuracy(network):
    return np.mean(network(X_test).argmax(axis=1) == y_test)


refitted = refit_head(random, X_train, y_train)
print(f"random {accuracy(random):.4f}, head refitted {accuracy(refitted):.4f}")

# %%
# The same ten epochs from both.

for name, start in (("random", random), ("head refitted", refitted)):
    trained = refine(start, X_train, y_train, max_iter=10, random_state=0)
    plt.plot(["start", "ten epochs later"], [accuracy(start), accuracy(trained)], "o-", label=name)
    print(f"{name}: {accuracy(start):.4f}, then {accuracy(trained):.4f}")
plt.ylabel("test accuracy")
plt.legend()
plt.show()
