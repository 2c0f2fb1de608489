"""
Averages of the weights in a plain torch loop
=============================================

Training at a constant rate leaves the last weights noisy. Sample them several times an epoch, average,
publish the average, put it back, or weigh the stored averages by their loss on held-out rows: all around an
optimiser of your own.
"""

# %%
# Digits with one label in five replaced at random in the training rows. Held-out and test labels are clean.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from liftopt import PeriodicWeightSampler

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
X_train, X_rest, y_train, y_rest = train_test_split(X, y, test_size=0.45, random_state=0, stratify=y)
rng = np.random.default_rng(0)
wrong = rng.random(len(y_train)) < 0.2
y_train = np.where(wrong, rng.integers(0, 10, len(y_train)), y_train)

X_train, X_held, X_test = map(torch.from_numpy, (X_train, X_rest[:300], X_rest[300:]))
y_train, y_held, y_test = map(torch.from_numpy, (y_train, y_rest[:300], y_rest[300:]))

# %%
# The loop is the usual one. ``sampler.step()`` follows ``optimizer.step()``; ``with sampler.averaged()``
# shows the published weights and gives the live ones back. Here a period is half an epoch, and the mean of
# the last four periods is published.

torch.set_num_threads(1)
BATCH, EPOCHS = 32, 30
STEPS = len(X_train) // BATCH


def test_loss(model):
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(X_test), y_test).item()


def train(**policy):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sampler = PeriodicWeightSampler(model, optimizer, period=STEPS // 2, **policy)
    live, published = [], []
    for _ in range(EPOCHS):
        order = torch.randperm(len(X_train))[: STEPS * BATCH]
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X_train[rows]), y_train[rows]).backward()
            optimizer.step()
            sampler.step()
        live.append(test_loss(model))
        with sampler.averaged():
            published.append(test_loss(model))
    return sampler, live, published


walk, live, averaged = train(mode="walk", window=4, reinsert=False)
_, _, put_back = train(mode="average", reinsert=True)

# %%
# The average that is not put back lives on the very trajectory of the plain optimiser: it costs no training.
# The average that is put back changes the trajectory. To first order, that is a smaller rate: compare it with
# one before you believe in it.

for label, losses in (("last weights", live), ("mean of 4 periods", averaged), ("put back", put_back)):
    plt.plot(losses, label=label)
    print(f"{label:<18} test loss {losses[-1]:.3f} at the end, {min(losses):.3f} at its best epoch")
plt.xlabel("epoch")
plt.ylabel("test loss")
plt.yscale("log")
plt.legend()
plt.show()

# %%
# Coefficients. With all means of the run held, the convex combination that is best on the held-out rows
# chooses window and stopping time in one small problem. ``gap`` says how stationary it is; where the gain
# over the uniform mean is not above its standard error, the uniform mean is kept.

every, _, _ = train(mode="walk", window=2 * EPOCHS, reinsert=False)
mixture = every.combine(X_held, y_held)
print(
    f"held-out loss {mixture.loss:.3f}, of the uniform mean {mixture.uniform_loss:.3f}, "
    f"of the best single one {mixture.single_loss:.3f}"
)
print(f"kept: {mixture.kept}; {np.sum(mixture.solution > 1e-6)} means used; gap {mixture.gap:.1e}")
with every.averaged() as model:
    print(f"test loss of the combination {test_loss(model):.3f}")

# %%
# Saving: the state of the sampler joins those of model and optimiser, and the resumed run is equal bit for
# bit. It names its policy and its parameters, and refuses others.

state = walk.state_dict()
try:
    PeriodicWeightSampler(torch.nn.Linear(2, 2), **walk.policy).load_state_dict(state)
except ValueError as error:
    print(error)
