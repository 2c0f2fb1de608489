r"""Matching-loss regression, the weight block of lifted training, by majorise-minimise steps.

For rows ``x_i``, targets ``v_i``, an activation ``phi`` with convex potential ``Phi`` (``Phi' = phi``,
Lipschitz constant ``K``) and weights ``w_i``,

    min over (W, b):  sum_i w_i [ Phi(u_i) - v_i'u_i ] + ridge |W|^2 + prox (|W - W0|^2 + |b - b0|^2),

``u_i = x_i W + b``. Up to the constant ``Phi*(v)`` the bracket is the Fenchel gap ``D(v, u)``: half the
squared error for the identity, cross-entropy for softmax (K = 1/2). Convex; its gradient in ``u`` is
``w (phi(u) - v)``.

As the curvature in ``u`` is at most ``K``, the quadratic with Hessian ``M = K X~'diag(w)X~ + P`` majorises
the objective; ``X~`` has a constant column, ``P = 2 (ridge + prox) I`` but for the intercept, which has no
ridge. ``M`` is factored once and serves every column and every step, and no step raises the objective. With
fewer rows than features the same iterates are computed as ``centre + P^-1 X~'A`` with an n x n factor.

References
----------
Gu, Askari, El Ghaoui, "Fenchel Lifted Networks", AISTATS 2020, arXiv 1811.08039.
Bohning, Lindsay, "Monotonicity of quadratic-approximation algorithms", Ann. Inst.
Statist. Math. 40:641-663, 1988.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .acceleration import Momentum, at_rest, descent_step
from .affine import AffineMap
from .linear_system import SpdFactor, factor_checked
from .result import Callback, Measure, OnLimit, Result, conclude, iterate
from .validation import Array, as_count, as_finite, as_scalar, as_weights

Form = Literal["auto", "primal", "kernel"]
_CHECK_EVERY = 4
_STALL_AFTER = 25  # the step contracts on where the objective no longer resolves it


class Scored(NamedTuple):
    """Coefficients of one form and the scores ``u`` (n, outputs) they give."""

    coef: Array
    scores: Array


def solve_matching(
    X: npt.ArrayLike,
    V: npt.ArrayLike,
    phi: Callable[[Array], Array],
    potential: Callable[[Array], Array],
    *,
    lipschitz: float = 1.0,
    ridge: float = 0.0,
    prox: float = 0.0,
    init: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    sample_weight: npt.ArrayLike | None = None,
    fit_intercept: bool = True,
    form: Form = "auto",
    momentum: bool = True,
    max_iter: int = 1000,
    tol: float = 1e-6,
    time_limit: float = np.inf,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """Fit all columns of ``phi(X W + b)`` to ``V`` in the matching loss of ``phi``.

    Parameters
    ----------
    X : array-like of shape (n, features)
        Inputs; products are taken in their dtype, the factor and sums in float64.
    V : array-like of shape (n, outputs)
        Targets, in the closure of the range of ``phi``.
    phi, potential : callable
        Activation (n, outputs) to (n, outputs), and its potential: entrywise, or one value a row.
    lipschitz : float
        Lipschitz constant of ``phi`` (of the map on rows for softmax: 1/2).
    ridge : float
        Weight of ``|W|^2``; the intercept is free.
    prox : float
        Weight of the squared distance from ``init``, intercept included.
    init : pair of arrays (features, outputs) and (outputs,), optional
        Start and centre of the proximal term; zeros by default.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights of the rows.
    fit_intercept : bool
        If false the intercept stays at its start.
    form : {"auto", "primal", "kernel"}
        ``"kernel"`` needs a positive penalty on every coefficient: ``prox > 0``, or ``ridge > 0`` without
        intercept, and starts at the centre of the penalties. ``"auto"`` takes it when n < features.
    momentum : bool
        Extrapolate between steps, with a restart whenever the objective would rise.
    max_iter : int
        Largest number of steps.
    tol : float
        Bound on ``sqrt(g'M^-1 g / (lipschitz sum(w)))``, ``g`` the gradient: the root mean square over rows
        of the change of scores that the next step asks for (free of the scales of the features).
    time_limit : float
        Wall-clock seconds.
    callback : callable, optional
        Receives each history record; a true return value stops the solver.
    on_limit : {"warn", "raise", "ignore"}
        What to do when a budget ends before ``tol`` is met.

    Returns
    -------
    Result
        ``x``: :class:`~liftopt.solvers.AffineMap` in float64; ``residuals["stationarity"]`` as in ``tol``;
        ``info["form"]`` the form used, ``info["scores"]`` the scores at ``x``.

    Raises
    ------
    ValueError
        If shapes do not fit, entries are not finite, or the kernel form is asked for without the penalties
        that it needs.

    Notes
    -----
    Operations for d features, h outputs. Primal: n d^2 + d^3 / 3 once, then 4 n d h a step. Kernel:
    n^2 d + n^3 / 3 once, then 4 n^2 h a step.
    """
    data = _Data.build(X, V, ridge, prox, init, sample_weight, fit_intercept)
    bound = as_scalar("lipschitz", lipschitz, low=0.0, strict=True)
    block = _FORMS[_choose_form(form, data)](data, phi, potential, bound)
    start = at_rest(block.start(), block.objective)
    run = iterate(
        descent_step(block.majorise, block.objective, momentum=momentum),
        start,
        measure=block.measure,
        max_iter=as_count("max_iter", max_iter),
        tol=as_scalar("tol", tol, low=0.0),
        time_limit=time_limit,
        check_every=_CHECK_EVERY,
        stall_after=_STALL_AFTER,
        callback=callback,
    )
    theta = block.parameters(run.state.point)
    result = run.result(
        AffineMap(theta[:-1], theta[-1]), info={"form": block.name, "scores": run.state.point.scores}
    )
    return conclude(result, on_limit)


class _Data(NamedTuple):
    """Rows with a constant column, penalties ``strength |theta - centre|^2 / 2`` and the start."""

    X: Array
    V: Array
    root_weight: Array
    total: float
    strength: Array
    centre: Array
    start: Array

    @classmethod
    def build(
        cls,
        X: npt.ArrayLike,
        V: npt.ArrayLike,
        ridge: float,
        prox: float,
        init: tuple[npt.ArrayLike, npt.ArrayLike] | None,
        sample_weight: npt.ArrayLike | None,
        fit_intercept: bool,
    ) -> _Data:
        X, V = as_finite("X", X, ndim=2), as_finite("V", V, ndim=2)
        (n, d), h = X.shape, V.shape[1]
        if V.shape[0] != n:
            raise ValueError(f"V has {V.shape[0]} rows, X has {n}")
        weight = as_weights("sample_weight", sample_weight, n)
        weight = np.ones(n) if weight is None else weight
        ridge, prox = as_scalar("ridge", ridge, low=0.0), as_scalar("prox", prox, low=0.0)
        start = np.zeros((d + 1, h))
        if init is not None:
            start[:-1], start[-1] = _as_pair(init, d, h)
        strength = np.full((d + 1, 1), 2.0 * (ridge + prox))
        strength[-1] = 2.0 * prox if fit_intercept else np.inf
        pull = np.divide(2.0 * prox, strength, out=np.zeros_like(strength), where=strength > 0)
        centre = start * pull
        if not fit_intercept:
            centre[-1] = start[-1]
        ones = np.ones((n, 1), dtype=X.dtype)
        root = np.sqrt(weight)[:, None].astype(X.dtype)
        return cls(
            np.hstack([X, ones]),
            V.astype(X.dtype, copy=False),
            root,
            float(weight.sum()),
            strength,
            centre,
            start,
        )


def _as_pair(init: tuple[npt.ArrayLike, npt.ArrayLike], d: int, h: int) -> tuple[Array, Array]:
    weight, intercept = as_finite("init[0]", init[0]), as_finite("init[1]", init[1])
    if weight.shape != (d, h) or intercept.shape != (h,):
        raise ValueError(
            f"init must hold arrays of shapes {(d, h)} and {(h,)}, got {weight.shape} and {intercept.shape}"
        )
    return weight, intercept


def _choose_form(form: Form, data: _Data) -> str:
    if form not in ("auto", "primal", "kernel"):
        raise ValueError(f"form must be 'auto', 'primal' or 'kernel', got {form!r}")
    possible = bool((data.strength > 0).all())
    if form == "kernel" and not possible:
        raise ValueError("the kernel form needs prox > 0, or ridge > 0 and fit_intercept=False")
    centred = np.array_equal(data.centre, data.start)
    if form == "auto":
        return "kernel" if possible and centred and data.X.shape[0] < data.X.shape[1] else "primal"
    return form


class _Block:
    """What the two forms share: the loss of scores."""

    name = "primal"

    def __init__(
        self,
        data: _Data,
        phi: Callable[[Array], Array],
        potential: Callable[[Array], Array],
        bound: float,
    ) -> None:
        self.data, self.phi, self.potential, self.bound = data, phi, potential, bound
        self.factor = self.factorise()

    def factorise(self) -> SpdFactor:
        """The one factorisation."""
        raise NotImplementedError

    def penalty(self, point: Scored) -> float:
        """``strength |theta - centre|^2 / 2``."""
        raise NotImplementedError

    def loss(self, scores: Array) -> float:
        """Weighted sum of ``Phi(u) - v'u``."""
        potential = np.asarray(self.potential(scores), dtype=np.float64)
        rows = potential.sum(axis=1) if potential.ndim == 2 else potential
        rows = rows - np.einsum("ij,ij->i", scores, self.data.V, dtype=np.float64)
        weight = self.data.root_weight[:, 0].astype(np.float64) ** 2
        return float(weight @ rows)

    def objective(self, point: Scored) -> float:
        return self.loss(point.scores) + self.penalty(point)

    def excess(self, scores: Array) -> Array:
        """``sqrt(w) (phi(u) - v)``."""
        return self.data.root_weight * (self.phi(scores) - self.data.V)

    def measured(self, objective: float, decrement: float) -> Measure:
        """``decrement`` is ``g'M^-1 g``."""
        rms = np.sqrt(max(decrement, 0.0) / (self.bound * self.data.total))
        return Measure(objective, {"stationarity": float(rms)})


class _Primal(_Block):
    """Coefficients are the parameters (features + 1, outputs)."""

    def factorise(self) -> SpdFactor:
        data = self.data
        self.free = np.isfinite(data.strength)
        self.finite = np.where(self.free, data.strength, 0.0)
        weighted = data.root_weight * data.X
        gram = (weighted.T @ weighted).astype(np.float64) * self.bound
        gram *= self.free * self.free.T
        gram[np.diag_indices_from(gram)] += np.where(self.free, self.finite, 1.0)[:, 0]
        return factor_checked(gram, 0.0)

    def start(self) -> Scored:
        return self.at(self.data.start)

    def at(self, theta: Array) -> Scored:
        return Scored(theta, self.data.X @ theta.astype(self.data.X.dtype))

    def gradient(self, point: Scored) -> Array:
        data = self.data
        back = data.X.T @ (data.root_weight * self.excess(point.scores))
        return self.free * back + self.finite * (point.coef - data.centre)

    def majorise(self, point: Scored) -> Scored:
        return self.at(point.coef - self.factor.solve(self.gradient(point)))

    def penalty(self, point: Scored) -> float:
        return 0.5 * float(np.sum(self.finite * (point.coef - self.data.centre) ** 2))

    def measure(self, state: Momentum[Scored]) -> Measure:
        gradient = self.gradient(state.point)
        return self.measured(state.objective, float(np.sum(gradient * self.factor.solve(gradient))))

    def parameters(self, point: Scored) -> Array:
        return point.coef.copy()


class _Kernel(_Block):
    """Coefficients ``a`` (n, outputs) with ``theta = centre + P^-1 X~'sqrt(w) a``, ``P = diag(strength)``."""

    name = "kernel"

    def factorise(self) -> SpdFactor:
        data = self.data
        self.mapped = data.X / data.strength[:, 0].astype(data.X.dtype)
        self.kernel = self.mapped @ data.X.T  # K = X~ P^-1 X~'
        self.centre_scores = data.X @ data.centre.astype(data.X.dtype)
        gram = self.bound * data.root_weight * self.kernel.astype(np.float64) * data.root_weight.T
        gram[np.diag_indices_from(gram)] += 1.0
        return factor_checked(gram, 0.0)

    def start(self) -> Scored:
        return Scored(np.zeros_like(self.data.V), self.centre_scores)

    def newton(self, point: Scored) -> tuple[Array, Array]:
        """``r = sqrt(w)(phi - v) + a`` and ``(I + K_w)^-1 r``."""
        rest = self.excess(point.scores) + point.coef
        return rest, self.factor.solve(rest)

    def majorise(self, point: Scored) -> Scored:
        coef = (point.coef - self.newton(point)[1]).astype(self.data.V.dtype, copy=False)
        return Scored(coef, self.centre_scores + self.kernel @ (self.data.root_weight * coef))

    def penalty(self, point: Scored) -> float:
        lifted = self.data.root_weight * (point.scores - self.centre_scores)
        return 0.5 * float(np.sum(point.coef * lifted, dtype=np.float64))

    def measure(self, state: Momentum[Scored]) -> Measure:
        rest, solved = self.newton(state.point)
        # g'M^-1 g = r'K_w (I + bound K_w)^-1 r
        return self.measured(state.objective, float(np.sum(rest * (rest - solved))) / self.bound)

    def parameters(self, point: Scored) -> Array:
        theta: Array = self.data.centre + self.mapped.T @ (self.data.root_weight * point.coef)
        return theta


_FORMS: dict[str, type[_Primal] | type[_Kernel]] = {"primal": _Primal, "kernel": _Kernel}
