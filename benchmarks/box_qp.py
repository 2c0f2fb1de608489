"""Box QPs with one Hessian: min 1/2 x'Hx - c'x over x >= 0, d = 300, against exact and first-order solvers.

The problems are those of a lifted ReLU block: H = W'W + lam I with gaussian W of variance 2/d, and right-hand
sides whose solutions have about a third of their entries at zero. Ours solves all of them, everything
included (eigendecomposition, choice of the step parameter, final residuals). Peers run one problem after the
other through their fastest legal interface for a few CPU seconds, their own set-up excluded; their own
tolerance is the loosest for which 95 % of a sample meet the target. Everyone is judged by the natural
residual max|x - max(0, x - (Hx - c))|, computed here. A peer that is not installed is reported as missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

from common import measure, parse_arguments, write_record  # isort: skip

import numpy as np
from scipy import sparse
from scipy.optimize import nnls

from liftopt.solvers import box_qp_batched, natural_residual, solve_box_qp

D = 300
SEED = 0
CONDITIONS = (1e2, 1e4)
TARGET = 1e-6
_PROBED = 20  # rows on which the tolerance of a peer is chosen
TOLERANCES = tuple(10.0 ** (-k / 4) for k in range(20, 40))
NOTES = [
    "Natural residual at most the target for every problem of ours, for 95 % of a peer's.",
    "GEMM: best of several 512 x 300 by 300 x 300 products of that precision in the same process.",
    "Share of GEMM: 2 d^2 operations an iteration and problem, iterations alone; against the rate of the "
    "precision they run in, and against the float64 rate.",
    "mixed: float64 data, increments iterated in float32, residuals in float64 (what the solver does); "
    "double: the same with every product in float64, on a quarter of the rows; float32: float32 data.",
]

Solve = Callable[[np.ndarray], np.ndarray]


def problems(condition: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hessian of the given condition number and n right-hand sides."""
    rng = np.random.default_rng(SEED)
    W = rng.normal(size=(D, D)) * np.sqrt(2 / D)
    gram = W.T @ W
    values = np.linalg.eigvalsh(gram)
    H = gram + (values[-1] - condition * values[0]) / (condition - 1) * np.eye(D)
    return H, (rng.normal(size=(n, D)) + 0.45) @ H


