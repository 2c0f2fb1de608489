"""Networks as files of other programs: ONNX models, and torch checkpoints that load without executing code.

A torch checkpoint holds plain data only, so that ``torch.load(path, weights_only=True)`` reads it:

    architecture   list of (name in torch.nn, keyword arguments), in order of application
    state_dict     tensors, named as in ``torch.nn.Sequential``
    metadata       JSON text of the network's metadata

``nn.Sequential(*[getattr(nn, name)(**arguments) for name, arguments in architecture])`` is the module (of the
names only ``UnitRows``, rows over their length, is not torch's); :func:`load_torch` does the same.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from liftopt import __version__
from liftopt.network import ModelFileError, Network, write_atomically
from liftopt.onnx_graph import INPUT, to_onnx
from liftopt.torch_interop import architecture, build, import_torch, to_torch

_FORMAT = "liftopt-torch"
_CHECKED_ROWS = 64


def export_onnx(network: Network, path: str | os.PathLike[str]) -> None:
    """Write ``network`` as an ONNX model, atomically; see :meth:`liftopt.Network.to_onnx`.

    Parameters
    ----------
    network : Network
        Of layers and activations that ONNX has.
    path : path-like
        Target file; ``.onnx`` by custom.

    Raises
    ------
    ImportError
        If onnx is missing; the message names the extra.
    ValueError
        If an activation has no ONNX operator, or a weight exceeds float32.
    """
    write_atomically(Path(path), to_onnx(network, {"liftopt": __version__}))


def export_torch(network: Network, path: str | os.PathLike[str]) -> None:
    """Write ``network`` as a torch checkpoint of plain data, atomically.

    Parameters
    ----------
    network : Network
        Packed weights are written as numbers: torch has no such storage.
    path : path-like
        Target file; ``.pt`` by custom.

    Raises
    ------
    ImportError
        If torch is missing; the message names the extra.
    ValueError
        If an activation has no counterpart in torch.
    """
    content = {
        "format": _FORMAT,
        "architecture": architecture(network),
        "state_dict": to_torch(network).state_dict(),
        "metadata": json.dumps({**network.metadata, "liftopt": __version__}),
    }
    buffer = io.BytesIO()
    import_torch().save(content, buffer)
    write_atomically(Path(path), buffer.getvalue())


class FileFormat(NamedTuple):
    """How a format is written, and how its files end by custom."""

    write: Callable[[Network, Path], None]
    suffix: str


FORMATS: Mapping[str, FileFormat] = {
    "onnx": FileFormat(export_onnx, ".onnx"),
    "torch": FileFormat(export_torch, ".pt"),
}


def onnx_difference(network: Network, path: str | os.PathLike[str]) -> float | None:
    """Largest difference of the outputs of an ONNX file to those of ``network`` on random rows.

    Parameters
    ----------
    network : Network
        What was written.
    path : path-like
        The ONNX file.

    Returns
    -------
    float or None
        Relative to the largest output where that exceeds one; None without onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    rows = np.random.default_rng(0).standard_normal((_CHECKED_ROWS, *network.input_shape), dtype=np.float32)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {INPUT: rows})
    expected = network(rows)
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def load_torch(path: str | os.PathLike[str]) -> Any:
    """``nn.Sequential`` from a file of :func:`export_torch`; no code of the file is executed.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    torch.nn.Sequential
        As :meth:`liftopt.Network.to_torch` makes it.

    Raises
    ------
    ModelFileError
        If the file is damaged, or holds something else.
    """
    torch = import_torch()
    try:
        content = torch.load(path, weights_only=True)
        if content["format"] != _FORMAT:
            raise ValueError("another format")
        module = build(content["architecture"])
        module.load_state_dict(content["state_dict"], assign=True)
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelFileError(f"{path} is no torch checkpoint of liftopt, or damaged ({error})") from None
    return module
