import sys

import numpy as np
import pytest
import torch
from torch import nn

from liftopt import AvgPool2d, Conv2d, Dense, Flatten, Network, get_activation
from liftopt.activations import ACTIVATIONS, Activation

HIDDEN = [name for name in ACTIVATIONS if name != "softmax"]


def image_network(rng, activation, dtype):
    normal = lambda *shape: rng.normal(size=shape).astype(dtype) * 0.5  # noqa: E731
    phi = get_activation(activation)
    return Network(
        [Conv2d(normal(3, 2, 3, 2), normal(3), phi, stride=2, padding=1), AvgPool2d(2), Flatten(),
         Dense(normal(12, 6), normal(6), phi), Dense(normal(6, 4), normal(4), get_activation("softmax"))],
        (2, 8, 7),
    )  # fmt: skip


@pytest.mark.parametrize("activation", HIDDEN)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_both_directions_are_equal(rng, activation, dtype, tolerance):
    network = image_network(rng, activation, dtype)
    X = rng.normal(size=(9, 2 * 8 * 7)).astype(dtype)
    module = network.to_torch()
    with torch.inference_mode():
        out = module(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(out, network(X), atol=tolerance)
    again = Network.from_torch(module)
    assert again.input_shape == network.input_shape
    assert repr(again) == repr(network)
    np.testing.assert_array_equal(again(X), network(X))


def test_copies_share_no_memory(rng):
    network = Network([Dense(np.eye(2), np.zeros(2))])
    module = network.to_torch()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    np.testing.assert_array_equal(network([[1.0, 2.0]]), [[1.0, 2.0]])
    again = Network.from_torch(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    np.testing.assert_array_equal(again([[0.0, 0.0]]), [[1.0, 1.0]])


def test_torch_modules_of_users_become_networks(rng):
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 5), nn.Identity(), nn.LeakyReLU(0.2),
        nn.Linear(5, 2), nn.Softmax(dim=-1),
    ).eval()  # fmt: skip
    network = Network.from_torch(module, (1, 8, 8))
    X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(network(X.numpy()), module(X).detach().numpy(), atol=1e-5)
    single = nn.Linear(3, 2)
    assert Network.from_torch(single).n_parameters == 8  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "part",
    [
        nn.BatchNorm1d(3), nn.GELU(), nn.LSTM(3, 3), nn.Softmax(dim=0), nn.Hardtanh(-1, 1), nn.Softplus(),
        nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 2, 3, dilation=2), nn.Conv2d(2, 2, 3, stride=(1, 2)),
        nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.AvgPool2d(2, stride=1), nn.AvgPool2d(2, padding=1), nn.AvgPool2d((1, 2)),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3), nn.MaxPool2d(2), nn.Flatten(0), nn.Unflatten(1, (1, 3)),
    ],
    ids=repr,
)  # fmt: skip
def test_modules_without_counterpart_are_named(part):
    with pytest.raises(ValueError, match=r"torch module .* (has no counterpart|is not the same in both)"):
        Network.from_torch(nn.Sequential(nn.Linear(3, 3), part))


def test_activation_without_a_layer_is_refused():
    with pytest.raises(ValueError, match="ReLU"):
        Network.from_torch(nn.Sequential(nn.ReLU(), nn.Linear(3, 3)))


def test_activation_of_ones_own_has_no_torch_module():
    class Cubic(Activation):
        name = "cubic"

        def __str__(self):
            return self.name

    with pytest.raises(ValueError, match="activation cubic has no counterpart in torch"):
        Network([Dense(np.eye(2), np.zeros(2), Cubic())]).to_torch()


def test_missing_torch_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'liftopt\[torch\]'"):
        Network([Dense(np.eye(2), np.zeros(2))]).to_torch()
