"""Sphinx configuration; the lists of public names are taken from the packages themselves."""

import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout is documented, not another installed one

project = "liftopt"
author = "the liftopt developers"
release = metadata.version("liftopt")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
templates_path = ["_templates"]
exclude_patterns = ["_build", "examples"]
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "download_all_examples": False,
    "show_signature": False,
    "abort_on_example_error": True,
}
autosummary_generate = True
autodoc_typehints = "none"
autodoc_default_options = {"exclude-members": "set_fit_request, set_score_request, set_partial_fit_request"}
numpydoc_show_class_members = False
html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["phone.css"]
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 4,
    "navbar_align": "left",
}
html_sidebars = {"*": [], "methods/*": ["sidebar-nav-bs"], "api/**": ["sidebar-nav-bs"]}
html_title = f"liftopt {release}"

API = {
    "liftopt": "Networks, methods, layers and activations",
    "liftopt.solvers": "Block solvers: arrays in, `Result` out",
    "liftopt.data": "Data sets",
    "liftopt.compare": "Comparison",
    "liftopt.plot": "Displays",
    "liftopt.repair": "Closed-form repairs",
    "liftopt.export": "Files of other programs",
    "liftopt.recipe": "Methods in a row",
}
NAMES = {
    "liftopt.data": ["Dataset", "load"],
    "liftopt.compare": ["compare", "Comparison", "Run"],
    "liftopt.plot": ["ConvergenceDisplay", "NetworkDisplay", "ComparisonDisplay"],
    "liftopt.repair": ["refit_head", "as_dense", "fold_row_scaling"],
    "liftopt.export": ["export_onnx", "export_torch", "load_torch", "onnx_difference"],
    "liftopt.recipe": ["Recipe", "Stage"],
}


def write_api_pages() -> None:
    """One page a package with a summary of its public names."""
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    for package, title in API.items():
        module = import_module(package)
        names = NAMES.get(package) or [n for n in module.__all__ if not hasattr(getattr(module, n), "keys")]
        lines = [f"{package}: {title}".replace("`", "``")]
        lines += ["=" * len(lines[0]), "", f".. currentmodule:: {package}", "", ".. autosummary::"]
        lines += ["   :toctree: generated", "   :nosignatures:", "", *(f"   {name}" for name in names)]
        (folder / f"{package}.rst").write_text("\n".join(lines) + "\n")


def escape_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Norms such as |W H| are no substitutions of reStructuredText: escape bars outside of literals."""
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("``")
            parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
            lines[index] = "``".join(parts)


def setup(app: Any) -> None:
    """Hook called by Sphinx."""
    write_api_pages()
    app.connect("autodoc-process-docstring", escape_bars, priority=900)
