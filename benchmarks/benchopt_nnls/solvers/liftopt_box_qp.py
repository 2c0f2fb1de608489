"""All problems at once by liftopt."""

from benchopt import BaseSolver


class Solver(BaseSolver):
    """``liftopt.solvers.solve_box_qp``."""

    name = "liftopt"
    requirements = ["pip::liftopt"]

    def set_objective(self, H, C):
        from liftopt.solvers import solve_box_qp

        self.H, self.C, self.solve = H, C, solve_box_qp
        self.solve(H, C[:2], lower=0.0, on_limit="ignore")  # compiles

    def run(self, tolerance):
        result = self.solve(self.H, self.C, lower=0.0, tol=max(tolerance, 1e-12), on_limit="ignore")
        self.X = result.x

    def get_result(self):
        return {"X": self.X}
