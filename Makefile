# Works on a fresh Debian machine with Python 3.11+ and make: what is missing is installed.
# `make demo` tries it, `make test` runs everything, `make lint` checks style and types, `make bench` compares,
# `make lab` opens a laboratory, `make lock` renews requirements.lock, `make audit` looks for known holes in it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell tools/python)
DEMO_PORT ?= 8443
# Tests at a time: most wait for processes and clocks. `make test TESTS_AT_A_TIME=0` has no processes beside pytest's own.
TESTS_AT_A_TIME ?= 3
PYTEST_ARGS ?=

.PHONY: demo test lint bench check-speed lab soak lock audit clean

demo: $(VENV)/.installed
	@exec $(BIN)/tunnelgw demo --port $(DEMO_PORT)

test: $(VENV)/.developed
	@tools/debian-packages
	@exec $(BIN)/python -m pytest -n $(TESTS_AT_A_TIME) $(PYTEST_ARGS)

lint: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Who is on PATH, in turn: half an hour. `make bench ONLY="h1, 32"` one scenario, `make bench BENCH_ARGS=--quick` a few.
ONLY ?=
BENCH_ARGS ?=
bench: $(VENV)/.developed
	@tools/debian-packages
	@exec $(BIN)/python -m loadtest.bench $(if $(ONLY),--only "$(ONLY)") $(BENCH_ARGS)

# Whether speed collapsed, as ratios to HAProxy in the same run: a minute or two.
check-speed: $(VENV)/.developed
	@tools/debian-packages
	$(BIN)/python -m loadtest.check

# A home behind two NATs, a VPS and a visitor in network namespaces, with a prompt (needs root).
lab: $(VENV)/.developed
	@tools/debian-packages
	@exec $(BIN)/python -m tests.lab

# Ten minutes of random faults under load, every request and byte accounted for (needs root).
SOAK_SECONDS ?= 600
SOAK_SEED ?=
SOAK_WORKERS ?= 1
soak: $(VENV)/.developed
	@tools/debian-packages
	@exec $(BIN)/python -m tests.lab.soak --seconds $(SOAK_SECONDS) --workers $(SOAK_WORKERS) \
	    $(if $(SOAK_SEED),--seed $(SOAK_SEED))

# Universal: markers instead of one machine's choice, hashes of every file, no address of an index.
lock: $(VENV)/.tools
	$(VENV)/tools/bin/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --upgrade \
	    --generate-hashes --no-emit-index-url --no-annotate --quiet \
	    --custom-compile-command "make lock" --output-file requirements.lock

audit: $(VENV)/.tools
	$(VENV)/tools/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict --progress-spinner off

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@tools/python-venv $(PYTHON) $(VENV)

# Installed in place, so that an edited file needs no second installation.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# Exactly what the lock says, so that a test that passes here passes everywhere; nothing is fetched beside it.
$(VENV)/.developed: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.installed

# Apart from the environment of the tests, which holds the lock and nothing else.
$(VENV)/.tools: | $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/tools
	$(VENV)/tools/bin/pip install --quiet --disable-pip-version-check "uv>=0.5" "pip-audit>=2.7"
	@touch $@