def residuals(H: np.ndarray, C: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The one measure for everyone, in float64."""
    X = X.astype(np.float64)
    return natural_residual(X, X @ H - C)


def product_rate(dtype: str) -> float:
    """Operations a CPU second of the product that an iteration consists of."""
    rng = np.random.default_rng(SEED)
    A, B = rng.normal(size=(512, D)).astype(dtype), rng.normal(size=(D, D)).astype(dtype)
    out = np.empty_like(A)

    def some() -> None:
        for _ in range(50):
            np.matmul(A, B, out=out)

    return 50 * 2.0 * 512 * D * D / min(measure(some).cpu for _ in range(7))


def double_arithmetic(H: np.ndarray, C: np.ndarray, tol: float) -> Any:
    """The solver with float64 increments, all else equal."""
    in_double = partial(box_qp_batched.solve_batched, work=np.float64)
    with patch.object(box_qp_batched, "solve_batched", in_double):
        return solve_box_qp(H, C, tol=tol)


def ours(H: np.ndarray, C: np.ndarray, tol: float, arithmetic: str) -> dict[str, Any]:
    """One run of ours on all rows."""
    dtype = "float64" if arithmetic == "double" else "float32"
    before, double = product_rate(dtype), product_rate("float64")
    kind = np.float32 if arithmetic == "float32" else np.float64
    given = H.astype(kind), C.astype(kind)
    solve = double_arithmetic if arithmetic == "double" else solve_box_qp
    run = measure(lambda: solve(*given, tol=tol))
    X, n_iter = run.value.x, run.value.info["row_iterations"]
    rate = max(before, product_rate(dtype))
    found = np.concatenate([residuals(H, C[k : k + 4096], X[k : k + 4096]) for k in range(0, len(C), 4096)])
    work = 2.0 * D * D * float(n_iter.sum())
    return {
        "arithmetic": arithmetic,
        "target": tol,
        "cpu_s": run.cpu,
        "wall_s": run.wall,
        "per_second": len(C) / run.cpu,
        "iterations_mean": float(n_iter.mean()),
        "iterations_max": int(n_iter.max()),
        "gemm_gflops": rate / 1e9,
        "share_of_gemm": work / run.cpu / rate,
        "share_of_double_gemm": work / run.cpu / double,
        "residual_max": float(found.max()),
        "residual_p95": float(np.quantile(found, 0.95)),
        "at_bound": float((X[:4096] <= 0).mean()),
    }


def daqp_solver(H: np.ndarray, tolerance: float) -> Solve:
    """DAQP: factor once, update the linear term; exact, so the tolerance has no use."""
    import daqp

    model = daqp.Model()
    big = np.full(D, 1e30)
    model.setup(H, np.zeros(D), np.zeros((0, D)), big, np.zeros(D), np.zeros(D, dtype=np.int32))

    def solve(c: np.ndarray) -> np.ndarray:
        model.update(f=-c)
        return model.solve()[0]

    return solve


def osqp_solver(H: np.ndarray, tolerance: float, **settings: Any) -> Solve:
    """OSQP: set up once, update the linear term, cold start."""
    import osqp

    model = osqp.OSQP(algebra="builtin")
    model.setup(
        P=sparse.triu(sparse.csc_matrix(H), format="csc"),
        q=np.zeros(D),
        A=sparse.eye(D, format="csc"),
        l=np.zeros(D),
        u=np.full(D, np.inf),
        eps_abs=tolerance,
        eps_rel=tolerance,
        max_iter=20_000,
        verbose=False,
        **settings,
    )
    zero = np.zeros(D)

    def solve(c: np.ndarray) -> np.ndarray:
        model.update(q=-c)
        model.warm_start(x=zero, y=zero)
        return np.maximum(model.solve(raise_error=False).x, 0.0)

    return solve


def tuned_osqp_solver(H: np.ndarray, tolerance: float) -> Solve:
    """OSQP with the step parameter that suits this spectrum, and no scaling or adaptation."""
    rho = 0.5 * float(np.trace(H)) / D
    return osqp_solver(H, tolerance, rho=rho, scaling=0, adaptive_rho=False, check_termination=10)


def nnls_solver(H: np.ndarray, tolerance: float) -> Solve:
    """Active set of scipy on the Cholesky factor; exact."""
    factor = np.linalg.cholesky(H)
    return lambda c: nnls(factor.T, np.linalg.solve(factor, c), maxiter=10 * D)[0]


def cvxpy_solver(H: np.ndarray, tolerance: float) -> Solve:
    """A parametrised cvxpy problem, solved again by OSQP."""
    import cvxpy as cp

    x, c = cp.Variable(D), cp.Parameter(D)
    program = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(H)) - c @ x), [x >= 0])

    def solve(right: np.ndarray) -> np.ndarray:
        c.value = right
        program.solve(solver=cp.OSQP, eps_abs=tolerance, eps_rel=tolerance, max_iter=20_000)
        return np.maximum(x.value, 0.0)

    return solve


PEERS: dict[str, tuple[Callable[[np.ndarray, float], Solve], bool]] = {
    "DAQP, Model.update": (daqp_solver, False),
    "OSQP, default settings": (osqp_solver, True),
    "OSQP, tuned settings": (tuned_osqp_solver, True),
    "scipy nnls": (nnls_solver, False),
    "cvxpy + OSQP, DPP": (cvxpy_solver, True),
}


def sampled(solve: Solve, C: np.ndarray, seconds: float) -> Iterator[tuple[int, np.ndarray, float]]:
    """Solve row after row until the CPU seconds are spent."""
    spent = 0.0
    for row, c in enumerate(C):
        started = time.process_time()
        x = solve(c)
        spent += time.process_time() - started
        yield row, x, spent
        if spent > seconds:
            return


def peer(name: str, H: np.ndarray, C: np.ndarray, seconds: float) -> dict[str, Any]:
    """Problems a second of one peer at the loosest of its tolerances that meets the target."""
    build, has_tolerance = PEERS[name]
    try:
        solve = build(H, TARGET)
    except ImportError:
        return {"peer": name, "missing": True}
    tolerance = None
    for candidate in TOLERANCES if has_tolerance else ():
        solve, tolerance = build(H, candidate), candidate
        few = np.array([solve(c) for c in C[:_PROBED]])
        if np.quantile(residuals(H, C[:_PROBED], few), 0.95) <= TARGET:
            break
    solve(C[-1])
    runs = list(sampled(solve, C, seconds))
    X = np.array([x for _, x, _ in runs])
    found = residuals(H, C[: len(X)], X)
    return {
        "peer": name,
        "missing": False,
        "own_tolerance": tolerance,
        "solved": len(X),
        "per_second": len(X) / runs[-1][2],
        "residual_p95": float(np.quantile(found, 0.95)),
        "residual_max": float(found.max()),
    }


def study(condition: float, n: int, seconds: float) -> dict[str, Any]:
    """Everyone on one Hessian."""
    H, C = problems(condition, n)
    modes = [(TARGET, "mixed"), (TARGET, "double"), (1e-4, "float32"), (1e-4, "double"), (1e-4, "mixed")]
    found = {
        "condition": float(np.linalg.cond(H)),
        "ours": [
            ours(H, C[: n // 4] if arithmetic == "double" else C, tol, arithmetic)
            for tol, arithmetic in modes
        ],
        "peers": [peer(name, H, C, seconds) for name in PEERS],
    }
    for entry in [*found["ours"], *found["peers"]]:
        print({key: f"{v:.4g}" if isinstance(v, float) else v for key, v in entry.items()}, flush=True)
    return found


def summary(studies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tables of the documentation."""
    speed = []
    for found in studies:
        for run in found["ours"]:
            name = f"liftopt, {run['arithmetic']}"
            shares = [f"{run[key]:.0%}" for key in ("share_of_gemm", "share_of_double_gemm")]
            cells = [run["iterations_mean"], *shares, run["residual_max"]]
            speed.append([f"{found['condition']:.0e}", name, run["target"], run["per_second"], *cells])
    against = []
    for found in studies:
        rate = found["ours"][0]["per_second"]
        for entry in found["peers"]:
            cells = (
                ["missing", None, None]
                if entry["missing"]
                else [entry["per_second"], rate / entry["per_second"], entry["residual_p95"]]
            )
            against.append([f"{found['condition']:.0e}", entry["peer"], *cells])
    return [
        {
            "title": f"Box QPs with one Hessian, d = {D}",
            "columns": [
                "condition",
                "solver",
                "target",
                "problems a second",
                "iterations",
                "share of GEMM",
                "of float64 GEMM",
                "residual",
            ],
            "rows": speed,
            "notes": NOTES,
        },
        {
            "title": f"Box QPs: peers at residual {TARGET:g}",
            "columns": ["condition", "peer", "problems a second", "liftopt is faster by", "residual, 95 %"],
            "rows": against,
        },
    ]


def main() -> None:
    """Compile, run every study, record."""
    quick = parse_arguments(__doc__).quick
    n, seconds = (2048, 0.25) if quick else (60_000, 2.0)
    for kind in (np.float32, np.float64):  # compilation, cached between runs, is not what is measured
        H, C = problems(10.0, 64)
        solve_box_qp(H.astype(kind), C.astype(kind), tol=1e-3)
    double_arithmetic(H, C, 1e-3)
    studies = [study(condition, n, seconds) for condition in (CONDITIONS[:1] if quick else CONDITIONS)]
    payload = {"seeds": [SEED], "problems": n, "studies": studies, "table": summary(studies)}
    write_record("box_qp", payload, quick=quick)


if __name__ == "__main__":
    main()
