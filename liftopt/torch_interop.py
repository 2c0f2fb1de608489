"""Exchange of networks with torch: ``nn.Sequential`` in and out, layer by layer, equal to float rounding."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.activations import (
    ELU,
    Activation,
    HardSigmoid,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softmax,
    SoftThreshold,
    Tanh,
)
from liftopt.layers import IDENTITY, AvgPool2d, Conv2d, Dense, Flatten, Layer, Normalize, Shape
from liftopt.network import Network
from liftopt.threads import limit_new_libraries

Spec = tuple[str, dict[str, Any]]

_UNIT_ROWS = "UnitRows"  # of liftopt.torch_modules; the others are torch's own
_MODULES = frozenset({
    "Unflatten", "Flatten", "AvgPool2d", "Conv2d", "Linear", _UNIT_ROWS,
    "ReLU", "LeakyReLU", "ELU", "Sigmoid", "Tanh", "Hardtanh", "Softshrink", "Softmax",
})  # fmt: skip


def import_torch() -> Any:
    """Return the torch module, or raise an ImportError that names the extra."""
    known = "torch" in sys.modules
    try:
        import torch
    except ImportError:
        raise ImportError(
            "this needs PyTorch, which is not installed: pip install 'liftopt[torch]'"
        ) from None
    if not known:
        limit_new_libraries()
    return torch


def to_torch(network: Network) -> Any:
    """``nn.Sequential`` equal to ``network``; rows of images are unflattened first."""
    torch = import_torch()
    sequence = build(architecture(network))
    parametric = [part for part in sequence if hasattr(part, "weight")]
    layers = [layer for layer in network.layers if isinstance(layer, (Dense, Conv2d))]
    for module, layer in zip(parametric, layers, strict=True):
        weight = layer.weight.T if isinstance(layer, Dense) else layer.weight
        module.weight = torch.nn.Parameter(torch.from_numpy(np.array(weight, order="C")))
        module.bias = torch.nn.Parameter(torch.from_numpy(layer.bias.copy()))
    return sequence


def architecture(network: Network) -> list[Spec]:
    """Modules of :func:`to_torch` in order: name in ``torch.nn`` and keyword arguments, JSON-able."""
    specs: list[Spec] = []
    if len(network.input_shape) > 1:
        specs.append(("Unflatten", {"dim": 1, "unflattened_size": network.input_shape}))
    for layer in network.layers:
        specs.extend(_specs_of(layer))
    return specs


def build(specs: Iterable[Spec]) -> Any:
    """``nn.Sequential`` of the modules described, with weights that hold no memory yet.

    Raises
    ------
    ValueError
        If a name is none of those that :func:`architecture` writes.
    """
    torch = import_torch()
    modules = []
    with torch.device("meta"):
        for name, arguments in specs:
            if name not in _MODULES:
                raise ValueError(f"module {name!r} is none of those that liftopt writes")
            modules.append(_unit_rows() if name == _UNIT_ROWS else getattr(torch.nn, name)(**arguments))
    return torch.nn.Sequential(*modules)


def from_torch(module: Any, input_shape: Shape | None = None) -> Network:
    """Network equal to an ``nn.Sequential``; see :meth:`liftopt.Network.from_torch`."""
    nn = import_torch().nn
    layers: list[Layer] = []
    pending: Dense | Conv2d | None = None
    for part in _parts(module, nn):
        if isinstance(part, nn.Unflatten) and not layers:
            input_shape = tuple(part.unflattened_size)
            continue
        activation = _activation_of(part, nn)
        if activation is not None and pending is not None:
            layers[-1] = type(pending).from_config(
                pending.config() | {"activation": activation.config()}, pending.arrays()
            )
            pending = None
            continue
        if isinstance(part, (nn.Identity, nn.Dropout)):
            continue
        layer = _layer_of(part, nn)
        layers.append(layer)
        pending = layer if isinstance(layer, (Dense, Conv2d)) else None
    return Network(layers, input_shape)


def _parts(module: Any, nn: Any) -> list[Any]:
    """Modules in order of application, nested sequences opened."""
    if not isinstance(module, nn.Sequential):
        return [module]
    return [part for child in module for part in _parts(child, nn)]


def _specs_of(layer: Layer) -> list[Spec]:
    match layer:
        case Flatten():
            return [("Flatten", {})]
        case AvgPool2d(size):
            return [("AvgPool2d", {"kernel_size": size})]
        case Normalize():
            return [(_UNIT_ROWS, {})]
        case Dense():
            fan_in, fan_out = layer.weight_shape
            linear: Spec = ("Linear", {"in_features": fan_in, "out_features": fan_out})
        case Conv2d():
            channels_out, channels_in, *window = layer.weight_shape
            geometry = {"kernel_size": tuple(window), "stride": layer.stride, "padding": layer.padding}
            linear = ("Conv2d", {"in_channels": channels_in, "out_channels": channels_out, **geometry})
    return [linear, *_activation_specs(layer.activation)]


def _unit_rows() -> Any:
    from liftopt.torch_modules import UnitRows

    return UnitRows()


def _activation_specs(activation: Activation) -> list[Spec]:
    match activation:
        case Identity():
            return []
        case ReLU():
            return [("ReLU", {})]
        case LeakyReLU(slope):
            return [("LeakyReLU", {"negative_slope": slope})]
        case ELU(scale):
            return [("ELU", {"alpha": scale})]
        case Sigmoid():
            return [("Sigmoid", {})]
        case Tanh():
            return [("Tanh", {})]
        case HardSigmoid():
            return [("Hardtanh", {"min_val": 0.0, "max_val": 1.0})]
        case SoftThreshold(threshold):
            return [("Softshrink", {"lambd": threshold})]
        case Softmax():
            return [("Softmax", {"dim": 1})]
    raise ValueError(f"activation {activation} has no counterpart in torch")


def _activation_of(part: Any, nn: Any) -> Activation | None:
    match part:
        case nn.ReLU():
            return ReLU()
        case nn.LeakyReLU():
            return LeakyReLU(part.negative_slope)
        case nn.ELU():
            return ELU(part.alpha)
        case nn.Sigmoid():
            return Sigmoid()
        case nn.Tanh():
            return Tanh()
        case nn.Hardtanh() if (part.min_val, part.max_val) == (0.0, 1.0):
            return HardSigmoid()
        case nn.Softshrink():
            return SoftThreshold(part.lambd)
        case nn.Softmax() if part.dim in (1, -1):
            return Softmax()
    return None


def _layer_of(part: Any, nn: Any) -> Layer:
    if isinstance(part, type(_unit_rows())):
        return Normalize()
    if isinstance(part, nn.Flatten) and (part.start_dim, part.end_dim) == (1, -1):
        return Flatten()
    if isinstance(part, nn.AvgPool2d) and _is_plain_pool(part):
        return AvgPool2d(_equal_pair(part.kernel_size, part))
    if isinstance(part, nn.Linear):
        weight = part.weight.detach().cpu().numpy().T.copy()
        return Dense(weight, _bias_of(part, weight.shape[1], weight), IDENTITY)
    if isinstance(part, nn.Conv2d) and (part.groups, part.dilation, part.padding_mode) == (
        1,
        (1, 1),
        "zeros",
    ):
        weight = part.weight.detach().cpu().numpy().copy()
        stride, padding = _equal_pair(part.stride, part), _equal_pair(part.padding, part)
        return Conv2d(weight, _bias_of(part, weight.shape[0], weight), IDENTITY, stride, padding)
    raise ValueError(f"torch module {part} has no counterpart in liftopt.Network")


def _is_plain_pool(part: Any) -> bool:
    stride = part.stride if part.stride is not None else part.kernel_size
    plain = part.padding in (0, (0, 0)) and not part.ceil_mode and part.divisor_override is None
    return plain and _equal_pair(stride, part) == _equal_pair(part.kernel_size, part)


def _equal_pair(value: Any, part: Any) -> int:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(set(pair)) != 1 or not isinstance(pair[0], int):
        raise ValueError(f"torch module {part} is not the same in both directions, as liftopt.Network needs")
    return pair[0]


def _bias_of(part: Any, width: int, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if part.bias is None:
        return np.zeros(width, dtype=like.dtype)
    return part.bias.detach().cpu().numpy().copy()


def as_arrays(tree: Any) -> Any:
    """A tree of dictionaries and sequences with arrays in place of its tensors."""
    if isinstance(tree, Mapping):
        return {key: as_arrays(part) for key, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [as_arrays(part) for part in tree]
    return tree.detach().cpu().numpy() if hasattr(tree, "detach") else tree


def as_tensors(torch: Any, tree: Any) -> Any:
    """Inverse of :func:`as_arrays`."""
    if isinstance(tree, Mapping):
        return {key: as_tensors(torch, part) for key, part in tree.items()}
    if isinstance(tree, list):
        return [as_tensors(torch, part) for part in tree]
    return torch.from_numpy(tree) if isinstance(tree, np.ndarray) else tree
