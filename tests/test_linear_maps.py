"""Affine layers as products: equal to the layers, adjoint identity, exact round trip of the weights."""

import numpy as np
import pytest

from liftopt import AvgPool2d, Conv2d, Dense, Flatten, Network, get_activation
from liftopt.layers import Layer
from liftopt.linear_maps import channels_last, linear_maps, rebuild


def convolutional(rng, stride=1, padding=1):
    relu, softmax = get_activation("relu"), get_activation("softmax")
    conv = Conv2d(rng.normal(size=(3, 2, 3, 3)), rng.normal(size=3), relu, stride, padding)
    front: list[Layer] = [conv, AvgPool2d(2), Flatten()]
    features = Network(front, (2, 9, 9)).output_shape[0]
    dense = Dense(rng.normal(size=(features, 4)), rng.normal(size=4), softmax)
    return Network([*front, dense], (2, 9, 9))


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_products_equal_the_layers(rng, stride, padding):
    network = convolutional(rng, stride, padding)
    X = rng.normal(size=(5, 2, 9, 9))
    V = channels_last(X.reshape(5, -1), network.input_shape)
    for part in linear_maps(network):
        u = part.linear(part.arranged(V), part.weight, part.layer.bias)
        np.testing.assert_allclose(u, part.matrix(V) @ part.weight + part.layer.bias, atol=1e-12)
        V = part.output(part.activation(u))
    np.testing.assert_allclose(V, network(X), rtol=1e-12)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_adjoint_identity(rng, stride, padding):
    network = convolutional(rng, stride, padding)
    shape: tuple[int, ...] = (4, 9, 9, 2)
    for part in linear_maps(network):
        V, W, b = rng.normal(size=shape), part.weight, np.zeros(part.layer.bias.size)
        M = part.arranged(V)
        u = part.linear(M, W, b)
        G = rng.normal(size=u.shape)
        dV = part.adjoint(part.input_gradient(G, W), shape)
        assert np.vdot(u, G) == pytest.approx(np.vdot(V, dV), rel=1e-11)
        dW, db = part.gradient(M, G)
        np.testing.assert_allclose(dW, part.matrix(V).T @ G, atol=1e-11)
        np.testing.assert_allclose(db, G.sum(axis=0), atol=1e-11)
        shape = (4, *part.output_shape)


def test_rebuild_returns_the_network(rng):
    network = convolutional(rng)
    maps = linear_maps(network)
    same = rebuild(network, maps, [part.weight for part in maps], [part.layer.bias for part in maps])
    X = rng.normal(size=(3, 2, 9, 9))
    np.testing.assert_array_equal(same(X), network(X))


def test_network_must_end_in_a_layer_with_weights(rng):
    network = Network([Dense(np.eye(3), np.zeros(3)), Flatten()])
    with pytest.raises(ValueError, match="must end in a Dense"):
        linear_maps(network)
