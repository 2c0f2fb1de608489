"""Networks as ONNX graphs, written with the onnx package alone and computed in float32, as runtimes do.

Packed weights stay packed in the file: their bytes, a table of the digits of every byte (shared by all layers
of one code layout) and the value set, joined by standard operators,

    W = reshape(values[digits[bytes]])[:, :fan_in] * scale * input_scale,

which runtimes evaluate once, when they load the model. Operators of opset 17 suffice; the 2-bit types of
later opsets would store no less and be known to fewer runtimes.

References
----------
ONNX operators, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
from liftopt.layers import AvgPool2d, Conv2d, Dense, Flatten, Layer, Normalize
from liftopt.network import Network
from liftopt.packing import FiniteArray, code_layout, digit_table

Array = npt.NDArray[Any]

INPUT, OUTPUT = "input", "output"
_OPSET, _IR_VERSION = 17, 8  # ONNX 1.12, onnxruntime 1.12
_BYTES_AT_MOST = 2**31 - 1  # protobuf's bound on a message


def import_onnx() -> Any:
    """Return the onnx package, or raise an ImportError that names the extra."""
    try:
        import onnx
    except ImportError:
        raise ImportError("this needs onnx, which is not installed: pip install 'liftopt[onnx]'") from None
    return onnx


def to_onnx(network: Network, facts: Mapping[str, Any] | None = None) -> bytes:
    """``network`` as the bytes of an ONNX model.

    Parameters
    ----------
    network : Network
        With activations of the table in :mod:`liftopt.activations`.
    facts : mapping, optional
        JSON-able entries beside the network's ``metadata`` in ``metadata_props``, as JSON texts.

    Returns
    -------
    bytes
        Model with one input (n samples of ``input_shape``) and one output (n, outputs), float32, n free; the
        softmax of a classifier is part of it.

    Raises
    ------
    ImportError
        If onnx is missing; the message names the extra.
    ValueError
        If an activation has no ONNX operator, a weight exceeds float32, or the model 2 GiB.
    """
    onnx = import_onnx()
    if network.nbytes > _BYTES_AT_MOST:
        raise ValueError(f"ONNX files end at 2 GiB, the network has {network.nbytes:,} bytes")
    graph = _Graph(onnx)
    value = INPUT
    for index, layer in enumerate(network.layers):
        last = index == len(network.layers) - 1
        value = graph.add_layer(layer, str(index), value, OUTPUT if last else f"{index}.output")
    model = graph.model(network)
    entries = {**network.metadata, **(facts or {})}
    onnx.helper.set_model_props(model, {name: json.dumps(fact) for name, fact in entries.items()})
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


class _Graph:
    """Nodes and constants collected layer by layer."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def model(self, network: Network) -> Any:
        """The finished model."""
        from liftopt import __version__

        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info(INPUT, kind, ["n", *network.input_shape])]
        outputs = [helper.make_tensor_value_info(OUTPUT, kind, ["n", *network.output_shape])]
        constants = list(self.constants.values())
        return helper.make_model(
            helper.make_graph(self.nodes, "liftopt", inputs, outputs, constants),
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="liftopt",
            producer_version=__version__,
        )

    def constant(self, name: str, array: Array) -> str:
        """Constant of that name; floating arrays as float32. A known name is not written twice."""
        if name not in self.constants:
            if np.issubdtype(array.dtype, np.floating):
                array = _as_float32(array)
            self.constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Node with one output, whose name is returned."""
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def add_layer(self, layer: Layer, name: str, value: str, output: str) -> str:
        """Nodes of ``layer`` applied to ``value``."""
        match layer:
            case Dense() | Conv2d():
                kind, attributes = _activation_node(layer.activation)
                before = f"{name}.linear" if kind else output
                self._add_linear(layer, name, value, before)
                return self.add(kind, [before], output, **attributes) if kind else output
            case AvgPool2d(size):
                window = [size, size]
                return self.add("AveragePool", [value], output, kernel_shape=window, strides=window)
            case Flatten():
                return self.add("Flatten", [value], output, axis=1)
            case Normalize():
                return self._add_unit_rows(name, value, output)

    def _add_linear(self, layer: Dense | Conv2d, name: str, value: str, output: str) -> None:
        bias = self.constant(f"{name}.bias", layer.bias)
        if isinstance(layer.stored, FiniteArray):
            weight = self._add_unpacking(layer.stored, name)
        else:
            weight = self.constant(f"{name}.weight", layer.stored)
        if isinstance(layer, Conv2d):
            geometry = {"strides": [layer.stride] * 2, "pads": [layer.padding] * 4}
            self.add("Conv", [value, weight, bias], output, **geometry)
        else:
            units_first = isinstance(layer.stored, FiniteArray)
            self.add("Gemm", [value, weight, bias], output, transB=int(units_first))

    def _add_unpacking(self, stored: FiniteArray, name: str) -> str:
        """Nodes from bytes to numbers, units first."""
        m, units = stored.values.size, stored.scale.size
        base, per_byte = code_layout(m, stored.packing)
        table = self.constant(f"digits.{base}", digit_table(base, per_byte))
        packed = self.constant(f"{name}.packed", stored.packed)
        index = self.add("Cast", [packed], f"{name}.bytes", to=self.onnx.TensorProto.INT32)
        digits = self.add("Gather", [table, index], f"{name}.digits")
        codes = self.add("Cast", [digits], f"{name}.codes", to=self.onnx.TensorProto.INT32)
        values = self.constant(f"{name}.values", stored.digit_values())
        current = self.add("Gather", [values, codes], f"{name}.units")
        rows = self.constant(f"{name}.rows", np.array([units, stored.packed.shape[1] * per_byte]))
        current = self.add("Reshape", [current, rows], f"{name}.padded")
        bounds = [
            self.constant(f"{name}.{key}", np.array([number]))
            for key, number in (("start", 0), ("end", stored.fan_in), ("axis", 1))
        ]
        current = self.add("Slice", [current, *bounds], f"{name}.unscaled")
        scale = self.constant(f"{name}.scale", stored.scale[:, None])
        current = self.add("Mul", [current, scale], f"{name}.scaled")
        if stored.input_scale is not None:
            factors = self.constant(f"{name}.input_scale", stored.input_scale)
            current = self.add("Mul", [current, factors], f"{name}.input_scaled")
        shape = self.constant(f"{name}.shape", np.array(stored.shape))
        return self.add("Reshape", [current, shape], f"{name}.weight")

    def _add_unit_rows(self, name: str, value: str, output: str) -> str:
        """Rows over their length, rows of length zero unchanged."""
        length = self.add("ReduceL2", [value], f"{name}.length", axes=[1], keepdims=1)
        zero = self.constant("zero", np.zeros(1, np.float32))
        one = self.constant("one", np.ones(1, np.float32))
        positive = self.add("Greater", [length, zero], f"{name}.positive")
        divisor = self.add("Where", [positive, length, one], f"{name}.divisor")
        return self.add("Div", [value, divisor], output)


def _activation_node(activation: Activation) -> tuple[str, dict[str, Any]]:
    """Operator and attributes; no operator for the identity."""
    match activation:
        case Identity():
            return "", {}
        case ReLU():
            return "Relu", {}
        case LeakyReLU(slope):
            return "LeakyRelu", {"alpha": slope}
        case ELU(scale):
            return "Elu", {"alpha": scale}
        case Sigmoid():
            return "Sigmoid", {}
        case Tanh():
            return "Tanh", {}
        case HardSigmoid():
            return "HardSigmoid", {"alpha": 1.0, "beta": 0.0}
        case SoftThreshold(threshold):
            return "Shrink", {"lambd": threshold, "bias": threshold}
        case Softmax():
            return "Softmax", {"axis": 1}
    raise ValueError(f"activation {activation} has no counterpart in ONNX")


def _as_float32(array: Array) -> Array:
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single).all():
        raise ValueError("ONNX files compute in float32, but a weight exceeds its range: rescale the inputs")
    return single
