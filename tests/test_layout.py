"""Where code lies, what imports what, and what is shipped."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAZY = (
    "torch",
    "cvxpy",
    "osqp",
    "dask",
    "distributed",
    "matplotlib",
    "numba",
    "pandas",
    "pyarrow",
    "rich",
    "onnx",
    "sklearn",
)

# solvers (0) <- values (1) <- methods and what they share (2, every other module) <- comparison (3)
VALUES = {"activations", "layers", "network", "packing", "packed_kernels", "convolution"}
COMPARISON = {"cli", "commands", "plot", "compare", "comparison", "report", "console", "svg", "__main__"}


def run_python(code, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def python_folders():
    """Packages in the tree: folders of liftopt/ and solvers/ that hold Python files."""
    found = set()
    for top, prefix in (("liftopt", "liftopt"), ("solvers", "liftopt.solvers")):
        for path in (ROOT / top).rglob("*.py"):
            inside = path.parent.relative_to(ROOT / top).parts
            if "__pycache__" not in inside and (top, inside[:1]) != ("liftopt", ("solvers",)):
                found.add(".".join((prefix, *inside)))
    return found


def library_files():
    """Path, package and name of every module."""
    solvers = [(path, "liftopt.solvers") for path in sorted((ROOT / "solvers").glob("*.py"))]
    own = [(path, "liftopt") for path in sorted((ROOT / "liftopt").glob("*.py"))]
    return [(path, package, f"{package}.{path.stem}") for path, package in solvers + own]


def imports_of(path, package):
    """Absolute names of the modules that ``path`` imports at import time (TYPE_CHECKING blocks excepted)."""
    names = []
    stack = list(ast.parse(path.read_text()).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            names.append(".".join([*base, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            stack += list(ast.iter_child_nodes(node))
    return names


def layer_of(module):
    if module.split(".")[:2] == ["liftopt", "solvers"]:
        return 0
    leaf = module.removeprefix("liftopt.")
    return 1 if leaf in VALUES else 3 if leaf in COMPARISON else 2


def test_setup_lists_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(config["options"]["packages"].split()) == python_folders()
    mapping = config["options"]["package_dir"].strip().splitlines()
    assert mapping == ["liftopt = liftopt", "liftopt.solvers = solvers"]


def test_the_link_points_to_the_solvers():
    link = ROOT / "liftopt" / "solvers"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "solvers"


def test_solvers_are_importable_from_anywhere(tmp_path):
    done = run_python("import liftopt.solvers as s; print(s.solve_ridge.__module__)", tmp_path)
    assert done.stdout.strip() == "liftopt.solvers.least_squares", done.stderr


def test_solvers_are_not_importable_under_their_folder_name():
    done = run_python("import solvers", ROOT, PYTHONPATH=str(ROOT))
    assert done.returncode != 0
    assert "use liftopt.solvers" in done.stderr


@pytest.mark.parametrize("module", ["liftopt", "liftopt.solvers"])
def test_importing_the_package_stays_light(module, tmp_path):
    done = run_python(f"import sys, {module}; print(*(set({LAZY!r}) & set(sys.modules)))", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("path", "package", "module"), [pytest.param(*entry, id=entry[2]) for entry in library_files()]
)
def test_imports_point_downwards(path, package, module):
    own = [name for name in imports_of(path, package) if name.split(".")[0] == "liftopt"]
    if package == "liftopt.solvers":
        assert all(name.startswith("liftopt.solvers") for name in own)
        lines = path.read_text().splitlines()
        absolute = [line for line in lines if line.startswith(("import liftopt", "from liftopt"))]
        assert not absolute, "use relative imports inside solvers"
    upwards = [name for name in own if layer_of(name) > layer_of(module)]
    assert not upwards or module == "liftopt.__init__", f"{module} imports {upwards}, which lie above it"


@pytest.mark.slow
def test_the_wheel_ships_the_solvers_once(tmp_path):
    tree = tmp_path / "tree"
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=unwanted)
    command = ["pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (wheel,) = tmp_path.glob("liftopt-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "liftopt/solvers/least_squares.py" in names
    assert "liftopt/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"liftopt"}
