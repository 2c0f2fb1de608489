"""Accelerated projected gradients on all problems at once."""

import numpy as np
from benchopt import BaseSolver


class Solver(BaseSolver):
    """Nesterov's method with the step 1 / L."""

    name = "projected-gradient"
    sampling_strategy = "iteration"

    def set_objective(self, H, C):
        self.H, self.C = H, C

    def run(self, n_iter):
        step = 1.0 / np.linalg.eigvalsh(self.H)[-1]
        X = ahead = np.zeros_like(self.C)
        t = 1.0
        for _ in range(n_iter):
            new = np.maximum(ahead - step * (ahead @ self.H - self.C), 0.0)
            t, previous = (1.0 + np.sqrt(1.0 + 4.0 * t * t)) / 2.0, t
            ahead, X = new + (previous - 1.0) / t * (new - X), new
        self.X = X

    def get_result(self):
        return {"X": self.X}
