import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftopt import Conv2d, Dense, FiniteArray, ModelFileError, Network
from liftopt.packing import code_layout, pack_codes, unpack_codes

TERNARY = np.array([-1.0, 0.0, 1.0], dtype=np.float32)


def array(rng, units=5, shape=(11,), values=TERNARY, packing="bits", **more):
    codes = rng.integers(0, values.size, (units, *shape))
    return codes, FiniteArray.from_codes(
        codes, values, rng.random(units).astype(np.float32), packing=packing, **more
    )


@settings(deadline=None)
@given(
    st.integers(2, 256), st.integers(1, 23), st.sampled_from(["bits", "digits"]), st.integers(0, 2**32 - 1)
)
def test_round_trip(m, fan_in, packing, seed):
    codes = np.random.default_rng(seed).integers(0, m, (3, fan_in))
    packed = pack_codes(codes, m, packing)
    np.testing.assert_array_equal(unpack_codes(packed, m, fan_in, packing), codes)
    assert packed.shape[1] == -(-fan_in // code_layout(m, packing)[1])


@pytest.mark.parametrize(
    ("m", "packing", "per_byte"),
    [(3, "bits", 4), (3, "digits", 5), (2, "digits", 8), (5, "digits", 3), (16, "bits", 2), (17, "bits", 1)],
)
def test_density(m, packing, per_byte):
    assert code_layout(m, packing)[1] == per_byte


@pytest.mark.parametrize("packing", ["bits", "digits"])
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_multiplication_equals_the_numbers(rng, packing, rows):
    codes, stored = array(rng, packing=packing, input_scale=rng.random(11).astype(np.float32))
    numbers = TERNARY[codes] * stored.scale[:, None] * stored.input_scale
    np.testing.assert_allclose(stored.dense(), numbers, rtol=1e-6)
    X = rng.normal(size=(rows, 11)).astype(np.float32)
    np.testing.assert_allclose(stored.multiply(X), X @ numbers.T, rtol=2e-5, atol=1e-5)


def test_layers_predict_alike_packed_and_unpacked(rng, tmp_path):
    _, kernels = array(rng, units=4, shape=(2, 3, 3), packing="digits")
    _, matrix = array(rng, units=3, shape=(4 * 6 * 6,))
    from liftopt import Flatten, get_activation

    bias = [rng.normal(size=k).astype(np.float32) for k in (4, 3)]
    relu = get_activation("relu")
    packed = Network([Conv2d(kernels, bias[0], relu), Flatten(), Dense(matrix, bias[1])], (2, 8, 8))
    plain = Network(
        [Conv2d(kernels.dense(), bias[0], relu), Flatten(), Dense(matrix.dense().T.copy(), bias[1])],
        (2, 8, 8),
    )
    X = rng.normal(size=(20, 2, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(packed(X), plain(X), rtol=1e-5, atol=1e-5)
    assert packed.n_parameters == plain.n_parameters
    stored = kernels.packed.nbytes + matrix.packed.nbytes + 4 * (4 + 3 + 3 + 3) + 4 * (4 + 3)
    assert packed.nbytes == stored
    packed.save(tmp_path / "a.safetensors")
    again = Network.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(again(X), packed(X))
    assert again.nbytes == packed.nbytes
    double = packed.astype(np.float64)
    np.testing.assert_allclose(double(X), packed(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(double.layers[0].arrays()["packed"], kernels.packed)
    assert "3 values packed in digits" in repr(packed)


def test_torch_gets_numbers(rng):
    _, matrix = array(rng)
    net = Network([Dense(matrix, np.zeros(5, np.float32))])
    import torch

    X = rng.normal(size=(4, 11)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(net.to_torch()(torch.from_numpy(X)).numpy(), net(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:, :-1], "expected"),
        (lambda p: np.full_like(p, 255), "code word"),
        (lambda p: p | np.array([0, 0, 1 << 6], np.uint8), "beyond"),
    ],
)
def test_damaged_codes_are_refused(rng, change, message):
    _, stored = array(rng)
    with pytest.raises(ValueError, match=message):
        FiniteArray(change(stored.packed), stored.values, stored.scale, stored.unit_shape)


def test_forbidden_bytes_of_base_three(rng):
    _, stored = array(rng, packing="digits")
    bad = stored.packed.copy()
    bad[0, 0] = 243
    with pytest.raises(ValueError, match="forbidden byte 243"):
        FiniteArray(bad, stored.values, stored.scale, stored.unit_shape, "digits")


def test_other_bad_forms(rng):
    codes, stored = array(rng)
    with pytest.raises(ValueError, match="value set has"):
        FiniteArray.from_codes(codes + 1, TERNARY, stored.scale)
    with pytest.raises(ValueError, match="NaN"):
        FiniteArray(stored.packed, stored.values, stored.scale * np.nan, stored.unit_shape)
    with pytest.raises(ValueError, match="one floating dtype"):
        FiniteArray(stored.packed, stored.values.astype(np.float64), stored.scale, stored.unit_shape)
    with pytest.raises(ValueError, match="positive size"):
        FiniteArray(stored.packed, stored.values, stored.scale, ())
    with pytest.raises(ValueError, match="packing"):
        FiniteArray(stored.packed, stored.values, stored.scale, stored.unit_shape, "zip")  # type: ignore[arg-type]


def test_file_with_damaged_codes_is_refused(rng, tmp_path, monkeypatch):
    _, stored = array(rng)
    net = Network([Dense(stored, np.zeros(5, np.float32))])
    monkeypatch.setattr(
        FiniteArray,
        "arrays",
        lambda self: {"packed": np.full_like(self.packed, 255), "values": self.values, "scale": self.scale},
    )
    net.save(tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match="code word"):
        Network.load(tmp_path / "a.safetensors")
