"""What this installation consists of: versions, BLAS and its threads, optional parts, data; for bug reports.

Nothing in it identifies the machine or its user beyond the folder of the data.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from threadpoolctl import threadpool_info

from liftopt.data import data_folder
from liftopt.threads import VARIABLES

REQUIRED = ("numpy", "scipy", "scikit-learn", "cvxpy", "osqp", "numba", "safetensors")
#: optional packages and the extra that brings them
OPTIONAL: Mapping[str, str] = {
    "torch": "torch",
    "pandas": "cli",
    "rich": "cli",
    "matplotlib": "plots",
    "distributed": "dask",
    "onnx": "onnx",
    "onnxruntime": "onnx",
}
_MODULES = {"scikit-learn": "sklearn"}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of ``packages`` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Python, system and number of cores."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


def diagnose() -> dict[str, Any]:
    """The state of this installation as a JSON-able record.

    Returns
    -------
    dict
        ``environment``; ``required`` and ``optional``: versions by package, None where it is missing;
        ``broken``: packages that are installed but cannot be imported, with the error; ``blas``: libraries
        with their versions and threads outside of fits; ``chosen_threads``: variables of the environment
        that set them; ``data``: folder and names found there; ``hints``: what to do, in sentences.
    """
    broken = _broken()
    optional = versions(OPTIONAL)
    record: dict[str, Any] = {
        "environment": {"liftopt": version("liftopt"), **environment()},
        "required": dict.fromkeys(REQUIRED) | versions(REQUIRED),
        "optional": dict.fromkeys(OPTIONAL) | optional,
        "broken": broken,
        "blas": _blas(),
        "chosen_threads": {name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
        "data": _data(),
    }
    record["hints"] = _hints(record)
    return record


def is_sound(record: Mapping[str, Any]) -> bool:
    """Whether everything required is there and can be imported."""
    return None not in record["required"].values() and not set(record["broken"]) & set(REQUIRED)


def _broken() -> dict[str, str]:
    """Errors of the installed packages that cannot be imported."""
    errors = {}
    for package in versions([*REQUIRED, *OPTIONAL]):
        try:
            import_module(_MODULES.get(package, package))
        except Exception as error:  # whatever a broken package raises is the finding
            errors[package] = f"{type(error).__name__}: {error}"
    return errors


def _blas() -> list[dict[str, Any]]:
    pools = [
        {"library": pool["internal_api"], "version": pool["version"], "threads": pool["num_threads"]}
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]
    return [pool for index, pool in enumerate(pools) if pool not in pools[:index]]


def _data() -> dict[str, Any]:
    folder = data_folder()
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return {"folder": str(folder), "exists": folder.is_dir(), "sets": names}


def _hints(record: Mapping[str, Any]) -> list[str]:
    hints = [
        f"{package} is missing: pip install {package}"
        for package, number in record["required"].items()
        if number is None
    ]
    hints += [
        f"{package} is broken, install it again ({error})" for package, error in record["broken"].items()
    ]
    extras: dict[str, list[str]] = {}
    for package, number in record["optional"].items():
        if number is None:
            extras.setdefault(OPTIONAL[package], []).append(package)
    hints += [
        f"{' and '.join(missing)} not installed (optional): pip install 'liftopt[{extra}]'"
        for extra, missing in extras.items()
    ]
    if any(pool["threads"] > 1 for pool in record["blas"]) and not record["chosen_threads"]:
        hints.append(
            "BLAS uses several threads outside of fits (a fit takes one unless told otherwise): on a busy "
            "machine set OMP_NUM_THREADS=1"
        )
    if not record["data"]["exists"]:
        hints.append(
            f"the data folder {record['data']['folder']} does not exist: set LIFTOPT_DATA to your data"
        )
    return hints
