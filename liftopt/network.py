"""The trained value: an ordered tuple of layers with a forward pass, sizes, and a file format.

A :class:`Network` knows nothing of how it was trained, and every method can start from one. The file is
safetensors (arrays) with one JSON header (layers, metadata, checksum): loading executes no code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from liftopt.activations import get_activation
from liftopt.layers import LAYERS, Conv2d, Dense, Layer, Shape

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

_FORMAT = "liftopt-network"
_VERSION = 1
_CHUNK_BYTES = 32 * 2**20


class ModelFileError(ValueError):
    """A model file is truncated, foreign, tampered with, or from a newer version.

    The message names the file and what is wrong with it.
    """


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """Feed-forward network as a value.

    Parameters
    ----------
    layers : sequence of Layer
        Applied in order; shapes must chain.
    input_shape : tuple of int, optional
        Shape of one sample, (features,) or (channels, height, width). Derived from a first Dense layer.
    metadata : mapping, optional
        JSON-able facts that travel with the weights (class labels, column names, ...).

    Raises
    ------
    ValueError
        If there is no layer or two layers do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from liftopt import Dense, Network
    >>> net = Network([Dense(np.eye(2), np.zeros(2))])
    >>> net(np.array([[1.0, 2.0]]))
    array([[1., 2.]])
    """

    layers: tuple[Layer, ...]
    input_shape: Shape
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: Shape | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if not layers:
            raise ValueError("a Network needs at least one layer")
        if input_shape is None:
            if not isinstance(layers[0], Dense):
                raise ValueError("input_shape is required when the first layer is not Dense")
            input_shape = layers[0].weight_shape[:1]
        object.__setattr__(self, "layers", tuple(layers))
        object.__setattr__(self, "input_shape", tuple(int(side) for side in input_shape))
        object.__setattr__(self, "metadata", dict(metadata or {}))
        if len(self.output_shape) != 1:
            raise ValueError(f"the last layer must give rows, got samples of shape {self.output_shape}")

    @property
    def output_shape(self) -> Shape:
        """Shape of one output sample."""
        shape = self.input_shape
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Floating dtype of the weights, in which the forward pass runs."""
        arrays = [array for layer in self.layers for array in layer.arrays().values()]
        return np.result_type(*arrays) if arrays else np.dtype(np.float64)

    @property
    def n_parameters(self) -> int:
        """Number of weights and biases, however they are stored."""
        parametric = [layer for layer in self.layers if isinstance(layer, (Dense, Conv2d))]
        return sum(math.prod(layer.weight_shape) + layer.bias.size for layer in parametric)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays: packed codes with their value sets and scales, biases."""
        return sum(array.nbytes for layer in self.layers for array in layer.arrays().values())

    def astype(self, dtype: npt.DTypeLike) -> Network:
        """Copy with weights (or values and scales) and biases in ``dtype``; packed codes are shared."""
        cast = []
        for layer in self.layers:
            arrays = layer.arrays()
            floating = {k: a.astype(dtype) for k, a in arrays.items() if np.issubdtype(a.dtype, np.floating)}
            cast.append(type(layer).from_config(layer.config(), arrays | floating))
        return Network(cast, self.input_shape, self.metadata)

    def __call__(self, X: npt.ArrayLike) -> Array:
        """Forward pass.

        Parameters
        ----------
        X : array-like of shape (n, *input_shape) or (n, prod(input_shape))
            Computed in the dtype of the weights, in chunks that fit the cache hierarchy.

        Returns
        -------
        ndarray of shape (n, outputs)
            Output of the last layer, activation included.
        """
        return self._forward(X, activate_last=True)

    def scores(self, X: npt.ArrayLike) -> Array:
        """Last pre-activation for rows ``X``: logits of a softmax head, the output of a linear one."""
        return self._forward(X, activate_last=False)

    def hidden(self, X: npt.ArrayLike) -> list[Array]:
        """Outputs of every layer but the last, for all rows of ``X`` at once."""
        values, current = [], self._as_batch(X)
        for layer in self.layers[:-1]:
            current = layer(current)
            values.append(current)
        return values

    def _forward(self, X: npt.ArrayLike, *, activate_last: bool) -> Array:
        batch = self._as_batch(X)
        out = np.empty((batch.shape[0], *self.output_shape), dtype=self.dtype)
        for rows in self._chunks(batch.shape[0]):
            current = batch[rows]
            for layer in self.layers[:-1]:
                current = layer(current)
            last = self.layers[-1]
            out[rows] = last(current) if activate_last else last.linear(current)
        return out

    def _as_batch(self, X: npt.ArrayLike) -> Array:
        array = np.asarray(X, dtype=self.dtype)
        n = array.shape[0] if array.ndim else 0
        if array.shape[1:] == self.input_shape:
            return array
        if array.ndim == 2 and array.shape[1] == np.prod(self.input_shape):
            return array.reshape(n, *self.input_shape)
        raise ValueError(f"X of shape {array.shape} does not hold samples of shape {self.input_shape}")

    def _chunks(self, n: int) -> list[slice]:
        widest, shape = int(np.prod(self.input_shape)), self.input_shape
        for layer in self.layers:
            window = math.prod(layer.weight_shape[1:]) if isinstance(layer, Conv2d) else 1
            shape = layer.output_shape(shape)
            widest = max(widest, int(np.prod(shape)), window * int(np.prod(shape[1:])))
        size = max(1, _CHUNK_BYTES // (widest * self.dtype.itemsize))
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to one safetensors file, atomically (a failed write leaves the old file).

        Parameters
        ----------
        path : path-like
            Target file; ``.safetensors`` by custom.

        Raises
        ------
        ValueError
            If an activation is not in the table of activations: the file could not be read again.
        """
        for layer in self.layers:
            get_activation(layer.config().get("activation", "identity"))
        tensors = {
            f"{index}.{name}": np.ascontiguousarray(array)
            for index, layer in enumerate(self.layers)
            for name, array in layer.arrays().items()
        }
        header = {
            "layers": [layer.config() for layer in self.layers],
            "input_shape": list(self.input_shape),
            "metadata": dict(self.metadata),
        }
        text = json.dumps(header, sort_keys=True)
        marks = {
            "format": _FORMAT,
            "version": str(_VERSION),
            "network": text,
            "sha256": _digest(tensors, text),
        }
        write_atomically(Path(path), safetensors_save(tensors, metadata=marks))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Network:
        """Read a network written by :meth:`save`.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        Network
            Equal bit for bit to the one written.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelFileError
            If the file is truncated, not a liftopt model, tampered with, or of a newer format.
        """
        data = Path(path).read_bytes()
        marks = read_marks(data, path)
        if marks.get("format") != _FORMAT:
            raise ModelFileError(f"{path} is a safetensors file, but not a liftopt network")
        if not marks.get("version", "").isdecimal() or int(marks["version"]) > _VERSION:
            version = marks.get("version")
            raise ModelFileError(
                f"{path} has format version {version}, newer than {_VERSION}: upgrade liftopt"
            )
        try:
            tensors = safetensors_load(data)
        except (SafetensorError, KeyError) as error:
            raise ModelFileError(f"{path} is truncated or damaged ({error})") from None
        text = marks.get("network", "")
        if marks.get("sha256") != _digest(tensors, text):
            raise ModelFileError(
                f"{path} does not match its checksum: it was damaged or changed after saving"
            )
        try:
            header = json.loads(text)
            layers = [
                LAYERS[config["kind"]].from_config(config, _of_layer(tensors, index))
                for index, config in enumerate(header["layers"])
            ]
            return cls(layers, tuple(header["input_shape"]), header["metadata"])
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ModelFileError(f"{path} describes a network that cannot be built ({error})") from None

    def to_torch(self) -> torch.nn.Sequential:
        """Equal ``torch.nn.Sequential``, the softmax head included.

        Raises
        ------
        ImportError
            If torch is missing; the message names the extra.
        """
        from liftopt.torch_interop import to_torch

        return to_torch(self)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX model with one input of n samples and one output (n, outputs), in float32.

        Samples have ``input_shape``, n is free. The softmax of a classifier is part of the model, packed
        weights stay packed. The metadata (class labels, columns, liftopt's version) stand in
        ``metadata_props`` as JSON texts.

        Parameters
        ----------
        path : path-like
            Target file, replaced atomically; ``.onnx`` by custom.

        Raises
        ------
        ImportError
            If onnx is missing; the message names the extra.
        ValueError
            If an activation has no ONNX operator, or a weight exceeds float32.
        """
        from liftopt.export import export_onnx

        export_onnx(self, path)

    @classmethod
    def from_torch(cls, module: torch.nn.Sequential, input_shape: Shape | None = None) -> Network:
        """Network equal to a ``torch.nn.Sequential`` of the layers and activations known here.

        Parameters
        ----------
        module : torch.nn.Sequential
            In the layout of :meth:`to_torch`.
        input_shape : tuple of int, optional
            Shape of one sample; derived from a first Linear or Unflatten.

        Returns
        -------
        Network
            In the dtype of the module.

        Raises
        ------
        ValueError
            If a module has no counterpart here; the message names it.
        """
        from liftopt.torch_interop import from_torch

        return from_torch(module, input_shape)

    def __repr__(self) -> str:
        size = f"{self.n_parameters:,} parameters, {self.nbytes:,} bytes, {self.dtype}"
        lines = [f"Network {' x '.join(map(str, self.input_shape))} ({size})"]
        return "\n".join(lines + [f"  {layer}" for layer in self.layers])


def dense_network(
    weights: Sequence[Array],
    biases: Sequence[Array],
    activation: str = "relu",
    head: str = "identity",
    metadata: Mapping[str, Any] | None = None,
) -> Network:
    """Fully connected network from its arrays: ``activation`` on hidden layers, ``head`` on the last."""
    hidden = get_activation(activation)
    last = len(weights) - 1
    kinds = [get_activation(head) if index == last else hidden for index in range(len(weights))]
    return Network(
        [Dense(W, b, kind) for W, b, kind in zip(weights, biases, kinds, strict=True)], None, metadata
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, then rename over it: readers see the old file or the whole new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_marks(data: bytes, path: object) -> dict[str, str]:
    """The metadata of a safetensors file, read without touching the arrays."""
    try:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size > len(data) - 8:
            raise ValueError("the header is cut off")
        header = json.loads(data[8 : 8 + size])
        marks = header.get("__metadata__", {})
        if not isinstance(marks, dict) or not all(isinstance(text, str) for text in marks.values()):
            raise ValueError("the metadata is not a table of texts")
        return marks
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{path} is truncated or no safetensors file ({error})") from None


def _digest(tensors: Mapping[str, Array], text: str) -> str:
    """Checksum over names, dtypes, shapes, bytes and header."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _of_layer(tensors: Mapping[str, Array], index: int) -> dict[str, Array]:
    prefix = f"{index}."
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
