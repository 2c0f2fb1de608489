import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liftopt import AvgPool2d, Conv2d, Dense, Flatten, get_activation
from liftopt.layers import LAYERS


def conv(rng, channels_out=3, channels_in=2, height=3, width=2, dtype=np.float64, **geometry):
    weight = rng.normal(size=(channels_out, channels_in, height, width)).astype(dtype)
    return Conv2d(weight, rng.normal(size=channels_out).astype(dtype), get_activation("tanh"), **geometry)


def test_dense_is_affine_then_activated(rng):
    W, b, X = rng.normal(size=(4, 3)), rng.normal(size=3), rng.normal(size=(5, 4))
    layer = Dense(W, b, get_activation("relu"))
    np.testing.assert_allclose(layer.linear(X), X @ W + b)
    np.testing.assert_allclose(layer(X), np.maximum(X @ W + b, 0))
    assert layer.output_shape((4,)) == (3,)
    assert str(layer) == "Dense 4 -> 3, relu"


@settings(max_examples=40, deadline=None)
@given(
    stride=st.integers(1, 3), padding=st.integers(0, 2), height=st.integers(1, 4), width=st.integers(1, 4),
    rows=st.integers(4, 7), columns=st.integers(4, 7), exact=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_convolution_equals_torch(stride, padding, height, width, rows, columns, exact, seed):
    rng = np.random.default_rng(seed)
    dtype = np.float64 if exact else np.float32
    layer = conv(rng, height=height, width=width, dtype=dtype, stride=stride, padding=padding)
    X = rng.normal(size=(3, 2, rows, columns)).astype(dtype)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(X), torch.from_numpy(layer.weight), torch.from_numpy(layer.bias), stride, padding
    ).numpy()
    found = layer.linear(X)
    assert found.dtype == dtype
    assert found.shape[1:] == layer.output_shape(X.shape[1:])
    np.testing.assert_allclose(found, expected, atol=1e-10 if exact else 1e-4)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_average_pooling_equals_torch(rng, size):
    X = rng.normal(size=(2, 3, 7, 6))
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(X), size).numpy()
    np.testing.assert_allclose(AvgPool2d(size)(X), expected)
    assert AvgPool2d(size).output_shape((3, 7, 6)) == expected.shape[1:]


def test_no_samples_give_no_outputs(rng):
    layer = conv(rng, padding=1)
    assert AvgPool2d(2)(layer(np.empty((0, 2, 5, 5)))).shape == (0, 3, 2, 3)


def test_flatten_equals_torch(rng):
    X = rng.normal(size=(2, 3, 4, 5))
    np.testing.assert_array_equal(Flatten()(X), torch.flatten(torch.from_numpy(X), 1).numpy())
    assert Flatten().output_shape((3, 4, 5)) == (60,)


def test_patches_are_receptive_fields_of_the_kernels(rng):
    layer = conv(rng, padding=1)
    X = rng.normal(size=(2, 2, 5, 5))
    product = layer.patches(X) @ layer.weight.reshape(3, -1).T + layer.bias
    np.testing.assert_allclose(product.transpose(0, 3, 1, 2), layer.linear(X))


def test_config_and_arrays_round_trip(rng):
    layers = [
        Dense(rng.normal(size=(2, 3)), np.zeros(3), get_activation({"name": "elu", "scale": 0.5})),
        conv(rng, stride=2, padding=1),
        AvgPool2d(3),
        Flatten(),
    ]
    for layer in layers:
        again = LAYERS[layer.kind].from_config(layer.config(), layer.arrays())
        assert again.config() == layer.config()
        assert str(again) == str(layer)
        for name, array in layer.arrays().items():
            np.testing.assert_array_equal(again.arrays()[name], array)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(np.zeros((2, 3)), np.zeros(2)), r"weight of shape \(2, 3\) with bias of shape \(2,\)"),
        (lambda: Dense(np.zeros(3), np.zeros(3)), r"weight of shape \(3,\)"),
        (lambda: Dense([[1.0]], [0.0]), "Dense needs arrays, got list and list"),  # type: ignore[arg-type]
        (lambda: Dense(np.zeros((1, 1), int), np.zeros(1, int)), "one floating dtype, got int64 and int64"),
        (
            lambda: Dense(np.zeros((1, 1)), np.zeros(1, np.float32)),
            "one floating dtype, got float64 and float32",
        ),
        (lambda: Dense(np.full((1, 1), np.nan), np.zeros(1)), "NaN or infinite"),
        (lambda: Dense(np.zeros((1, 1)), np.full(1, np.inf)), "NaN or infinite"),
        (lambda: Conv2d(np.zeros((2, 1, 3)), np.zeros(2)), r"weight of shape \(2, 1, 3\)"),
        (lambda: Conv2d(np.zeros((2, 1, 3, 3)), np.zeros(2), stride=0), "stride >= 1 and padding >= 0"),
        (lambda: Conv2d(np.zeros((2, 1, 3, 3)), np.zeros(2), padding=-1), "stride >= 1 and padding >= 0"),
        (lambda: AvgPool2d(0), "size >= 1"),
        (lambda: Dense(np.zeros((2, 3)), np.zeros(3)).output_shape((4,)), "fan_in 2 cannot follow"),
        (
            lambda: Conv2d(np.zeros((2, 1, 3, 3)), np.zeros(2)).output_shape((2, 5, 5)),
            "1 input channels cannot",
        ),
        (lambda: Conv2d(np.zeros((2, 1, 3, 3)), np.zeros(2)).output_shape((1, 2, 5)), "exceeds samples"),
        (lambda: AvgPool2d(3).output_shape((1, 2, 5)), "of size 3 cannot follow"),
    ],
)
def test_misfits_are_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()
