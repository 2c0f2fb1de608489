"""What a fitted spline says about the data: terms, importance, ANOVA decomposition, formula, partial curves.

Everything but the partial curves follows from the triangular factor R of the terms (``R'R = B' Omega B``) and
the pruning path: no training row is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted, validate_data

from liftopt.solvers.hinge_basis import HingeBasis
from liftopt.spline_model import Spline
from liftopt.spline_partial import breakpoints, partial_dependence, plot_partial

Array = npt.NDArray[Any]
Importance = Literal["gcv", "rss", "nsubsets"]


class SplineReport:
    """Reports of a fitted estimator; needs ``spline_`` and ``n_features_in_``."""

    spline_: Spline
    n_features_in_: int

    def summary(self) -> str:
        """Table of the terms, strongest first, with model size and quality.

        ``sd`` is the standard deviation of the term's contribution over the training rows, ``rise`` the
        relative rise of the residual sum of squares when the term is deleted and the rest refitted.
        """
        check_is_fitted(self)
        spline = self.spline_
        rows = self.terms()
        width = max([len("term"), *(len(row["term"]) for row in rows)])
        lines = [
            f"{len(spline.basis)} of {len(spline.full_basis)} terms, degree {spline.basis.degree}, "
            f"R2 {spline.r2:.4f}, GCV R2 {spline.gcv_r2:.4f}",
            f"{'term':<{width}}  {'coefficient':>12}  {'sd':>10}  {'rise':>9}",
        ]
        for row in rows:
            shown = " ".join(f"{value:12.5g}" for value in row["coefficients"][:3])
            more = " ..." if len(row["coefficients"]) > 3 else ""
            rise = f"{row['rise']:9.2%}" if np.isfinite(row["rise"]) else " " * 9
            lines.append(f"{row['term']:<{width}}  {shown}{more}  {row['sd']:10.4g}  {rise}".rstrip())
        return "\n".join(lines)

    def terms(self) -> list[dict[str, Any]]:
        """One record a term: ``term``, ``coefficients``, ``sd``, ``rise`` (NaN for the intercept)."""
        check_is_fitted(self)
        spline = self.spline_
        _, covariance = spline.moments
        spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        sd = spread * np.sqrt((spline.coefficients**2).mean(axis=1))
        rise = spline.deletion_rise
        order = [0, *(1 + np.argsort(-rise[1:], kind="stable"))]
        return [
            {
                "term": term_text(spline.basis, index, self._feature_names()),
                "coefficients": spline.coefficients[index].tolist(),
                "sd": float(sd[index]),
                "rise": float(rise[index]) if index else float("nan"),
            }
            for index in order
        ]

    def formula(self, output: int = 0, digits: int = 6) -> str:
        """The spline of one ``output`` as a text formula in raw units, numbers to ``digits`` digits."""
        check_is_fitted(self)
        parts = []
        for index, value in enumerate(self.spline_.coefficients[:, output]):
            text = term_text(self.spline_.basis, index, self._feature_names(), digits)
            number = f"{abs(value):.{digits}g}"
            parts.append(("- " if value < 0 else "+ ") + (number if index == 0 else f"{number} * {text}"))
        return "\n".join(parts).removeprefix("+ ")

    def variable_importance(self, kind: Importance = "gcv") -> Array:
        """Importance (n_features,) of a ``kind`` over the subsets of the pruning path up to the one selected.

        ``"rss"`` sums, over the subsets that use a variable, the fall of the residual sum of squares from
        the next smaller subset; ``"gcv"`` does so with GCV and may be negative; ``"nsubsets"`` counts the
        subsets.
        """
        check_is_fitted(self)
        if kind not in ("gcv", "rss", "nsubsets"):
            raise ValueError(f"kind must be 'gcv', 'rss' or 'nsubsets', got {kind!r}")
        spline = self.spline_
        curve = spline.path.rss if kind == "rss" else spline.path.gcv(spline.n_samples, spline.penalty)
        importance = np.zeros(self.n_features_in_)
        for size in range(2, len(spline.basis) + 1):
            terms = spline.path.subset(size)
            used = sorted({j for index in terms for j in spline.full_basis.variables_of(index)})
            importance[used] += 1.0 if kind == "nsubsets" else curve[size - 2] - curve[size - 1]
        return importance

    def anova(self) -> list[dict[str, Any]]:
        """ANOVA decomposition ``f = c_0 + sum_S f_S`` over sets S of variables, largest share first.

        Each record has the ``variables``, ``n_terms``, ``sd`` of ``f_S`` over the training rows, its
        ``share`` ``cov(f_S, f) / var(f)`` (shares sum to one; outputs are pooled), and ``gcv_without``: GCV
        with these terms deleted and the rest refitted.
        """
        check_is_fitted(self)
        spline = self.spline_
        _, covariance = spline.moments
        groups: dict[tuple[int, ...], list[int]] = {}
        for index in range(1, len(spline.basis)):
            groups.setdefault(spline.basis.variables_of(index), []).append(index)
        c = spline.coefficients
        toward = covariance @ c
        variance = max(float(np.sum(c * toward)), np.finfo(float).tiny)
        names = self._feature_names()
        records = [
            {
                "variables": tuple(names[j] for j in variables),
                "n_terms": len(members),
                "sd": float(
                    np.sqrt(max(np.sum(c[members] * (covariance[np.ix_(members, members)] @ c[members])), 0))
                ),
                "share": float(np.sum(c[members] * toward[members]) / variance),
                "gcv_without": spline.gcv_without(members),
            }
            for variables, members in groups.items()
        ]
        return sorted(records, key=lambda record: -record["share"])

    def partial_dependence(self, X: Any, variable: int, grid: Array | None = None) -> tuple[Array, Array]:
        """Partial dependence on one variable, exact: grid (points,) and values (points, outputs).

        The average runs over the rows of ``X``; without a ``grid``, 101 points and all knots in its range.
        For a classifier the outputs are the scores before the softmax.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        if grid is None:
            low, high = float(rows[:, variable].min()), float(rows[:, variable].max())
            grid = breakpoints(self.spline_, variable, low, high, 101)
        return grid, partial_dependence(self.spline_, rows, variable, np.asarray(grid, dtype=np.float64))

    def plot_partial(self, X: Any, variables: Sequence[int] | None = None) -> Any:
        """Matplotlib figure of the partial curves over ``X``, by default of six important ``variables``."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        if variables is None:
            importance = self.variable_importance("rss")
            variables = [int(j) for j in np.argsort(-importance)[:6] if importance[j] > 0]
        if not len(variables):
            raise ValueError("the spline uses no variable: there is nothing to plot")
        return plot_partial(self.spline_, rows, variables, self._feature_names())

    def _feature_names(self) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        return list(names) if names is not None else [f"x{j}" for j in range(self.n_features_in_)]


def term_text(basis: HingeBasis, index: int, names: Sequence[str], digits: int = 6) -> str:
    """A term in raw units, such as ``(x0 - 1.5)+`` or ``min((x0 - 1.5)+ / 0.2, (3 - x1)+ / 4)``."""
    parts = []
    for hinge in basis.terms[index]:
        name, knot = names[hinge.variable], f"{abs(hinge.knot):.{digits}g}"
        rising = f"{name} {'+' if hinge.knot < 0 else '-'} {knot}"
        falling = f"{'-' if hinge.knot < 0 else ''}{knot} - {name}"
        unit = f" / {basis.scale[hinge.variable]:.{digits}g}"
        parts.append(f"({falling if hinge.sign < 0 else rising}){'+' if hinge.sign else ''}{unit}")
    if not parts:
        return "1"
    return " * ".join(parts) if basis.product or len(parts) == 1 else f"min({', '.join(parts)})"
