"""Spline networks: a least-squares hinge spline (MARS), written down exactly as a ReLU network.

    f(x) = c_0 + sum_m c_m B_m(x),      B_m = min of hinges (s (x_j - t))+ of different variables,

minimises the squared error over terms and coefficients: forward selection
(:func:`liftopt.solvers.select_hinges`), backward pruning (:func:`liftopt.solvers.prune_terms`), size by
generalised or by nested cross-validation. The minimum keeps f continuous and piecewise linear, so that the
network of :mod:`liftopt.spline_network` equals it everywhere. A classifier selects the terms by least squares
on scaled class indicators, as flexible discriminant analysis does, and refits the coefficients by softmax
regression.

References
----------
Friedman, "Multivariate adaptive regression splines", Annals of Statistics 1991; Hastie, Tibshirani, Buja,
"Flexible discriminant analysis by optimal scoring", JASA 1994; Mo, Zheng, Wang, Wang, Schewe, "Exploiting
spline models for the training of fully connected layers in neural network", arXiv 2102.06554 (the idea of its
abstract; the construction here is our own).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state

from liftopt.base import NetworkClassifier, NetworkRegressor, TrainingData, holdout_split
from liftopt.heads import class_indicators, repetitions, softmax_head
from liftopt.solvers.hinge import Interaction, select_hinges
from liftopt.solvers.knots import refine_knots
from liftopt.solvers.pruning import PruningPath, prune_terms
from liftopt.solvers.result import Result
from liftopt.solvers.validation import as_count, as_scalar
from liftopt.spline_model import Spline
from liftopt.spline_refine import refine_network
from liftopt.spline_report import SplineReport

Array = npt.NDArray[Any]
Pruning = Literal["gcv", "cv", "none"]

_DEFAULT_TERMS = (121, 241)
_HEADS = {"regression": "identity", "classification": "softmax"}
_HELD_OUT = 0.1  # share of the rows that judges gradient epochs


class _SplineEstimator(SplineReport):
    """Selection and pruning, shared by regressor and classifier."""

    def __init__(
        self,
        *,
        max_terms: int | None = None,
        max_degree: int = 2,
        interaction: Interaction = "min",
        max_knots: int | None = 64,
        minspan: int | None = None,
        endspan: int | None = None,
        tol: float = 1e-5,
        pruning: Pruning = "gcv",
        penalty: float = 6.0,
        cv: Any = 5,
        refine: bool | int = False,
        n_jobs: int = 1,
        random_state: Any = None,
    ) -> None:
        self.max_terms = max_terms
        self.max_degree = max_degree
        self.interaction = interaction
        self.max_knots = max_knots
        self.minspan = minspan
        self.endspan = endspan
        self.tol = tol
        self.pruning = pruning
        self.penalty = penalty
        self.cv = cv
        self.refine = refine
        self.n_jobs = n_jobs
        self.random_state = random_state

    def _select(self, data: TrainingData, target: Array) -> Spline:
        """Fit the pruned spline of ``target`` (n, outputs), whose columns are scaled alike."""
        if self.pruning not in ("gcv", "cv", "none"):
            raise ValueError(f"pruning must be 'gcv', 'cv' or 'none', got {self.pruning!r}")
        X = np.asarray(data.X, dtype=np.float64)
        omega = repetitions(data.weight)
        self.result_ = self._forward(X, target, omega)
        path = _path(self.result_)
        n = float(X.shape[0] if omega is None else omega.sum())
        penalty = as_scalar("penalty", self.penalty, low=0.0)
        size = path.rss.size
        if self.pruning == "gcv":
            size = int(np.argmin(path.gcv(n, penalty))) + 1
        elif self.pruning == "cv":
            size = min(size, self._size_by_cv(data, target, omega))
        basis = self.result_.x
        if self.refine is True:
            basis = basis.subset(path.subset(size))
            margin = max(1, min(10, X.shape[0] // 20))
            refined = refine_knots(basis, X, target, sample_weight=omega, margin=margin)
            basis, path = refined.x, _path(refined)
            size = len(basis)
        keep = path.subset(size)
        coefficients, factor = path.fit(keep)
        return Spline(basis.subset(keep), coefficients, factor, path, basis, n, penalty)

    def _fit_network(self, data: TrainingData) -> None:
        """Set ``spline_`` and ``network_``; refine the network by gradient epochs where asked."""
        epochs = 0 if isinstance(self.refine, bool) else as_count("refine", self.refine)
        self.__dict__.pop("network_", None)
        if not epochs:
            self.spline_ = self._fit_spline(data)
            if self.spline_.basis.is_piecewise_linear:
                self.network_ = self.spline_.to_network(_HEADS[data.task], dtype=data.X.dtype)
            return
        random_state = check_random_state(self.random_state)
        train, held = holdout_split(data, _HELD_OUT, random_state)
        if not held.size:
            raise ValueError(
                "refine by epochs holds rows out to choose the best one: it needs 100 rows or more"
            )
        train_data, held_data = data.rows(train), data.rows(held)
        self.spline_ = self._fit_spline(train_data)
        start = self.spline_.to_network(_HEADS[data.task], dtype=data.X.dtype)
        self.network_, self.refinement_ = refine_network(
            start, train_data, held_data, epochs=epochs, random_state=random_state
        )

    def _fit_spline(self, data: TrainingData) -> Spline:
        """Spline of checked data."""
        raise NotImplementedError

    def _forward(self, X: Array, target: Array, omega: Array | None) -> Result:
        least, most = _DEFAULT_TERMS
        max_terms = min(max(least, 2 * X.shape[1] + 1), most) if self.max_terms is None else self.max_terms
        total = X.shape[0] if omega is None else omega.sum()
        max_terms = min(as_count("max_terms", max_terms), 1 + int(total) // 4)
        return select_hinges(
            X,
            target,
            sample_weight=omega,
            max_terms=max_terms,
            max_degree=self.max_degree,
            interaction=self.interaction,
            max_knots=self.max_knots,
            minspan=self.minspan,
            endspan=self.endspan,
            tol=self.tol,
            n_jobs=self.n_jobs,
        )

    def _size_by_cv(self, data: TrainingData, target: Array, omega: Array | None) -> int:
        """Size with the least squared error out of fold; every fold selects and prunes its own terms."""
        folds = check_cv(self.cv, data.codes, classifier=data.codes is not None)
        if isinstance(self.cv, int):
            kind = type(folds)
            folds = kind(self.cv, shuffle=True, random_state=self.random_state)
        X = np.asarray(data.X, dtype=np.float64)
        errors = []
        for train, test in folds.split(X, data.codes):
            weight = None if omega is None else omega[train]
            result = self._forward(X[train], target[train], weight)
            path = _path(result)
            design = result.x(X[test])
            held = None if omega is None else omega[test]
            errors.append([_error(path, m, design, target[test], held) for m in range(1, path.rss.size + 1)])
        common = min(len(error) for error in errors)
        return int(np.argmin(np.sum([error[:common] for error in errors], axis=0))) + 1

    def _scores(self, rows: Array) -> Array:
        """Outputs of the network, or of the spline where no network equals it."""
        return self.network_.scores(rows) if hasattr(self, "network_") else self.spline_(rows)


def _path(result: Result) -> PruningPath:
    return prune_terms(result.info["factor"], result.info["projections"], result.objective)


def _error(path: PruningPath, size: int, design: Array, target: Array, weight: Array | None) -> float:
    keep = path.subset(size)
    coefficients, _ = path.fit(keep)
    squares = ((target - design[:, keep] @ coefficients) ** 2).sum(axis=1)
    return float(np.average(squares, weights=weight) * len(squares))


class SplineRegressor(_SplineEstimator, NetworkRegressor):
    """Regression by a hinge spline (MARS) that is exactly a ReLU network.

    Parameters
    ----------
    max_terms : int, optional
        Largest number of terms before pruning, intercept included; by default 121, or twice the number of
        features if that is more, at most 241. Never more than a quarter of the rows.
    max_degree : int
        Largest number of variables in a term: 1 is additive.
    interaction : {"min", "product"}
        How the hinges of a term combine. Products are smooth and classical, but no ReLU network equals them:
        then ``network_`` does not exist.
    max_knots : int or None
        Knots tried per variable; None tries every value.
    minspan, endspan : int, optional
        Least rows between knots, and beyond them. By default Friedman's values.
    tol : float
        Share of the variance below which the forward pass ends: when so little is left, or after three steps
        in a row that gained less.
    pruning : {"gcv", "cv", "none"}
        Size by generalised cross-validation; by nested cross-validation, where every fold repeats selection
        and pruning; or all terms.
    penalty : float
        Charge of GCV for each knot. The customary 2 to 3 keeps too many terms of a long forward pass.
    cv : int, splitter or iterable of splits
        Folds for ``pruning="cv"``; an integer shuffles.
    refine : bool or int
        True moves the knots by variable projection (:func:`liftopt.solvers.refine_knots`): the spline keeps
        its form. A number trains the network from the spline for that many gradient epochs (needs torch); a
        tenth of the rows is held out, and the best epoch on them is kept, the spline included.
    n_jobs : int
        Threads.
    random_state : int, RandomState or None
        For the folds of ``pruning="cv"`` and the rows held out by ``refine``.

    Attributes
    ----------
    spline_ : Spline
        The fitted terms and coefficients.
    network_ : Network
        Equal to the spline to rounding, inside and outside the range of the data; float32 data give float32
        weights. After gradient epochs it has left the spline. A knot at a variable's
        minimum is a linear term, continued as a straight line.
    result_ : Result
        Outcome of the forward pass: trace, reason for stopping.

    Notes
    -----
    Missing values are refused: impute them in a pipeline, for instance
    ``make_pipeline(SimpleImputer(add_indicator=True), SplineRegressor())``; encode categories with
    ``OneHotEncoder``. Integer ``sample_weight`` counts repetitions; other weights are scaled to mean one.
    O(n d M + n M^2) time for degree 1, O(n d M^2) for more, M terms.

    References
    ----------
    Friedman, "Multivariate adaptive regression splines", Annals of Statistics 1991.

    Examples
    --------
    >>> import numpy as np
    >>> from liftopt import SplineRegressor
    >>> X = np.linspace(-1, 1, 401)[:, None]
    >>> model = SplineRegressor(max_knots=None, minspan=1).fit(X, np.abs(X[:, 0]))
    >>> bool(abs(model.network_(X)[:, 0] - np.abs(X[:, 0])).max() < 1e-9)
    True
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> SplineRegressor:
        """Fit to ``X`` (n, d) and ``y`` (n,) or (n, outputs)."""
        self._fit_network(self._check_training_data(X, y, sample_weight))
        return self

    def _fit_spline(self, data: TrainingData) -> Spline:
        target = data.target.astype(np.float64)
        centre = np.average(target, axis=0, weights=data.weight)
        spread = np.sqrt(np.average((target - centre) ** 2, axis=0, weights=data.weight))
        spread[spread <= 1e-14 * np.abs(centre)] = 1.0
        return self._select(data, (target - centre) / spread).rescaled(spread, centre)


