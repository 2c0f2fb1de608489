"""Checkpoints: the state of a long fit in one file, so that a killed process costs little time and no bit.

A state is a tree of dictionaries, lists, numbers, texts, None, arrays and networks. The file is safetensors
(arrays) with the rest as JSON in its header: reading it executes no code. It is written beside the old one
and renamed over it, so that at any moment a whole file is there, also when the disk is full. A fit that finds
the file of the same fit (same data, parameters and version) goes on from it, and ends with the network, bit
by bit, that it would have reached undisturbed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from liftopt.layers import LAYERS
from liftopt.network import ModelFileError, Network, read_marks, write_atomically

Array = npt.NDArray[Any]
State = dict[str, Any]

_FORMAT = "liftopt-checkpoint"
_VERSION = 1
_SHARE = 20.0  # a state is written when so many times the duration of the last writing has passed
#: parameters that do not change what is computed
_IRRELEVANT = {"callback", "verbose", "checkpoint", "n_jobs"}


class Checkpoint:
    """The file of one fit.

    Parameters
    ----------
    path : path-like
        The file; its folder must exist.
    fingerprint : str
        Identifies data, parameters and version (:func:`fingerprint`).

    Raises
    ------
    ValueError
        If the file belongs to another fit.
    ModelFileError
        If it is damaged, no checkpoint, or of a newer format.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        self.path, self._fingerprint = Path(path), fingerprint
        if not self.path.absolute().parent.is_dir():
            raise ValueError(f"checkpoint={str(path)!r}: there is no folder {self.path.absolute().parent}")
        self.found: State | None = self._read() if self.path.exists() else None
        self._cost, self._written = 0.0, -np.inf

    def offer(self, state: Callable[[], State]) -> None:
        """Write ``state()``, unless writing the last one was so recent that it would cost over 5 %."""
        begin = time.perf_counter()
        if begin - self._written < _SHARE * self._cost:
            return
        write_state(self.path, state(), self._fingerprint)
        self._written = time.perf_counter()
        self._cost = self._written - begin

    def remove(self) -> None:
        """Delete the file: the fit is over."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> State:
        state, owner = read_state(self.path)
        if owner != self._fingerprint:
            raise ValueError(
                f"checkpoint={str(self.path)!r} holds another fit: other data, parameters or"
                " version: give another path, or delete the file to start anew"
            )
        return state


def write_state(path: Path, state: State, fingerprint: str) -> None:
    """Write a state atomically; the old file stays if that fails."""
    arrays: dict[str, Array] = {}
    text = json.dumps(_packed(state, arrays))
    marks = {"format": _FORMAT, "version": str(_VERSION), "fingerprint": fingerprint, "state": text}
    write_atomically(path, safetensors_save(arrays, metadata=marks))


def read_state(path: Path) -> tuple[State, str]:
    """State of a file and the fingerprint of its fit.

    Raises
    ------
    ModelFileError
        If the file is damaged, no checkpoint, or of a newer format.
    """
    data = path.read_bytes()
    marks = read_marks(data, path)
    if marks.get("format") != _FORMAT:
        raise ModelFileError(f"{path} is no liftopt checkpoint")
    if not marks.get("version", "").isdecimal() or int(marks["version"]) > _VERSION:
        raise ModelFileError(
            f"{path} has checkpoint version {marks.get('version')}, newer than {_VERSION}: upgrade liftopt"
        )
    try:
        state = _unpacked(json.loads(marks["state"]), safetensors_load(data))
    except (SafetensorError, LookupError, ValueError) as error:
        raise ModelFileError(f"{path} is truncated or damaged ({error})") from None
    return state, marks.get("fingerprint", "")


def fingerprint(estimator: Any, *arrays: Array | None) -> str:
    """Checksum of an estimator's parameters, the data, and the version of the package."""
    import liftopt

    parameters = {k: v for k, v in estimator.get_params(deep=False).items() if k not in _IRRELEVANT}
    digest = hashlib.sha256(f"{type(estimator).__name__} {liftopt.__version__}".encode())
    for name in sorted(parameters):
        digest.update(f"{name}={_described(parameters[name])};".encode())
    for array in arrays:
        if array is not None:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def random_bits(random_state: np.random.RandomState | np.random.Generator) -> State:
    """State of a random number generator as a tree."""
    if isinstance(random_state, np.random.Generator):
        return dict(random_state.bit_generator.state)
    return dict(random_state.get_state(legacy=False))


def restore_bits(random_state: np.random.RandomState | np.random.Generator, bits: Mapping[str, Any]) -> None:
    """Set a generator to a state of :func:`random_bits`."""
    if isinstance(random_state, np.random.Generator):
        random_state.bit_generator.state = bits
    else:
        random_state.set_state(dict(bits))


def _described(value: Any) -> str:
    """Text that is the same in another process."""
    if isinstance(value, Network):
        parts = [array.tobytes() for layer in value.layers for array in layer.arrays().values()]
        return hashlib.sha256(b"".join(parts)).hexdigest()
    if isinstance(value, (np.random.RandomState, np.random.Generator)):
        return "generator"  # its state is part of the checkpoint
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).hexdigest()
    return repr(value)


def _packed(value: Any, arrays: dict[str, Array]) -> Any:
    """``value`` as JSON; arrays go to ``arrays`` and leave their names."""
    if isinstance(value, np.ndarray):
        name, columns = str(len(arrays)), value.flags.f_contiguous and not value.flags.c_contiguous
        arrays[name] = np.array(value.T if columns else value, order="C")
        return {"array": name, "columns": columns}  # products depend on the order in their last bits
    if isinstance(value, Network):
        layers = [[layer.config(), layer.arrays()] for layer in value.layers]
        return {"network": _packed([layers, value.input_shape, value.metadata], arrays)}
    if isinstance(value, Mapping):
        return {"map": {str(key): _packed(part, arrays) for key, part in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_packed(part, arrays) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _unpacked(value: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, list):
        return [_unpacked(part, arrays) for part in value]
    if isinstance(value, dict):
        if "array" in value:
            array = arrays[value["array"]].copy()
            return array.T if value["columns"] else array
        if "network" in value:
            layers, shape, metadata = _unpacked(value["network"], arrays)
            built = [LAYERS[config["kind"]].from_config(config, parts) for config, parts in layers]
            return Network(built, tuple(shape), metadata)
        return {key: _unpacked(part, arrays) for key, part in value["map"].items()}
    return value
