# `make probe` and `make test` work on a fresh machine: they make .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
# Tests side by side; each starts processes of its own.
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: probe test lint check results simulated finders gpu clean

probe: .venv/probe.stamp
	$(BIN)/microbatch probe --effective-batch 256

test: .venv/test.stamp
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

# The committed reference runs on the CPU, the search's cost, and what the README says of them.
results: .venv/test.stamp
	$(BIN)/python -m benchmarks.reference_runs
	$(BIN)/python -m benchmarks.search_cost
	$(BIN)/python -m benchmarks.readme

# Plans for cards that are not here, and what the README says of them.
simulated: .venv/models.stamp
	$(BIN)/python -m benchmarks.simulated_runs
	$(BIN)/python -m benchmarks.readme

# Finders that people use beside ours, on the CPU, and what the README says of them.
finders: .venv/finders.stamp
	$(BIN)/python -m benchmarks.finders
	$(BIN)/python -m benchmarks.readme

# On a machine with a GPU, with its own python3 and nothing installed.
gpu:
	$(PYTHON) -m benchmarks.gpu

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/probe.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable '.[examples]'
	touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	touch $@ .venv/probe.stamp

.venv/models.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable '.[test,models]'
	touch $@ .venv/test.stamp .venv/probe.stamp

.venv/finders.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable '.[test,benchmarks]'
	touch $@ .venv/test.stamp .venv/probe.stamp

clean:
	rm -rf .venv
