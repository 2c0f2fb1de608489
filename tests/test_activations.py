import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize, minimize_scalar
from scipy.special import rel_entr

from liftopt.activations import ACTIVATIONS, Activation, Softmax, get_activation

SPECS: list[Any] = [
    *(name for name in ACTIVATIONS if name != "softmax"),
    {"name": "leaky_relu", "slope": 1.0},
    {"name": "leaky_relu", "slope": 0.01},
    {"name": "elu", "scale": 0.3},
    {"name": "soft_threshold", "threshold": 0.0},
]
ENTRYWISE = [get_activation(spec) for spec in SPECS]
INVERTIBLE = [phi for phi in ENTRYWISE if phi.name in ("identity", "leaky_relu", "elu", "sigmoid", "tanh")]
KINKS = (0.0, 1.0, 0.5, -0.5)

each = pytest.mark.parametrize("phi", ENTRYWISE, ids=str)
reals = st.floats(-1e4, 1e4)


def domain_point(phi: Activation, a: np.ndarray) -> np.ndarray:
    """Points of the closed range: values of the activation and its ends."""
    low, high = phi.range
    return np.concatenate([phi(a), [x for x in (low, high) if np.isfinite(x)]])


@each
@given(a=arrays(np.float64, 6, elements=reals), u=reals)
@example(a=np.array([-1e4, -1.0, 0.0, 1e-8, 1.0, 1e4]), u=1e4)
@example(a=np.array([-1e4, -1.0, 0.0, 1e-8, 1.0, 1e4]), u=-1e4)
def test_gap_is_non_negative_and_bounds_the_distance(phi, a, u):
    v = domain_point(phi, a)
    gap = phi.conjugate(v) + phi.potential(np.full_like(v, u)) - u * v
    slack = 1e-9 * (1 + np.abs(v * u) + np.abs(phi.potential(np.array(u))))
    assert (gap >= -slack).all()
    assert (phi.gap(v, np.full_like(v, u)) >= 0).all()
    distance = (v - phi(np.full_like(v, u))) ** 2
    assert (gap >= distance / (2 * phi.lipschitz) - 10 * slack).all()


@each
@given(u=arrays(np.float64, 5, elements=reals))
@example(u=np.array([-1e4, -30.0, 0.0, 30.0, 1e4]))
def test_gap_vanishes_exactly_on_the_graph(phi, u):
    np.testing.assert_allclose(phi.gap(phi(u), u), 0, atol=1e-9 * (1 + np.max(np.abs(u)) ** 2 * 1e-4))


@each
def test_potential_and_derivative_by_differences(phi, rng):
    u = rng.normal(size=400) * 3
    u = u[np.min([np.abs(u - kink) for kink in KINKS], axis=0) > 1e-4]
    step = 1e-6
    slope = (phi.potential(u + step) - phi.potential(u - step)) / (2 * step)
    np.testing.assert_allclose(slope, phi(u), atol=1e-7)
    np.testing.assert_allclose((phi(u + step) - phi(u - step)) / (2 * step), phi.derivative(u), atol=1e-7)
    assert (phi.derivative(u) >= 0).all()
    assert (phi.derivative(u) <= phi.lipschitz).all()


@each
def test_conjugate_is_the_supremum(phi, rng):
    for v in domain_point(phi, rng.normal(size=4)):
        best = minimize_scalar(
            lambda u, v: float(phi.potential(np.array(u)) - u * v),
            bounds=(-60, 60), args=(v,), method="bounded", options={"xatol": 1e-10},
        )  # fmt: skip
        assert float(phi.conjugate(np.array(v))) == pytest.approx(-best.fun, abs=2e-6)


@each
def test_conjugate_is_infinite_outside_the_range(phi):
    low, high = phi.range
    for outside in (low - 1e-3, high + 1e-3):
        if np.isfinite(outside) and phi.name != "elu":
            assert phi.conjugate(np.array([outside]))[0] == np.inf
    if phi.name == "elu":
        assert phi.conjugate(np.array([-phi.scale - 1e-3]))[0] == np.inf


