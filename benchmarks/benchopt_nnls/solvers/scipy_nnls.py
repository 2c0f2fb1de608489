"""One problem after the other by SciPy's active-set method."""

import numpy as np
from benchopt import BaseSolver
from scipy.optimize import nnls


class Solver(BaseSolver):
    """``scipy.optimize.nnls`` on the Cholesky factor."""

    name = "scipy-nnls"
    requirements = ["scipy"]
    sampling_strategy = "run_once"

    def set_objective(self, H, C):
        self.factor = np.linalg.cholesky(H).T
        self.targets = np.linalg.solve(self.factor.T, C.T).T

    def run(self, _):
        self.X = np.array([nnls(self.factor, target)[0] for target in self.targets])

    def get_result(self):
        return {"X": self.X}
