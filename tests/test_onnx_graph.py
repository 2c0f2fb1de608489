import json
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftopt import AvgPool2d, Conv2d, Dense, FiniteArray, Flatten, Network, __version__, get_activation
from liftopt.activations import ACTIVATIONS, Activation
from liftopt.layers import Normalize
from liftopt.packing import Packing


def session_of(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_onnx(network, X, folder):
    path = folder / "network.onnx"
    network.to_onnx(path)
    batch = np.asarray(X, dtype=np.float32).reshape(-1, *network.input_shape)
    (out,) = session_of(path).run(None, {"input": batch})
    return out


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def packed(rng: Any, shape: Any, values: Any, packing: Packing = "bits", *, input_scale: bool = False) -> Any:
    codes = rng.integers(0, len(values), size=shape)
    scale = rng.uniform(0.1, 1, size=shape[0]).astype(np.float32)
    factors = rng.uniform(0.5, 2, size=shape[1]).astype(np.float32) if input_scale else None
    return FiniteArray.from_codes(codes, np.array(values), scale, factors, packing=packing)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_activation(rng, tmp_path, activation, dtype):
    head = Dense(normal(rng, 5, 6).astype(dtype), normal(rng, 6).astype(dtype), get_activation(activation))
    network, X = Network([head]), 2 * normal(rng, 40, 5)
    np.testing.assert_allclose(run_onnx(network, X, tmp_path), network(X), atol=1e-5)


@pytest.mark.parametrize("config", [{"name": "leaky_relu", "slope": 0.3}, {"name": "elu", "scale": 0.5},
                                    {"name": "soft_threshold", "threshold": 1.5}], ids=str)  # fmt: skip
def test_parameters_of_activations(rng, tmp_path, config):
    network = Network([Dense(normal(rng, 3, 4), normal(rng, 4), get_activation(config))])
    X = 2 * normal(rng, 40, 3)
    np.testing.assert_allclose(run_onnx(network, X, tmp_path), network(X), atol=1e-5)


@given(stride=st.integers(1, 3), padding=st.integers(0, 2), height=st.integers(1, 4), pool=st.integers(1, 2),
       seed=st.integers(0, 99))  # fmt: skip
def test_convolution_pooling_and_flattening(tmp_path_factory, stride, padding, height, pool, seed):
    rng = np.random.default_rng(seed)
    conv = Conv2d(
        normal(rng, 3, 2, height, 2), normal(rng, 3), get_activation("tanh"), stride=stride, padding=padding
    )
    layers: list[Any] = [conv, AvgPool2d(pool), Flatten()]
    shape = (2, 9, 7)
    width = Network(layers, shape).output_shape[0]
    network = Network(
        [*layers, Dense(normal(rng, width, 4), normal(rng, 4), get_activation("softmax"))], shape
    )
    X = normal(rng, 6, *shape)
    np.testing.assert_allclose(run_onnx(network, X, tmp_path_factory.mktemp("o")), network(X), atol=1e-5)


def test_unit_rows_and_zero_rows(rng, tmp_path):
    network = Network([Normalize(), Dense(normal(rng, 4, 3), normal(rng, 3))], (4,))
    X = normal(rng, 5, 4)
    X[2] = 0
    np.testing.assert_allclose(run_onnx(network, X, tmp_path), network(X), atol=1e-6)
    only = Network([Flatten()], (2, 3))
    np.testing.assert_array_equal(run_onnx(only, normal(rng, 5, 6), tmp_path).shape, (5, 6))


SETS = {"binary": (-1, 1), "ternary": (-1, 0, 1), "5": range(-2, 3), "20": range(20), "200": range(-100, 100)}


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
@pytest.mark.parametrize("packing", ["bits", "digits"])
def test_packed_layers(rng, tmp_path, values, packing):
    conv = Conv2d(packed(rng, (3, 1, 3, 3), values, packing), normal(rng, 3), get_activation("relu"))
    dense = Dense(packed(rng, (7, 48), values, packing), normal(rng, 7))
    network, X = Network([conv, Flatten(), dense], (1, 6, 6)), normal(rng, 5, 36) / 10
    expected = network(X)
    np.testing.assert_allclose(
        run_onnx(network, X, tmp_path), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


def test_packed_layer_with_input_scale(rng, tmp_path):
    network = Network([Dense(packed(rng, (5, 9), (-1, 0, 1), "digits", input_scale=True), normal(rng, 5))])
    X = normal(rng, 20, 9)
    np.testing.assert_allclose(run_onnx(network, X, tmp_path), network(X), atol=1e-5)


@pytest.mark.parametrize(("packing", "bits"), [("bits", 2.0), ("digits", 1.6)])
def test_packed_weights_stay_small_in_the_file(rng, tmp_path, packing, bits):
    layers = [
        Dense(packed(rng, (300, 784), (-1, 0, 1), packing), normal(rng, 300), get_activation("relu")),
        Dense(packed(rng, (10, 300), (-1, 0, 1), packing), normal(rng, 10), get_activation("softmax")),
    ]
    network = Network(layers)
    network.to_onnx(tmp_path / "ternary.onnx")
    Network([Dense(layer.weight, layer.bias, layer.activation) for layer in layers]).to_onnx(
        tmp_path / "float.onnx"
    )
    small, large = ((tmp_path / name).stat().st_size for name in ("ternary.onnx", "float.onnx"))
    assert small < network.n_parameters * bits / 8 + 8000
    assert small < large / (14 if packing == "bits" else 17)


def test_batch_is_free_and_metadata_stand_in_the_file(rng, tmp_path):
    facts = {"classes": ["é", "b"], "columns": None, "task": "classification"}
    network = Network([Dense(normal(rng, 3, 2), normal(rng, 2), get_activation("softmax"))], metadata=facts)
    network.to_onnx(tmp_path / "m.onnx")
    session = session_of(tmp_path / "m.onnx")
    for n in (1, 7):
        assert session.run(["output"], {"input": normal(rng, n, 3)})[0].shape == (n, 2)
    found = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert found == facts | {"liftopt": __version__}
    model = onnx.load(tmp_path / "m.onnx")
    assert (model.producer_name, model.producer_version) == ("liftopt", __version__)


def test_what_onnx_cannot_hold_is_refused(rng, tmp_path, monkeypatch):
    class Cubic(Activation):
        name = "cubic"

        def __str__(self):
            return self.name

    path = tmp_path / "m.onnx"
    with pytest.raises(ValueError, match="activation cubic has no counterpart in ONNX"):
        Network([Dense(np.eye(2), np.zeros(2), Cubic())]).to_onnx(path)
    with pytest.raises(ValueError, match="exceeds its range"):
        Network([Dense(1e300 * np.eye(2), np.zeros(2))]).to_onnx(path)
    monkeypatch.setattr("liftopt.onnx_graph._BYTES_AT_MOST", 10)
    with pytest.raises(ValueError, match="2 GiB"):
        Network([Dense(np.eye(2), np.zeros(2))]).to_onnx(path)
    assert not path.exists()


def test_missing_onnx_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'liftopt\[onnx\]'"):
        Network([Dense(np.eye(2), np.zeros(2))]).to_onnx(tmp_path / "m.onnx")
