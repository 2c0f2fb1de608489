import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from liftopt import AvgPool2d, Conv2d, Dense, Flatten, ModelFileError, Network, get_activation
from liftopt.activations import ACTIVATIONS, Activation
from liftopt.layers import Layer
from liftopt.network import _digest, dense_network, write_atomically

HIDDEN = sorted(set(ACTIVATIONS) - {"softmax"})


def small_network(seed=0, dtype=np.float64, activation="relu"):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=shape).astype(dtype) for shape in ((4, 5), (5, 3))]
    return dense_network(
        weights, [np.zeros(5, dtype), np.ones(3, dtype)], activation, "softmax", {"classes": [0, 1]}
    )


def image_network(seed=0):
    rng = np.random.default_rng(seed)
    relu, tanh, softmax = (get_activation(name) for name in ("relu", "tanh", "softmax"))
    layers: list[Layer] = [
        Conv2d(rng.normal(size=(4, 1, 3, 3)), np.zeros(4), relu, padding=1),
        AvgPool2d(2),
        Conv2d(rng.normal(size=(2, 4, 2, 2)), np.zeros(2), tanh, stride=2),
        Flatten(),
        Dense(rng.normal(size=(8, 3)), np.zeros(3), softmax),
    ]
    return Network(layers, (1, 8, 8))


