# `make demo` and `make test` need nothing but Python >= 3.11: both install into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REPORT := liftopt-report.html
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export LIFTOPT_DATA ?= $(wildcard $(abspath ../shared/data))

.PHONY: help install demo test test-all lint format bench bench-quick docs check-release clean

help:
	@echo "make demo        install, compare every method with Adam on the digits data, write $(REPORT)"
	@echo "make test        the test suite (minutes)"
	@echo "make test-all    the test suite with the long runs"
	@echo "make lint        ruff and mypy"
	@echo "make bench-quick a short pass over the benchmark scripts"
	@echo "make bench       every benchmark script; records in benchmarks/results, tables in docs"
	@echo "make docs        the documentation site in docs/_build/html"
	@echo "make check-release  sdist and wheel, with each extra and the oldest versions, in empty environments"

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,test,docs,dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/liftopt compare digits --report $(REPORT)

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2

test-all: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

bench-quick: $(STAMP)
	$(BIN)/python benchmarks/run.py --quick

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

check-release:
	PYTHON=$(PYTHON) .ci/check-release

clean:
	rm -rf build dist *.egg-info docs/_build docs/gallery docs/api .mypy_cache .pytest_cache .ruff_cache
