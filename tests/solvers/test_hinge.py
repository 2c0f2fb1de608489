from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftopt.solvers import Hinge, HingeBasis, select_hinges
from liftopt.solvers import hinge_kernels as kernels
from liftopt.solvers.hinge_grid import bin_rows, choose_hinge_knots
from liftopt.solvers.hinge_support import Support


def friedman(rng, n, d=6):
    X = rng.random((n, d))
    y = 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2 + 10 * X[:, 3] + 5 * X[:, 4]
    return X, (y + rng.normal(size=n))[:, None]


def least_squares_rss(B, Y, weight=None):
    root = np.ones(len(B)) if weight is None else np.sqrt(weight)
    coefficients = np.linalg.lstsq(B * root[:, None], Y * root[:, None], rcond=None)[0]
    return float(np.sum((root[:, None] * (Y - B @ coefficients)) ** 2))


def candidates(x, knots, parent, use_min):
    """Every hinge column of one variable, (2, K, n)."""
    hinge = np.maximum(np.stack([x - knots[:, None], knots[:, None] - x]), 0.0)
    return np.minimum(hinge, parent) if use_min else hinge * parent


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("use_min", [False, True])
def test_sweeps_equal_explicit_products(rng, offset, use_min):
    n = 400
    X = rng.normal(size=(n, 3)) + offset
    X[:, 1] = rng.integers(0, 5, n)
    omega = rng.random(n)
    made = choose_hinge_knots(X, sample_weight=omega, max_knots=20, minspan=1, endspan=1)
    grid = bin_rows(made, X)
    parent = np.maximum(rng.normal(size=n), 0.0)
    variables, Q = np.arange(3), rng.normal(size=(5, n))
    root = np.sqrt(omega)
    support = Support.of(grid, omega, (Hinge(9, 1, 0.0),), parent, use_min)
    g = support.inner_products(grid, Q)
    norms, _ = support.squared_norms(grid, omega)
    for j in variables:
        K = grid.counts[j]
        x = (X[:, j] - X[:, j].min()) / made.scale[j]
        H = candidates(x, grid.knots[j, :K], parent, use_min)
        expected = np.einsum("skn,n,cn->skc", H, root, Q)
        np.testing.assert_allclose(g[j, :, :K], expected, atol=1e-11 * n)
        np.testing.assert_allclose(norms[j, :, :K], np.einsum("skn,n->sk", H**2, omega), atol=1e-11 * n)
        assert not g[j, :, K:].any()


def test_support_weight_counts_strictly_beside_the_knot():
    X = np.repeat([0.0, 1.0, 2.0, 3.0], [1, 2, 3, 4])[:, None]
    grid = bin_rows(choose_hinge_knots(X, max_knots=None, minspan=1, endspan=1), X)
    rows = np.arange(10, dtype=np.int32)
    active = kernels.support_weight(rows, np.ones(10), grid, np.array([0]))[0]
    np.testing.assert_array_equal(active, [[9, 7, 4], [0, 1, 3]])


def brute_force_first_pair(X, Y):
    best = np.inf
    ones = np.ones((len(X), 1))
    for x in X.T:
        for t in np.unique(x)[:-1]:
            B = np.column_stack([ones, np.maximum(x - t, 0), np.maximum(t - x, 0)])
            best = min(best, least_squares_rss(B, Y))
    return best


def test_first_pair_is_the_best_of_all(rng):
    X, Y = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    result = select_hinges(X, Y, max_terms=3, max_knots=None, minspan=1, endspan=1, tol=0)
    assert len(result.x) == 3
    assert result.objective == pytest.approx(brute_force_first_pair(X, Y), rel=1e-10)


@pytest.mark.parametrize("interaction", ["min", "product"])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_rss_falls_and_equals_least_squares(rng, interaction, degree):
    X, Y = friedman(rng, 500)
    Y = np.column_stack([Y, X[:, 1] * X[:, 2]])
    weight = rng.random(500)
    result = select_hinges(
        X, Y, sample_weight=weight, max_terms=31, max_degree=degree, interaction=interaction, tol=0
    )
    trace = [record["rss"] for record in result.history]
    assert np.all(np.diff([result.info["total"], *trace]) < 0)
    B = result.x(X)
    assert result.x.degree == min(degree, 2) or degree == 3
    assert result.objective == pytest.approx(least_squares_rss(B, Y, weight), rel=1e-9)
    R = result.info["factor"]
    np.testing.assert_allclose(R.T @ R, B.T @ (weight[:, None] * B), atol=1e-8)
    assert result.residuals["stationarity"] < 1e-12
    assert result.status == "exhausted"


def test_lazy_updates_agree_with_full_updates_on_additive_models(rng):
    X, Y = friedman(rng, 400)
    lazy, full = (select_hinges(X, Y, max_terms=21, lazy=flag, tol=0) for flag in (True, False))
    assert lazy.objective == pytest.approx(full.objective, rel=1e-12)


def test_lazy_updates_lose_little_with_interactions(rng):
    X, Y = friedman(rng, 800)
    lazy, full = (select_hinges(X, Y, max_terms=31, max_degree=2, lazy=flag, tol=0) for flag in (True, False))
    assert lazy.objective < 1.05 * full.objective


