import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from liftopt import AvgPool2d, Conv2d, Dense, Flatten, Network
from liftopt.input_map import InputMap, fit_input_map, fold, make_input_map, standardise, unfold
from liftopt.network import dense_network


def random_network(rng, d, dtype=np.float64):
    sizes = [(d, 5), (5, 3)]
    weights = [rng.normal(size=s).astype(dtype) for s in sizes]
    biases = [rng.normal(size=s[1]).astype(dtype) for s in sizes]
    return dense_network(weights, biases, "tanh", "softmax")


def test_standardise_equals_scikit_learn(rng):
    X = rng.normal(size=(200, 6)) * 10.0 ** rng.integers(-8, 9, 6) + 10.0 ** rng.integers(-8, 9, 6)
    w = rng.integers(0, 4, 200).astype(float)
    expected = StandardScaler().fit(X, sample_weight=w).transform(X)
    np.testing.assert_allclose(standardise(X, w).transform(X), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_map_does_not_depend_on_units(rng, unit):
    X = rng.normal(size=(100, 5)) @ rng.normal(size=(5, 5))
    units = unit ** np.linspace(-1, 1, 5)
    np.testing.assert_allclose(
        fit_input_map(X * units).transform(X * units), fit_input_map(X).transform(X), rtol=1e-6, atol=1e-8
    )


def test_components_are_uncorrelated_with_the_documented_variances(rng):
    X = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 3
    scale = np.sqrt(X.std(axis=0) * np.ptp(X, axis=0))
    w = np.linalg.eigvalsh(np.cov(X / scale, rowvar=False, bias=True))[::-1][:4]
    Z = fit_input_map(X, n_components=4, damping=2.0, exponent=0.4).transform(X)
    expected = w * (w + 2.0 * w.mean()) ** -0.8
    np.testing.assert_allclose(
        np.cov(Z, rowvar=False, bias=True), np.diag(expected / expected.mean()), atol=1e-10
    )
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-12)


def test_full_whitening_without_damping(rng):
    X = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    Z = fit_input_map(X, damping=0.0, exponent=0.5).transform(X)
    np.testing.assert_allclose(np.cov(Z, rowvar=False, bias=True), np.eye(5), atol=1e-10)


def test_explained_share_equals_scikit_learn_pca(rng):
    X = rng.normal(size=(300, 8)) * np.linspace(1, 4, 8)
    scaled = X / np.sqrt(X.std(axis=0) * np.ptp(X, axis=0))
    for share in (0.3, 0.7, 0.99):
        wanted = PCA(n_components=share).fit(scaled).n_components_
        assert fit_input_map(X, n_components=share).n_components == wanted
    assert fit_input_map(X, n_components=1.0).n_components == 8


def test_rows_fewer_than_features_agree_with_the_feature_space(rng):
    X = rng.normal(size=(12, 30))
    tall = np.vstack([X, X, X])  # the same distribution, solved in feature space
    small, large = fit_input_map(X), fit_input_map(tall)
    assert small.n_components == large.n_components == 11
    np.testing.assert_allclose(small.transform(X), large.transform(X), atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), d=st.integers(1, 12), exact=st.booleans())