class SplineClassifier(_SplineEstimator, NetworkClassifier):
    """Classification by a hinge spline with a softmax head, exactly a ReLU network.

    The terms are selected by least squares on the class indicators, centred and divided by the square root of
    the class share; their coefficients are then refitted by softmax regression with a ridge on standardised
    terms.

    Parameters
    ----------
    alpha : float
        Ridge: ``mean cross-entropy + alpha / 2 |A|^2`` over standardised terms.
    max_degree : int
        Largest number of variables in a term; interactions help classes less often than they cost time.
    max_terms, interaction, max_knots, minspan, endspan, tol
        As for :class:`SplineRegressor`.
    pruning, penalty, cv, refine, n_jobs, random_state
        As for :class:`SplineRegressor`.

    Attributes
    ----------
    spline_ : Spline
        Terms and coefficients of the scores before the softmax.
    network_ : Network
        Equal to the spline, with a softmax head.
    classes_ : ndarray
        Class labels.
    result_ : Result
        Outcome of the forward pass.
    """

    def __init__(
        self,
        *,
        alpha: float = 1e-3,
        max_terms: int | None = None,
        max_degree: int = 1,
        interaction: Interaction = "min",
        max_knots: int | None = 64,
        minspan: int | None = None,
        endspan: int | None = None,
        tol: float = 1e-5,
        pruning: Pruning = "gcv",
        penalty: float = 6.0,
        cv: Any = 5,
        refine: bool | int = False,
        n_jobs: int = 1,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            max_terms=max_terms,
            max_degree=max_degree,
            interaction=interaction,
            max_knots=max_knots,
            minspan=minspan,
            endspan=endspan,
            tol=tol,
            pruning=pruning,
            penalty=penalty,
            cv=cv,
            refine=refine,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.alpha = alpha

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> SplineClassifier:
        """Fit to ``X`` (n, d) and labels ``y`` (n,)."""
        self._fit_network(self._check_training_data(X, y, sample_weight))
        return self

    def _fit_spline(self, data: TrainingData) -> Spline:
        as_scalar("alpha", self.alpha, low=0.0, strict=True)
        spline = self._select(data, class_indicators(data))
        head = softmax_head(spline.basis(data.X)[:, 1:], data, self.alpha)
        return spline.with_coefficients(np.vstack([head.intercept, head.weight]))
