"""Many non-negative quadratic programs with one Hessian, for people who use benchopt: ``benchopt run .``."""

import numpy as np
from benchopt import BaseObjective


class Objective(BaseObjective):
    """Largest natural residual over the rows; 0 is optimal."""

    name = "batched non-negative QP"
    requirements = ["numpy"]
    sampling_strategy = "tolerance"

    def set_data(self, H, C):
        self.H, self.C = H, C

    def get_objective(self):
        return {"H": self.H, "C": self.C}

    def evaluate_result(self, X):
        gradient = X @ self.H - self.C
        quadratic = np.einsum("nd,nd->n", X, gradient - self.C) / 2
        residual = np.abs(X - np.maximum(X - gradient, 0.0)).max()
        return {"value": float(residual), "objective": float(quadratic.sum())}

    def get_one_result(self):
        return {"X": np.zeros_like(self.C)}
