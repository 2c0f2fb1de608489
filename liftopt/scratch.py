"""Arrays in files between two steps of a fit: where memory is too small for them, or a crash would lose them.

No file is ever changed, and nobody knows the name of one before it is whole: a task that is done again writes
another file with the same content, and a checkpoint needs the names only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.recording import Recorder

Array = npt.NDArray[Any]


def write_arrays(folder: str | os.PathLike[str], kind: str, arrays: Sequence[Array]) -> str:
    """Write arrays to a new file of the folder; returns its name, which nobody knows before it is whole."""
    handle, path = tempfile.mkstemp(suffix=kind, dir=folder)
    try:
        with os.fdopen(handle, "wb") as stream:
            for array in arrays:
                np.save(stream, np.asarray(array, order="C"), allow_pickle=False)
    except BaseException:
        os.unlink(path)
        raise
    return os.path.basename(path)


def read_arrays(folder: str | os.PathLike[str], name: str) -> tuple[Array, ...]:
    """Arrays of a file."""
    arrays = []
    with open(os.path.join(folder, name), "rb") as stream:
        while stream.peek(1):
            arrays.append(np.load(stream, allow_pickle=False))
    return tuple(arrays)


@contextmanager
def scratch_folder(recorder: Recorder, checkpoint: Any) -> Iterator[Path]:
    """Folder for the files of a fit: temporary, or beside its checkpoint and as long-lived as that."""
    if checkpoint is None:
        with tempfile.TemporaryDirectory(prefix="liftopt-") as name:
            yield Path(name)
        return
    folder = Path(f"{os.path.abspath(checkpoint)}.parts")
    folder.mkdir(exist_ok=True)
    yield folder
    if not recorder.interrupted:
        shutil.rmtree(folder)
