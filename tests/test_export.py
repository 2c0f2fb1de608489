import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from liftopt import AvgPool2d, Conv2d, Dense, FiniteArray, Flatten, ModelFileError, Network, get_activation
from liftopt.activations import ACTIVATIONS
from liftopt.export import export_torch, load_torch
from liftopt.layers import Normalize


def image_network(rng):
    codes = rng.integers(0, 3, size=(6, 12))
    ternary = FiniteArray.from_codes(codes, np.array([-1.0, 0, 1]), rng.uniform(0.1, 1, 6))
    return Network(
        [Conv2d(rng.normal(size=(3, 2, 3, 2)), rng.normal(size=3), get_activation("elu"), 2, 1), AvgPool2d(2),
         Flatten(), Dense(ternary, rng.normal(size=6), get_activation("hard_sigmoid")),
         Dense(rng.normal(size=(6, 4)), rng.normal(size=4), get_activation("softmax"))],
        (2, 8, 7),
        {"classes": [3, 1, 4, 2]},
    )  # fmt: skip


def outputs_of(module, X):
    with torch.inference_mode():
        return module(torch.from_numpy(X)).numpy()


def test_checkpoint_is_plain_data_that_torch_alone_can_use(rng, tmp_path):
    network, X = image_network(rng), rng.normal(size=(5, 112))
    export_torch(network, tmp_path / "m.pt")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    module = nn.Sequential(*[getattr(nn, name)(**arguments) for name, arguments in content["architecture"]])
    module.double().load_state_dict(content["state_dict"])
    np.testing.assert_allclose(outputs_of(module, X), network(X), atol=1e-12)
    assert json.loads(content["metadata"])["classes"] == [3, 1, 4, 2]


def test_checkpoint_comes_back_as_the_same_module(rng, tmp_path):
    network, X = image_network(rng), rng.normal(size=(5, 112))
    export_torch(network, tmp_path / "m.pt")
    module = load_torch(tmp_path / "m.pt")
    np.testing.assert_array_equal(outputs_of(module, X), outputs_of(network.to_torch(), X))
    np.testing.assert_allclose(Network.from_torch(module)(X), network(X), atol=1e-12)


@pytest.mark.parametrize(
    "config", [*ACTIVATIONS, {"name": "leaky_relu", "slope": 0.3}, {"name": "elu", "scale": 0.5},
               {"name": "soft_threshold", "threshold": 1.5}], ids=str,
)  # fmt: skip
def test_every_activation_comes_back(rng, tmp_path, config):
    network = Network([Dense(rng.normal(size=(3, 4)), rng.normal(size=4), get_activation(config))])
    export_torch(network, tmp_path / "m.pt")
    again, X = Network.from_torch(load_torch(tmp_path / "m.pt")), rng.normal(size=(20, 3))
    assert repr(again) == repr(network)
    np.testing.assert_array_equal(again(X), network(X))


def test_unit_rows_come_back_and_can_be_pickled(rng, tmp_path):
    network = Network([Normalize(), Dense(rng.normal(size=(4, 3)), rng.normal(size=3))], (4,))
    export_torch(network, tmp_path / "m.pt")
    X = rng.normal(size=(5, 4))
    module = pickle.loads(pickle.dumps(load_torch(tmp_path / "m.pt")))
    np.testing.assert_allclose(outputs_of(module, X), network(X), atol=1e-12)
    assert repr(Network.from_torch(module, (4,))) == repr(network)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    "content",
    [Evil(), {"format": Evil()}, {"format": "x"}, {"a": 1}, [1],
     {"format": "liftopt-torch", "architecture": [("Bilinear", {})]},
     {"format": "liftopt-torch", "architecture": [("Linear", {})]},
     {"format": "liftopt-torch", "architecture": [("ReLU", {})], "state_dict": {"0.x": torch.zeros(1)}}],
    ids=range(8),
)  # fmt: skip
def test_foreign_files_are_refused_and_execute_nothing(content, tmp_path, capsys):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ModelFileError, match=r"m\.pt is no torch checkpoint of liftopt, or damaged"):
        load_torch(tmp_path / "m.pt")
    assert capsys.readouterr().out == ""


def test_damaged_files_are_refused(rng, tmp_path):
    export_torch(image_network(rng), tmp_path / "m.pt")
    data = (tmp_path / "m.pt").read_bytes()
    for broken in (b"", data[:100], data[: len(data) // 2]):
        (tmp_path / "m.pt").write_bytes(broken)
        with pytest.raises(ModelFileError):
            load_torch(tmp_path / "m.pt")