@st.composite
def networks(draw):
    """Random architectures of every layer and activation, in either dtype."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    activation = lambda: get_activation(draw(st.sampled_from(HIDDEN)))  # noqa: E731
    normal = lambda *shape: np.asarray(rng.normal(size=shape), dtype=dtype)  # noqa: E731
    layers: list[Layer] = []
    shape: tuple[int, ...] = (draw(st.integers(1, 3)), draw(st.integers(3, 6)), draw(st.integers(3, 6)))
    if draw(st.booleans()):
        first = shape
        for _ in range(draw(st.integers(0, 2))):
            channels = draw(st.integers(1, 3))
            layers.append(
                Conv2d(
                    normal(channels, shape[0], 2, 1),
                    normal(channels),
                    activation(),
                    padding=draw(st.integers(0, 1)),
                )
            )
            shape = layers[-1].output_shape(shape)
        layers += [AvgPool2d(draw(st.integers(1, min(2, *shape[1:])))), Flatten()]
        shape = layers[-1].output_shape(layers[-2].output_shape(shape))
    else:
        first = shape = (draw(st.integers(1, 5)),)
    for width in draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)):
        layers.append(Dense(normal(shape[0], width), normal(width), activation()))
        shape = (width,)
    if draw(st.booleans()):
        layers[-1] = Dense(**layers[-1].arrays(), activation=get_activation("softmax"))
    return Network(layers, first, {"note": draw(st.text(max_size=5)), "list": [1, None, 2.5]})


@settings(max_examples=60, deadline=None)
@given(network=networks())
def test_save_and_load_round_trip(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("round") / "net.safetensors"
    network.save(path)
    again = Network.load(path)
    X = np.random.default_rng(0).normal(size=(3, *network.input_shape)).astype(network.dtype)
    np.testing.assert_array_equal(again(X), network(X))
    assert again.metadata == network.metadata
    assert again.input_shape == network.input_shape
    assert (again.dtype, again.nbytes, repr(again)) == (network.dtype, network.nbytes, repr(network))


@settings(max_examples=30, deadline=None)
@given(network=networks(), size=st.integers(1, 200))
def test_chunked_forward_pass_equals_the_whole(network, size):
    X = np.random.default_rng(1).normal(size=(7, *network.input_shape)).astype(network.dtype)
    whole = network(X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("liftopt.network._CHUNK_BYTES", size * network.dtype.itemsize)
        np.testing.assert_allclose(network(X), whole, atol=1e-5 if network.dtype == np.float32 else 1e-12)


def test_forward_pass_scores_and_hidden(rng):
    network = small_network()
    X = rng.normal(size=(6, 4))
    A = np.maximum(X @ network.layers[0].weight, 0)
    scores = A @ network.layers[1].weight + 1
    np.testing.assert_allclose(network.scores(X), scores)
    np.testing.assert_allclose(network(X), np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(network.hidden(X)[0], A)
    assert network(X[:0]).shape == (0, 3)
    assert small_network(dtype=np.float32)(X).dtype == np.float32


def test_flat_rows_and_images_are_the_same_samples(rng):
    network = image_network()
    X = rng.normal(size=(5, 1, 8, 8))
    np.testing.assert_array_equal(network(X), network(X.reshape(5, -1)))


def test_sizes_and_repr():
    network = small_network(dtype=np.float32)
    assert network.n_parameters == 4 * 5 + 5 + 5 * 3 + 3
    assert network.nbytes == 4 * network.n_parameters
    assert repr(network).splitlines() == [
        "Network 4 (43 parameters, 172 bytes, float32)", "  Dense 4 -> 5, relu", "  Dense 5 -> 3, softmax",
    ]  # fmt: skip
    assert network.astype(np.float64).nbytes == 2 * network.nbytes


def test_pickle_round_trip(rng):
    network = image_network()
    X = rng.normal(size=(2, 64))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(network))(X), network(X))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network([]), "at least one layer"),
        (lambda: Network([Flatten(), Dense(np.eye(4), np.zeros(4))]), "input_shape is required"),
        (
            lambda: Network([Dense(np.eye(2), np.zeros(2)), Dense(np.eye(3), np.zeros(3))]),
            "fan_in 3 cannot follow",
        ),
        (lambda: Network([AvgPool2d(2)], (1, 4, 4)), "last layer must give rows"),
        (lambda: Network([Dense(np.eye(2), np.zeros(2))], (3,)), "cannot follow samples of shape"),
        (
            lambda: small_network()(np.zeros((2, 5))),
            r"X of shape \(2, 5\) does not hold samples of shape \(4,\)",
        ),
        (lambda: small_network()(np.zeros(4)), r"X of shape \(4,\) does not hold"),
        (lambda: image_network()(np.zeros((2, 8, 8))), r"X of shape \(2, 8, 8\) does not hold"),
    ],
)
def test_misfits_are_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def saved(tmp_path, network=None):
    path = tmp_path / "net.safetensors"
    (network or small_network()).save(path)
    return path, path.read_bytes()


def test_every_truncation_is_refused(tmp_path):
    path, data = saved(tmp_path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match=r"truncated|damaged|checksum"):
            Network.load(path)


def test_every_changed_byte_is_refused(tmp_path):
    path, data = saved(tmp_path, dense_network([np.ones((2, 1))], [np.zeros(1)]))
    expected = Network.load(path)([[1.0, 2.0]])
    accepted = 0
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(bytes(changed))
        try:
            found = Network.load(path)([[1.0, 2.0]])
        except ModelFileError:
            continue
        accepted += 1  # padding blanks of the header carry no meaning
        np.testing.assert_array_equal(found, expected)
    assert accepted < 10


def test_appended_bytes_are_refused(tmp_path):
    path, data = saved(tmp_path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ModelFileError):
        Network.load(path)


def with_header(data, change):
    """The file with its JSON header changed."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(format="other"), "not a liftopt network"),
        (lambda h: h.pop("__metadata__"), "not a liftopt network"),
        (lambda h: h["__metadata__"].update(version="2"), "format version 2, newer than 1: upgrade liftopt"),
        (lambda h: h["__metadata__"].update(version="x"), "format version x"),
        (lambda h: h["__metadata__"].update(version="²"), "format version"),
        (lambda h: h["__metadata__"].update(version=1), "no safetensors file"),
        (lambda h: h.update(__metadata__=[1]), "no safetensors file"),
        (lambda h: h["__metadata__"].update(network="{}"), "checksum"),
        (lambda h: h["__metadata__"].update(sha256=""), "checksum"),
        (lambda h: h["__metadata__"].pop("network"), "checksum"),
        (lambda h: h["0.bias"].update(shape=[4]), "damaged"),
        (lambda h: h["0.bias"].update(dtype="F16"), "damaged"),
        (lambda h: h.pop("0.bias"), "damaged"),
    ],
)
def test_tampered_headers_are_refused(tmp_path, change, message):
    path, data = saved(tmp_path)
    path.write_bytes(with_header(data, change))
    with pytest.raises(ModelFileError, match=message):
        Network.load(path)