def test_degenerate_data_give_finite_maps(seed, n, d, exact):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float64 if exact else np.float32)
    X[:, rng.integers(0, d, d // 2)] = 7.0  # constant
    X[:, rng.integers(d)] = X[:, rng.integers(d)]  # duplicate
    X = X * (10.0 ** rng.uniform(-8, 8, d)).astype(X.dtype)
    for found in (fit_input_map(X), standardise(X), fit_input_map(X, n_components=3, damping=0.0)):
        Z = found.transform(X)
        assert Z.dtype == X.dtype
        assert np.isfinite(Z).all()
        assert Z.shape == (n, found.n_components)


def test_constant_features_map_to_zero():
    X = np.full((20, 3), 0.1, dtype=np.float32)
    for found in (fit_input_map(X), standardise(X)):
        assert not found.matrix.any()
        assert not found.transform(X).any()
    assert fit_input_map(X).n_components == 1


def test_rounding_noise_counts_as_constant():
    X = np.stack([np.full(50, 1e8, np.float32), np.arange(50, dtype=np.float32)], axis=1)
    X[0, 0] = np.nextafter(X[0, 0], np.float32(0))
    assert standardise(X).factor[0] == 0.0


def test_weights_are_repetitions(rng):
    X = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    w = rng.integers(0, 4, 60)
    repeated = rng.permutation(np.repeat(X, w, axis=0))
    for fit in (lambda X, w=None: fit_input_map(X, n_components=3, sample_weight=w), standardise):
        np.testing.assert_allclose(
            fit(X, w.astype(float)).transform(X), fit(repeated).transform(X), atol=1e-9
        )


def test_subsample_is_reproducible_and_close(rng):
    X = (rng.normal(size=(5000, 4)) @ rng.normal(size=(4, 4))).astype(np.float32)
    one = fit_input_map(X, max_rows=2000, random_state=3)
    np.testing.assert_array_equal(one.factor, fit_input_map(X, max_rows=2000, random_state=3).factor)
    whole = fit_input_map(X, max_rows=5000)
    agreement = stats.pearsonr(one.transform(X)[:, 0], whole.transform(X)[:, 0]).statistic
    assert agreement > 0.99


def test_large_offset_keeps_precision(rng):
    small = rng.normal(size=(500, 4))
    X = (small + 1e4).astype(np.float32)
    Z = fit_input_map(X).transform(X)
    reference = fit_input_map(X.astype(np.float64)).transform(X.astype(np.float64))
    np.testing.assert_allclose(Z, reference, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["standardise", "pca"])
def test_fold_equals_mapped_network(rng, dtype, tolerance, kind):
    X = (rng.normal(size=(50, 7)) * 3 + 1).astype(dtype)
    input_map = standardise(X) if kind == "standardise" else fit_input_map(X, n_components=4)
    network = random_network(rng, input_map.n_components, dtype)
    folded = fold(network, input_map)
    assert folded.dtype == dtype
    np.testing.assert_allclose(folded.scores(X), network.scores(input_map.transform(X)), atol=tolerance)
    again = unfold(folded, input_map).layers[0].arrays()["weight"]
    np.testing.assert_allclose(again, network.layers[0].arrays()["weight"], atol=10 * tolerance)


def test_unfold_is_exact_for_an_invertible_map_with_constant_feature(rng):
    X = rng.normal(size=(50, 5)) * 10.0 ** np.arange(-4, 1)
    X[:, 2] = 4.0
    network = random_network(rng, 5)
    for input_map in (standardise(X), fit_input_map(X)):
        inner = unfold(network, input_map)
        np.testing.assert_allclose(inner.scores(input_map.transform(X)), network.scores(X), atol=1e-10)


def test_fold_needs_a_dense_layer():
    network = Network([AvgPool2d(2), Flatten(), Dense(np.eye(4), np.zeros(4))], (1, 4, 4))
    with pytest.raises(ValueError, match="Dense layer only"):
        fold(network, InputMap(np.zeros(16), np.ones(16)))


@pytest.mark.parametrize(
    "bad",
    [{"n_components": 0}, {"n_components": 1.5}, {"damping": -1}, {"exponent": 0.6}, {"max_rows": 0},
     {"damping": np.nan}, {"n_components": True}, {"n_components": -0.1}],
)  # fmt: skip
def test_bad_parameters_are_named(rng, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        fit_input_map(rng.normal(size=(10, 3)), **bad)


def test_named_maps_are_those_of_the_functions(rng):
    X = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5))
    weight = rng.random(80)
    expected = {
        "standardise": standardise(X, weight),
        "pca": fit_input_map(X, sample_weight=weight),
        "few": fit_input_map(X, sample_weight=weight, n_components=2),
    }
    for name, wanted in expected.items():
        found = make_input_map({"n_components": 2} if name == "few" else name, X, weight)
        assert found is not None
        np.testing.assert_array_equal(found.factor, wanted.factor)
    assert make_input_map(None, X) is None
    wide = make_input_map("pca", rng.normal(size=(600, 300)))
    assert wide is not None
    assert wide.n_components < 300
    np.testing.assert_array_equal(InputMap.identity(5).transform(X), X)
    with pytest.raises(ValueError, match="input_map must be 'standardise', 'pca'"):
        make_input_map("zca", X)


def channel_map(mean, factor, pixels):
    return InputMap(np.repeat(mean, pixels), np.repeat(factor, pixels))


@given(stride=st.integers(1, 2), padding=st.integers(0, 1), seed=st.integers(0, 99))
def test_map_of_channels_folds_into_a_convolution(stride, padding, seed):
    rng = np.random.default_rng(seed)
    mean = np.zeros(2) if padding else rng.normal(size=2)
    channels = channel_map(mean, rng.uniform(0.5, 2, 2), 30)
    conv = Conv2d(rng.normal(size=(3, 2, 3, 2)), rng.normal(size=3), stride=stride, padding=padding)
    network = Network([conv, Flatten()], (2, 6, 5))
    X = rng.normal(size=(4, 60))
    np.testing.assert_allclose(fold(network, channels)(X), network(channels.transform(X)), atol=1e-12)


def test_maps_that_do_not_fold_into_a_convolution_are_refused(rng):
    def network(padding):
        return Network(
            [Conv2d(rng.normal(size=(3, 2, 2, 2)), np.zeros(3), padding=padding), Flatten()], (2, 6, 5)
        )

    with pytest.raises(ValueError, match="its zeros would be shifted too"):
        fold(network(1), channel_map(np.ones(2), np.ones(2), 30))
    for bad in (InputMap(rng.normal(size=60), np.ones(60)), InputMap(np.zeros(60), rng.random(60)),
                InputMap(np.zeros(60), np.eye(60))):  # fmt: skip
        with pytest.raises(ValueError, match="one factor and one mean a channel"):
            fold(network(0), bad)


def whitening(spec, X, **settings):
    found = make_input_map(spec, X, **settings)
    assert found is not None
    return found


def test_a_start_keeps_its_first_layer(rng):
    X = rng.normal(size=(400, 12)) * np.geomspace(10, 0.1, 12)
    few = {"n_components": 3}
    assert whitening(few, X).n_components == 3
    inside = fold(random_network(rng, 3), whitening(few, X))
    kept = whitening(few, X, start=inside)
    assert kept.n_components == 3
    np.testing.assert_allclose(unfold(inside, kept)(kept.transform(X)), inside(X), atol=1e-8)
    outside = random_network(rng, 12)
    whole = whitening(few, X, start=outside)
    assert whole.n_components == 12
    np.testing.assert_allclose(unfold(outside, whole)(whole.transform(X)), outside(X), atol=1e-8)
