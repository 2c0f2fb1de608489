"""The hinge search by passes against the one in memory, which has oracles of its own."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftopt.solvers import (
    add_row_sums,
    choose_hinge_knots,
    hinge_passes,
    select_hinges,
    select_hinges_passes,
    tree_reduce,
)

N = 2500


@pytest.fixture
def data(rng):
    X = rng.normal(size=(N, 5))
    X[:, 3] = rng.integers(0, 6, N)
    Y = np.c_[np.abs(X[:, 0]) + X[:, 1] * X[:, 2], X[:, 3] * X[:, 4]] + 0.1 * rng.normal(size=(N, 2))
    return X, Y - Y.mean(axis=0)


def passes_over(X, Y, weight=None, size=700, made=None):
    """Sums over chunks of ``size`` rows."""

    def sum_rows(task):
        if made is not None:
            made.append(task)
        cuts = [slice(start, start + size) for start in range(0, len(X), size)]
        parts = (task(X[cut], Y[cut], None if weight is None else weight[cut]) for cut in cuts)
        return tree_reduce(add_row_sums, parts)

    return sum_rows


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("interaction", ["min", "product"])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_choices_are_those_made_in_memory(data, rng, degree, interaction, lazy, weighted):
    X, Y = data
    weight = rng.integers(0, 3, N).astype(float) if weighted else None
    settings: dict[str, Any] = {
        "max_terms": 31,
        "max_degree": degree,
        "interaction": interaction,
        "lazy": lazy,
        "tol": 0.0,
    }
    expected = select_hinges(X, Y, sample_weight=weight, **settings)
    used = slice(None) if weight is None else weight > 0
    knots = choose_hinge_knots(X[used], sample_weight=None if weight is None else weight[used])
    made: list[Any] = []
    found = select_hinges_passes(passes_over(X, Y, weight, made=made), knots, **settings)
    assert found.x.terms == expected.x.terms
    assert found.objective == pytest.approx(expected.objective, rel=1e-10)
    np.testing.assert_allclose(found.info["factor"], expected.info["factor"], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found.info["projections"], expected.info["projections"], atol=1e-7)
    assert found.residuals["stationarity"] < 1e-11
    assert found.status == "exhausted"
    assert found.info["passes"] == len(made)


def test_single_hinges_and_the_callback(data):
    X, Y = data
    settings: dict[str, Any] = {"max_terms": 15, "max_degree": 2, "pairs": False, "tol": 0.0}
    knots = choose_hinge_knots(X)
    found = select_hinges_passes(passes_over(X, Y), knots, **settings)
    assert found.x.terms == select_hinges(X, Y, **settings).x.terms
    stopped = select_hinges_passes(
        passes_over(X, Y), knots, **settings, callback=lambda step: step["n_terms"] >= 4
    )
    assert len(stopped.x) == 4
    assert "callback" in stopped.message


def test_looking_ahead_saves_passes_and_changes_nothing(data, monkeypatch):
    X, Y = data
    knots = choose_hinge_knots(X)
    settings: dict[str, Any] = {"max_terms": 41, "tol": 0.0}
    ahead = select_hinges_passes(passes_over(X, Y), knots, **settings)
    monkeypatch.setattr(hinge_passes, "_LIKELY_TERMS", 0)
    monkeypatch.setattr(hinge_passes, "_LIKELY_PARENTS", 1)
    blind = select_hinges_passes(passes_over(X, Y), knots, **settings)
    assert blind.x.terms == ahead.x.terms
    assert ahead.info["passes"] < 0.8 * blind.info["passes"]


def test_little_memory_closes_parents_only(data):
    X, Y = data
    knots = choose_hinge_knots(X)
    settings: dict[str, Any] = {"max_terms": 31, "max_degree": 2, "tol": 0.0}
    rich = select_hinges_passes(passes_over(X, Y), knots, **settings)
    poor = select_hinges_passes(passes_over(X, Y), knots, **settings, memory=2e5)
    none = select_hinges_passes(passes_over(X, Y), knots, **settings, memory=0.0)
    assert rich.objective <= poor.objective <= 1.5 * rich.objective
    assert none.objective < 0.9 * none.info["total"]
    assert "closed" not in rich.message
    assert "parents were closed for want of memory" in poor.message
    B = poor.x(X)
    coefficients = np.linalg.lstsq(B, Y, rcond=None)[0]
    assert poor.objective == pytest.approx(np.sum((Y - B @ coefficients) ** 2), rel=1e-9)


def test_chunks_change_the_sums_to_rounding_only(data):
    X, Y = data
    knots = choose_hinge_knots(X)
    found = [
        select_hinges_passes(passes_over(X, Y, size=size), knots, max_terms=21, max_degree=2)
        for size in (100, 999, N)
    ]
    assert found[0].x.terms == found[1].x.terms == found[2].x.terms
    assert found[0].objective == pytest.approx(found[2].objective, rel=1e-12)


def test_chunks_longer_than_a_block_and_chunks_without_weight(rng):
    X = rng.normal(size=(20_000, 2))
    Y = np.abs(X[:, :1]) - 1.0
    weight = np.ones(20_000)
    weight[:9000] = 0.0
    settings: dict[str, Any] = {"max_terms": 9, "tol": 0.0}
    knots = choose_hinge_knots(X[9000:])
    found = select_hinges_passes(passes_over(X, Y, weight, size=20_000), knots, **settings)
    again = select_hinges_passes(passes_over(X, Y, weight, size=4500), knots, **settings)
    expected = select_hinges(X[9000:], Y[9000:], **settings)
    assert found.x.terms == again.x.terms == expected.x.terms
    assert found.objective == pytest.approx(expected.objective, rel=1e-9)


def test_knots_of_a_sample_begin_at_the_minimum_of_all_rows(rng):
    X = np.c_[rng.normal(size=(500, 2)), np.full(500, 2.0), np.full(500, 7.0)]
    low, high = np.array([-9.0, X[:, 1].min(), 1.0, 7.0]), np.array([9.0, X[:, 1].max(), 3.0, 7.0])
    knots = choose_hinge_knots(X, limits=(low, high), total=1e6)
    assert (knots.raw[:3, 0] == low[:3]).all()
    assert knots.counts.tolist() == [64, 64, 2, 0]
    assert knots.raw[2, :2].tolist() == [1.0, 2.0]
    for raw, count, top in zip(knots.raw, knots.counts, high, strict=True):
        assert (np.diff(raw[:count]) > 0).all()
        assert (raw[:count] < top).all()


@settings(max_examples=30)
@given(st.data())
def test_degenerate_data_give_finite_fits(data):
    n, d = data.draw(st.integers(2, 30)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    X = rng.integers(0, data.draw(st.integers(1, 5)), (n, d)) * data.draw(
        st.sampled_from([1.0, 1e-200, 1e150])
    )
    if d > 1 and data.draw(st.booleans()):
        X[:, 1] = 3 * X[:, 0] + 1
    Y = rng.normal(size=(n, 2))
    knots = choose_hinge_knots(X, minspan=1, endspan=1)
    found = select_hinges_passes(
        passes_over(X, Y, size=7), knots, max_terms=20, max_degree=data.draw(st.integers(1, 3)), tol=0
    )
    assert np.isfinite(found.info["factor"]).all()
    assert len(found.x) <= np.unique(X, axis=0).shape[0]
    assert found.objective <= found.info["total"] * (1 + 1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interaction": "max"}, "interaction must be"),
        ({"max_terms": 0}, "max_terms"),
        ({"tol": -1}, "tol"),
        ({"memory": -1}, "memory"),
    ],
)
def test_bad_arguments_are_named(data, changes, message):
    X, Y = data
    with pytest.raises(ValueError, match=message):
        select_hinges_passes(passes_over(X, Y), choose_hinge_knots(X), **changes)