def forged(data, description):
    """A file with a valid checksum over any description."""
    tensors = load_tensors(data)
    text = description if isinstance(description, str) else json.dumps(description)
    marks = {"format": "liftopt-network", "version": "1", "network": text, "sha256": _digest(tensors, text)}
    return save_tensors(tensors, metadata=marks)


RELU = {"name": "relu"}


@pytest.mark.parametrize(
    "description",
    [
        "", "[", "[" * 100000, "null", "[]", {}, {"layers": []},
        {"layers": [], "input_shape": [4], "metadata": {}},
        {"layers": ["dense"], "input_shape": [4], "metadata": {}},
        {"layers": [{"kind": "lstm"}], "input_shape": [4], "metadata": {}},
        {"layers": [{"kind": ["dense"]}], "input_shape": [4], "metadata": {}},
        {"layers": [{"kind": "dense", "activation": {"name": "exec"}}], "input_shape": [4], "metadata": {}},
        {"layers": [{"kind": "dense", "activation": {"name": []}}], "input_shape": [4], "metadata": {}},
        {"layers": [{"kind": "dense", "activation": RELU}], "input_shape": [9], "metadata": {}},
        {"layers": [{"kind": "dense", "activation": RELU}], "input_shape": None, "metadata": 3},
        {"layers": [{"kind": "dense", "activation": RELU}] * 3, "input_shape": [4], "metadata": {}},
        {"layers": [{"kind": "avg_pool2d", "size": "big"}], "input_shape": [1, 4, 4], "metadata": {}},
        {"layers": [{"kind": "conv2d", "activation": RELU, "stride": 1, "padding": 0}],
         "input_shape": [1, 4, 4], "metadata": {}},
    ],
)  # fmt: skip
def test_forged_descriptions_cannot_be_built(tmp_path, description):
    path, data = saved(tmp_path)
    path.write_bytes(forged(data, description))
    with pytest.raises(ModelFileError, match="cannot be built"):
        Network.load(path)


def test_non_finite_weights_in_a_file_are_refused(tmp_path):
    path, data = saved(tmp_path)
    tensors = load_tensors(data)
    tensors["0.weight"] = np.full_like(tensors["0.weight"], np.nan)
    size = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + size])["__metadata__"]["network"]
    path.write_bytes(forged(save_tensors(tensors), text))
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        Network.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04K\x01.", b"PK\x03\x04" + b"\0" * 50, b"hello " * 50, b"\xff" * 64]
)
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ModelFileError, match="truncated or no safetensors file"):
        Network.load(tmp_path / "a")
    (tmp_path / "b").write_bytes(save_tensors({"weight": np.zeros(3)}))
    with pytest.raises(ModelFileError, match="not a liftopt network"):
        Network.load(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        Network.load(tmp_path / "absent")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path, data = saved(tmp_path)

    def full(*args):
        raise OSError("disk full")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, full)
            with pytest.raises(OSError, match="disk full"):
                small_network(seed=1).save(path)
        assert path.read_bytes() == data
        assert os.listdir(tmp_path) == [path.name]


def test_write_atomically_replaces_whole_files(tmp_path):
    path = tmp_path / "a"
    for content in (b"long old content", b"new"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a"]


def test_a_network_that_could_not_be_read_again_is_not_saved(tmp_path):
    class Cubic(Activation):
        name = "cubic"

        def config(self):
            return {"name": self.name}

    network = Network([Dense(np.eye(2), np.zeros(2), Cubic())])
    with pytest.raises(ValueError, match="unknown activation"):
        network.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(TypeError, match="JSON"):
        Network([Dense(np.eye(2), np.zeros(2))], metadata={"a": object()}).save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
