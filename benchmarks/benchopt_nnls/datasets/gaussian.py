"""Gram matrices of a given condition number, with about a third of the solution at zero."""

import numpy as np
from benchopt import BaseDataset


class Dataset(BaseDataset):
    """Gaussian problems."""

    name = "gaussian"
    parameters = {"n_problems": [2000], "n_features": [100], "condition": [1e2, 1e4]}
    test_parameters = {"n_problems": [20], "n_features": [5], "condition": [1e2]}

    def get_data(self):
        rng = np.random.default_rng(0)
        gram = np.cov(rng.normal(size=(2 * self.n_features, self.n_features)).T)
        low, high = np.linalg.eigvalsh(gram)[[0, -1]]
        shift = (high - self.condition * low) / (self.condition - 1)
        H = gram + shift * np.eye(self.n_features)
        return {"H": H, "C": (rng.normal(size=(self.n_problems, self.n_features)) + 0.45) @ H}
