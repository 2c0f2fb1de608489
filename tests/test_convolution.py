"""Strip products and pooling: equal to scipy's correlation and to direct loops, adjoint, any geometry."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate

from liftopt.convolution import Correlation, pool_images, unpool_images


@st.composite
def geometries(draw):
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 2))
    smallest = max(1, height - 2 * padding), max(1, width - 2 * padding)
    return Correlation(
        draw(st.integers(smallest[0], 9)),
        draw(st.integers(smallest[1], 13)),
        draw(st.integers(1, 3)),
        (height, width),
        draw(st.sampled_from([1, 2, 6, 40])),
        draw(st.integers(1, 5)),
        padding,
    )


def example(geometry, seed, dtype=np.float64, n=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, geometry.height, geometry.width, geometry.channels))
    W = rng.normal(size=(np.prod(geometry.kernel) * geometry.channels, geometry.channels_out))
    G = rng.normal(size=(n * geometry.rows * geometry.columns, geometry.channels_out))
    return X.astype(dtype), W.astype(dtype), G.astype(dtype)


def direct(geometry, X, W):
    """Outputs by scipy, one image and one kernel at a time."""
    p, s = geometry.padding, geometry.stride
    padded = np.pad(X, ((0, 0), (p, p), (p, p), (0, 0)))
    kernels = W.reshape(*geometry.kernel, geometry.channels, -1)
    outputs = [
        [correlate(image, kernels[..., k], "valid", "direct")[::s, ::s, 0] for k in range(kernels.shape[-1])]
        for image in padded
    ]
    return np.array(outputs).transpose(0, 2, 3, 1).reshape(-1, kernels.shape[-1])


@given(geometries(), st.integers(0, 99))
def test_product_equals_scipy(geometry, seed):
    X, W, _ = example(geometry, seed)
    strips = geometry.cut(X)
    np.testing.assert_allclose(geometry.product(strips, W), direct(geometry, X, W), atol=1e-12)
    np.testing.assert_allclose(geometry.patches(strips) @ W, direct(geometry, X, W), atol=1e-12)


@given(geometries(), st.integers(0, 99))
def test_derivatives_are_adjoint_to_the_product(geometry, seed):
    X, W, G = example(geometry, seed)
    strips = geometry.cut(X)
    value = np.vdot(geometry.product(strips, W), G)
    tolerance = 1e-10 * float(np.linalg.norm(X) * np.linalg.norm(W) * np.linalg.norm(G))
    assert np.vdot(geometry.weight_gradient(strips, G), W) == pytest.approx(value, abs=tolerance)
    assert np.vdot(geometry.input_gradient(G, W), X) == pytest.approx(value, abs=tolerance)


@given(geometries(), st.integers(0, 99))
def test_weight_gradient_is_that_of_the_patches(geometry, seed):
    X, _, G = example(geometry, seed)
    strips = geometry.cut(X)
    expected = geometry.patches(strips).T @ G
    np.testing.assert_allclose(geometry.weight_gradient(strips, G), expected, atol=1e-11)


@given(geometries(), st.integers(0, 99))
def test_input_gradient_equals_a_loop(geometry, seed):
    _, W, G = example(geometry, seed, n=1)
    p, s, (height, width) = geometry.padding, geometry.stride, geometry.kernel
    padded = np.zeros((geometry.height + 2 * p, geometry.width + 2 * p, geometry.channels))
    for index, g in enumerate(G):
        i, j = s * (index // geometry.columns), s * (index % geometry.columns)
        padded[i : i + height, j : j + width] += (W @ g).reshape(height, width, -1)
    expected = padded[p : p + geometry.height, p : p + geometry.width]
    np.testing.assert_allclose(geometry.input_gradient(G, W)[0], expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "geometry", [Correlation(28, 28, 1, (5, 5), 6, 1, 2), Correlation(14, 14, 6, (5, 5), 16)], ids=str
)
def test_lenet(geometry, dtype):
    X, W, G = example(geometry, 0, dtype, n=2)
    strips = geometry.cut(X)
    assert geometry.tile in (2, 4)
    atol = 200 * np.finfo(dtype).eps
    for found, exact in [
        (geometry.product(strips, W), direct(geometry, X, W)),
        (geometry.weight_gradient(strips, G), geometry.patches(strips).T @ G),
    ]:
        assert found.dtype == dtype
        np.testing.assert_allclose(found, exact, rtol=1e3 * atol, atol=atol)
    assert geometry.input_gradient(G, W).dtype == dtype


def test_memory_layout_of_the_images_does_not_matter(rng):
    geometry = Correlation(9, 8, 3, (3, 2), 4, 2, 1)
    X, _, _ = example(geometry, 0)
    first = np.ascontiguousarray(X.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(geometry.cut(first), geometry.cut(X))


def test_kernels_of_one_entry_are_not_tiled():
    assert Correlation(12, 12, 3, (1, 1), 2).tile == 1


@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.integers(0, 99))
def test_pooling_takes_means_and_unpooling_is_its_adjoint(size, down, across, channels_first, seed):
    rng = np.random.default_rng(seed)
    V = rng.normal(size=(2, size + down, 2 * size + across, 3))
    if channels_first:
        V = np.ascontiguousarray(V.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    pooled = pool_images(V, size)
    G = rng.normal(size=pooled.shape)
    for i, j in np.ndindex(pooled.shape[1:3]):
        window = V[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
        np.testing.assert_allclose(pooled[:, i, j], window.mean(axis=(1, 2)), atol=1e-14)
    assert np.vdot(unpool_images(G, size, V.shape), V) == pytest.approx(np.vdot(pooled, G), abs=1e-10)
