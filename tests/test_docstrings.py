"""Every public name says what it takes, gives, raises and costs."""

import ast
import importlib
import inspect
import re
import sys
from dataclasses import is_dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

import pytest
from sklearn.base import BaseEstimator

import liftopt
import liftopt.solvers

pytest.importorskip("numpydoc")
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

CONF = Path(__file__).parent.parent / "docs" / "conf.py"
SOLVER = re.compile("(solve|search|select|fit|refine|prune)_")
COST = re.compile(r"O\(|[Oo]perations")
CONTRACT = {"fit", "predict", "predict_proba", "decision_function", "score", "partial_fit"}


def names_in_conf():
    """``NAMES`` of docs/conf.py: packages without an ``__all__``, and their public names."""
    for node in ast.parse(CONF.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMES":
            return ast.literal_eval(node.value)
    raise AssertionError("docs/conf.py has no NAMES")


def public_objects():
    names = {"liftopt": liftopt.__all__, "liftopt.solvers": liftopt.solvers.__all__, **names_in_conf()}
    for module, members in names.items():
        for name in members:
            value = getattr(importlib.import_module(module), name)
            if callable(value):  # the table of activations is not
                yield pytest.param(value, id=f"{module}.{name}")


OBJECTS = list(public_objects())
FUNCTIONS = [entry for entry in OBJECTS if inspect.isfunction(entry.values[0])]
CLASSES = [entry for entry in OBJECTS if inspect.isclass(entry.values[0])]
SOLVERS = [entry for entry in FUNCTIONS if SOLVER.match(entry.values[0].__name__)]


def sections(value):
    return NumpyDocString(inspect.getdoc(value) or "")


def listed(entries):
    """Names of the entries of a section; several may share a line."""
    return {name.strip().lstrip("*") for entry in entries for name in entry.name.split(",")}


def documented_parameters(cls):
    """What a class lists; fields of a value stand under Attributes, shared parameters at a sibling."""
    doc = sections(cls)
    names = listed(doc["Parameters"])
    if is_dataclass(cls) or issubclass(cls, tuple):
        names |= listed(doc["Attributes"])
    for sibling in re.findall(r":class:`(\w+)`", inspect.getdoc(cls) or ""):
        other = getattr(sys.modules[cls.__module__], sibling)
        if issubclass(cls, BaseEstimator) and issubclass(other, BaseEstimator):
            names |= listed(sections(other)["Parameters"])
    return names


def parameters_of(cls):
    """Names in the signature; enumerations and plain exceptions have none of their own."""
    if issubclass(cls, Enum) or (issubclass(cls, Exception) and "__init__" not in vars(cls)):
        return set()
    return set(inspect.signature(cls).parameters)


def public_members(cls):
    """Own and inherited methods and properties that liftopt defines."""
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        member = getattr(member, "__func__", member)
        function = member.fget if isinstance(member, property) else getattr(member, "func", member)
        if inspect.isfunction(function) and function.__module__.startswith("liftopt") and name[0] != "_":
            yield name, function, isinstance(member, (property, cached_property))


def test_every_kind_of_name_is_covered():
    assert {entry.values[0] for entry in SOLVERS} >= {
        liftopt.solvers.solve_ridge,
        liftopt.solvers.search_gram,
        liftopt.solvers.select_hinges,
        liftopt.solvers.fit_hinging_hyperplanes,
        liftopt.solvers.refine_knots,
        liftopt.solvers.prune_terms,
    }
    assert len(FUNCTIONS) + len(CLASSES) == len(OBJECTS)
    assert dict((name, is_property) for name, _, is_property in public_members(liftopt.Network))["dtype"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_documents_parameters_and_values(function):
    found = validate(f"{function.__module__}.{function.__qualname__}")["errors"]
    assert [error for error in found if error[0] in ("GL08", "PR01", "PR02", "RT01", "YD01")] == []


@pytest.mark.parametrize("cls", CLASSES)
def test_class_documents_its_parameters(cls):
    assert "__doc__" in vars(cls)
    assert vars(cls)["__doc__"], "no docstring"
    missing = parameters_of(cls) - documented_parameters(cls)
    assert not missing, f"not documented: {sorted(missing)}"
    invented = listed(sections(cls)["Parameters"]) - parameters_of(cls)
    assert not invented, f"no such parameters: {sorted(invented)}"


@pytest.mark.parametrize("cls", CLASSES)
def test_members_are_documented(cls):
    """Methods are short: a parameter may be named in a sentence. fit and predict are scikit-learn's."""
    for name, function, is_property in public_members(cls):
        text = inspect.getdoc(getattr(cls, name)) or inspect.getdoc(function)
        assert text, f"{name} has no docstring"
        if is_property or (issubclass(cls, BaseEstimator) and name in CONTRACT):
            continue
        parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        silent = [p for p in parameters if not re.search(rf"\b{p}\b", text)]
        assert not silent, f"{name} does not document {silent}"


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_states_errors_cost_and_source(solver):
    doc = sections(solver)
    assert doc["Raises"], "which errors?"
    assert COST.search("\n".join(doc["Notes"])), "Notes do not state the cost"
    module = sys.modules[solver.__module__].__doc__
    assert NumpyDocString(inspect.cleandoc(module or ""))["References"], "the module names no source"
