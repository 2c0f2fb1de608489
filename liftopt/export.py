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
from pathlib import Path
from typing import Any

from liftopt import __version__
from liftopt.network import ModelFileError, Network, write_atomically
from liftopt.onnx_graph import to_onnx
from liftopt.torch_interop import architecture, build, import_torch, to_torch

_FORMAT = "liftopt-torch"


def export_onnx(network: Network, path: str | os.PathLike[str]) -> None:
    """Write ``network`` as an ONNX model, atomically; see :meth:`liftopt.Network.to_onnx`."""
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


def load_torch(path: str | os.PathLike[str]) -> Any:
    """``nn.Sequential`` from a file of :func:`export_torch`; no code of the file is executed.

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
