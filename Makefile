# Works on a fresh Debian machine with Python 3.11+ and make: what is missing is installed.
# `make demo` tries it, `make test` runs everything, `make lint` checks style and types, `make bench` compares.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
DEMO_PORT ?= 8443
PYTEST_ARGS ?=

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	@exec $(BIN)/tunnelgw demo --port $(DEMO_PORT)

test: $(VENV)/.developed
	@tools/debian-packages
	@exec $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.developed
	@tools/debian-packages
	$(BIN)/python -m loadtest.bench

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@tools/python-venv $(PYTHON) $(VENV)

# Installed in place, so that an edited file needs no second installation.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# Dependency groups need pip 25.1; Debian's is older.
$(VENV)/.developed: pyproject.toml $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/pip install --quiet --disable-pip-version-check --group dev
	@touch $@