def test_weights_equal_repetitions(rng):
    X, Y = friedman(rng, 150)
    counts = rng.integers(0, 4, 150)
    weighted = select_hinges(X, Y, sample_weight=counts, max_terms=15, max_degree=2, tol=0)
    repeated = select_hinges(
        np.repeat(X, counts, axis=0), np.repeat(Y, counts, axis=0), max_terms=15, max_degree=2, tol=0
    )
    assert weighted.x.terms == repeated.x.terms
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-10)


def test_products_do_not_depend_on_units(rng):
    X, Y = friedman(rng, 300)
    options: dict[str, Any] = {"max_terms": 15, "max_degree": 2, "interaction": "product", "tol": 0}
    plain = select_hinges(X, Y, **options)
    moved = select_hinges(X * [1e3, 1e-3, 1, 5, 1, 1] + 7.0, Y, **options)
    assert [[h.variable for h in term] for term in plain.x.terms] == [
        [h.variable for h in term] for term in moved.x.terms
    ]
    assert moved.objective == pytest.approx(plain.objective, rel=1e-8)


def test_recovers_an_absolute_value_exactly():
    X = np.linspace(-1, 1, 201)[:, None]
    result = select_hinges(X, np.abs(X), max_knots=None, minspan=1, endspan=1, tol=0)
    assert result.objective < 1e-20
    assert len(result.x) == 3


def test_a_column_far_from_zero_loses_nothing(rng):
    X, Y = friedman(rng, 400)
    near = select_hinges(X, Y, max_terms=15, tol=0)
    far = select_hinges(X + 2.0**20, Y, max_terms=15, tol=0)
    assert far.objective == pytest.approx(near.objective, rel=1e-6)


@pytest.mark.parametrize("interaction", ["min", "product"])
def test_threads_give_the_same_result(rng, interaction):
    X, Y = friedman(rng, 300)
    one, two = (
        select_hinges(X, Y, max_terms=15, max_degree=2, interaction=interaction, n_jobs=jobs)
        for jobs in (1, 2)
    )
    assert one.x.terms == two.x.terms
    assert one.objective == two.objective


def awkward_data(draw):
    n, d = draw(st.integers(2, 30)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    X = rng.integers(0, draw(st.integers(1, 5)), (n, d)) * draw(st.sampled_from([1.0, 1e-200, 1e8, 1e150]))
    if d > 1 and draw(st.booleans()):
        X[:, 1] = 3 * X[:, 0] + 1
    return X, rng.normal(size=(n, 2))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_degenerate_data_give_finite_fits(data):
    X, Y = awkward_data(data.draw)
    degree = data.draw(st.integers(1, 3))
    result = select_hinges(X, Y, max_terms=20, max_degree=degree, endspan=1, minspan=1, tol=0)
    B = result.x(X)
    assert np.isfinite(B).all()
    assert np.isfinite(result.info["factor"]).all()
    assert len(result.x) <= np.unique(X, axis=0).shape[0]
    assert result.objective <= result.info["total"] * (1 + 1e-12)


def test_constant_columns_are_never_used(rng):
    X, Y = friedman(rng, 100)
    X[:, 2] = 3.0
    result = select_hinges(X, Y, max_degree=2)
    assert all(hinge.variable != 2 for term in result.x.terms for hinge in term)
    nothing = select_hinges(np.ones((20, 2)), rng.normal(size=(20, 1)))
    assert len(nothing.x) == 1
    assert "no admissible" in nothing.message


def test_coefficients_stay_moderate_on_near_twins(rng):
    X = rng.random((1000, 4))
    Y = np.column_stack([np.cos(np.exp(2 * X[:, a] + X[:, b] ** 2)) for a, b in ((0, 1), (2, 3))])
    result = select_hinges(X, Y, max_terms=100, max_degree=2, interaction="product", tol=0)
    coefficients = np.linalg.solve(result.info["factor"], result.info["projections"])
    gains = -np.diff([result.info["total"], *(record["rss"] for record in result.history)])
    assert np.abs(coefficients).max() < 1e5
    assert np.all(gains > 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interaction": "max"}, "interaction must be"),
        ({"max_terms": 0}, "max_terms"),
        ({"max_degree": 1.5}, "max_degree"),
        ({"tol": -1}, "tol"),
        ({"sample_weight": [1.0]}, "sample_weight"),
        ({"endspan": 0}, "endspan"),
    ],
)
def test_bad_arguments_are_named(rng, changes, message):
    X, Y = friedman(rng, 20)
    with pytest.raises(ValueError, match=message):
        select_hinges(X, Y, **changes)


def test_nan_and_unequal_lengths_are_refused(rng):
    X, Y = friedman(rng, 20)
    with pytest.raises(ValueError, match="same positive number of rows"):
        select_hinges(X, Y[:10])
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        select_hinges(X, Y)
    with pytest.raises(ValueError, match="rescale"):
        select_hinges(np.array([[-1.7e308], [1.7e308]]), Y[:2])


def test_basis_combines_hinges(rng):
    X, Y = friedman(rng, 200)
    basis = select_hinges(X, Y, max_terms=31, max_degree=2).x
    index = max(range(len(basis)), key=lambda m: len(basis.terms[m]))
    hinges = np.array([basis.hinge(X, hinge) for hinge in basis.terms[index]])
    np.testing.assert_array_equal(basis.term(X, index), hinges.min(axis=0))
    product = HingeBasis(basis.terms, basis.scale, product=True)
    np.testing.assert_allclose(product.term(X, index), hinges.prod(axis=0))
    assert basis.is_piecewise_linear
    assert not product.is_piecewise_linear
