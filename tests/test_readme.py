import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liftopt.cli import main
from liftopt.commands import Outcome

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/quickstart.md"]


def read(page):
    return (ROOT / page).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", read(page), flags=re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
    assert namespace["model"].score(namespace["X_test"], namespace["y_test"]) > 0.9  # type: ignore[attr-defined]


def test_export_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", read("docs/export.md"), flags=re.DOTALL):
        exec(compile(block, "export.md", "exec"), namespace)
    expected = namespace["model"].predict_proba(namespace["X"])
    np.testing.assert_allclose(namespace["probabilities"], expected, atol=1e-5)
    rows = namespace["torch"].from_numpy(namespace["X"])
    np.testing.assert_allclose(namespace["module"](rows).detach().numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(namespace["again"].predict_proba(namespace["X"]), expected)


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_make_targets_exist(page):
    named = set(re.findall(r"(?:\$ |`)make ([a-z-]+)", read(page)))
    there = set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE))
    assert named
    assert named <= there


@pytest.mark.parametrize("page", [*PAGES, "docs/command_line.md"])
def test_commands_are_understood(page, monkeypatch):
    """Every ``liftopt`` line parses; the commands themselves are replaced."""
    for command in ("compare", "fit", "predict", "export", "doctor"):
        outcome = Outcome({}, lambda: None)
        monkeypatch.setattr(f"liftopt.commands.{command}", lambda arguments, outcome=outcome: outcome)
    monkeypatch.setattr("liftopt.commands.write_atomically", lambda path, data: None)
    lines = re.findall(r"^\$ liftopt (.*?)(?:\s+#.*)?$", read(page), flags=re.MULTILINE)
    assert lines
    for line in lines:
        if "COMMAND" not in line:
            assert main(line.split()) == 0


def test_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", read("README.md"))
    assert links
    assert all((ROOT / link).exists() for link in links)


SECTIONS = {
    "problem": r"^## (The p|P)roblem",
    "blocks": r"^## (The b|B)locks",
    "assumptions": r"^## Assumptions",
    "options": r"^## (Options|How to choose)",
    "cost": r"^## Cost",
    "failure modes": r"^## (Failure modes|Where it (fails|does not help))",
    "references": r"^## References",
}


@pytest.mark.parametrize("page", ["baseline", "fenchel", "manifold", "refine", "spline", "ternary"])
def test_every_method_page_has_every_section(page):
    text = read(f"docs/methods/{page}.md")
    missing = [name for name, heading in SECTIONS.items() if not re.search(heading, text, re.MULTILINE)]
    assert missing == ([] if page not in ("baseline", "refine") else ["blocks"])  # these have one block