@each
@given(y=st.floats(-50, 50), t=st.floats(1e-3, 1e3))
def test_prox_against_a_scalar_minimiser(phi, y, t):
    v = float(phi.prox(np.array([y]), t)[0])

    def objective(a: float) -> float:
        """Parametrised by ``v = phi(a)``, so that every point is feasible."""
        point = phi(np.array(a))
        return float(phi.conjugate(point) + (point - y) ** 2 / (2 * t))

    value = float(phi.conjugate(np.array(v)) + (v - y) ** 2 / (2 * t))
    far = (abs(y) + 2) / t + abs(y) + 2
    best = minimize_scalar(objective, bounds=(-far, far), method="bounded", options={"xatol": 1e-12})
    ends = [float(phi.conjugate(np.array(e)) + (e - y) ** 2 / (2 * t)) for e in phi.range if np.isfinite(e)]
    assert value <= min([best.fun, *ends]) + 1e-8 * (1 + abs(value))


@each
@pytest.mark.parametrize("t", [1e-6, 0.5, 1e6])
def test_prox_optimality_at_extreme_inputs(phi, t):
    """``v = prox(y, t)`` means ``v = phi((y - v) / t)``."""
    y = np.array([-1e4, -1e2, -1.0, -1e-9, 0.0, 1e-9, 0.3, 1.0, 1e2, 1e4])
    v = phi.prox(y, t)
    assert np.isfinite(v).all()
    assert (np.diff(v) >= 0).all()
    a = (y - v) / t
    slack = 1e-9 * (1 + np.abs(y)) + 1e-15 * np.abs(y) / t
    low, high = phi(a - slack), phi(a + slack)
    assert ((v >= low - 1e-9 * (1 + np.abs(v))) & (v <= high + 1e-9 * (1 + np.abs(v)))).all()


@each
def test_prox_is_fast_on_large_arrays_and_keeps_shape(phi, rng):
    y = rng.normal(size=(50, 7)).astype(np.float32)
    v = phi.prox(y, 0.7)
    assert v.shape == y.shape
    assert v.dtype == np.float32
    np.testing.assert_allclose(v, phi.prox(y.astype(np.float64), 0.7), atol=1e-5)


@pytest.mark.parametrize("phi", INVERTIBLE, ids=str)
def test_inverse_undoes_the_activation(phi, rng):
    u = rng.normal(size=100) * 2
    np.testing.assert_allclose(phi.inverse(phi(u)), u, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "hard_sigmoid", "soft_threshold", "softmax"])
def test_no_inverse_is_said(name):
    with pytest.raises(ValueError, match=f"{name} has no inverse"):
        get_activation(name).inverse(np.array([0.5]))


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_shape_and_finiteness_are_kept_up_to_1e4(phi, dtype):
    u = np.array([[-1e4, -100.0, -1.0, 0.0], [0.5, 1.0, 100.0, 1e4]], dtype=dtype)
    with np.errstate(all="raise", under="ignore"):
        values = [phi(u), phi.derivative(u), phi.potential(u), phi.conjugate(phi(u)), phi.gap(phi(u), u)]
    for value in values:
        assert value.dtype == dtype
        assert value.shape == u.shape
        assert np.isfinite(value).all()
    assert (phi(u) >= phi.range[0]).all()
    assert (phi(u) <= phi.range[1]).all()


@pytest.mark.parametrize("spec", [*SPECS, "softmax"], ids=str)
def test_config_round_trip(spec):
    phi = get_activation(spec)
    assert get_activation(json.loads(json.dumps(phi.config()))) == phi
    assert get_activation(phi) is phi
    assert str(phi).startswith(phi.name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        phi.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("swish", "unknown activation 'swish'; choose one of identity, relu"),
        ({"name": "relu", "slope": 1.0}, r"activation 'relu' does not take the parameters \{'slope': 1.0\}"),
        ({"slope": 0.1}, "unknown activation"),
        ({"name": "leaky_relu", "slope": 0.0}, "0 < slope <= 1"),
        ({"name": "leaky_relu", "slope": np.nan}, "0 < slope <= 1"),
        ({"name": "elu", "scale": 2.0}, "0 < scale <= 1"),
        ({"name": "soft_threshold", "threshold": -1.0}, "threshold >= 0"),
        ({"name": "leaky_relu", "slope": "0.1"}, "does not take the parameters"),
        (None, "unknown activation None"),
        (3, "unknown activation 3"),
    ],
)
def test_unknown_activations_are_explained(spec, message):
    with pytest.raises(ValueError, match=message):
        get_activation(spec)


def softmax_rows(rng, n=5, c=4, scale=3.0):
    u = rng.normal(size=(n, c)) * scale
    return u, Softmax()(rng.normal(size=(n, c)) * scale)


def test_softmax_gap_is_the_divergence(rng):
    u, v = softmax_rows(rng)
    np.testing.assert_allclose(Softmax().gap(v, u), rel_entr(v, Softmax()(u)).sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(Softmax().gap(Softmax()(u), u), 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_gap_of_one_hot_rows_is_the_cross_entropy_even_at_1e4(dtype):
    u = np.array([[1e4, -1e4, 0.0], [0.0, 1.0, 2.0]], dtype=dtype)
    v = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    found = Softmax().gap(v, u)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, [2e4, np.log(np.exp([0.0, 1.0, 2.0]).sum()) - 2], rtol=1e-6)


def test_softmax_conjugate_off_the_simplex_is_infinite():
    assert Softmax().conjugate(np.array([[0.5, 0.4], [1.5, -0.5], [0.5, 0.5]])).tolist()[:2] == [np.inf] * 2


@pytest.mark.parametrize("t", [1e-3, 0.5, 30.0])
def test_softmax_prox_against_scipy(rng, t):
    y = rng.normal(size=(4, 3)) * 2
    v = Softmax().prox(y, t)
    np.testing.assert_allclose(v.sum(axis=1), 1)
    for row, target in zip(v, y, strict=True):

        def objective(a, target=target):
            point = Softmax()(a[None])
            return float(Softmax().conjugate(point)[0] + np.sum((point[0] - target) ** 2) / (2 * t))

        best = minimize(objective, np.log(row + 1e-12), tol=1e-12, options={"maxiter": 2000})
        value = float(Softmax().conjugate(row[None])[0] + np.sum((row - target) ** 2) / (2 * t))
        assert value <= best.fun + 1e-7 * (1 + abs(value))


@pytest.mark.parametrize("t", [1e-6, 1.0, 1e6])
def test_softmax_prox_at_extreme_inputs(t):
    y = np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-1e4, -1e4, -1e4]], dtype=np.float32)
    v = Softmax().prox(y, t)
    assert v.dtype == np.float32
    np.testing.assert_allclose(v.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(v[1:], 1 / 3, atol=1e-6)
    assert (v >= 0).all()
    assert v[0, 0] >= v[0, 2] >= v[0, 1]


def test_softmax_has_no_entrywise_derivative(rng):
    with pytest.raises(ValueError, match="serves as a head only"):
        Softmax().derivative(rng.normal(size=(2, 3)))


def test_an_activation_of_ones_own_gets_the_generic_prox():
    @dataclasses.dataclass(frozen=True)
    class Cubic(Activation):
        name = "cubic"

        def __call__(self, u):
            return u**3

        def derivative(self, u):
            return 3 * u**2

    y = np.linspace(-5, 5, 11)
    v = Cubic().prox(y, 0.3)
    np.testing.assert_allclose(np.cbrt(v) * 0.3 + v, y, atol=1e-10)
