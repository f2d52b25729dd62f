# The environment is made once, in .venv; remove .venv to make it anew.
# `make demo ARGS="--fault units"` and `make test ARGS="-k join -x"` pass their words on.

# A mistake in a recipe's pipe or variable is an error.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
RUNS ?= 1
SEEDS ?= 10000

.PHONY: install demo test faults simulate counterexamples lint bench build
.DEFAULT_GOAL := install

install: .venv/.installed

demo: install
	$(BIN)/riverkeeper demo flights $(ARGS)

# The benchmarks are tried, too, with their peers. Real Kafka runs from Maven's jars; without it half of the promises would go unproved.
test: .venv/.developed .venv-bench/.installed .kafka
	$(BIN)/python -m pytest $(ARGS)

# The catalogue of faults, each RUNS times with its own seeds, and the table of what they cost.
faults: .venv/.developed .kafka
	$(BIN)/python -m pytest tests/faults --runs $(RUNS) $(ARGS)

# The agents' own code over a log in memory, under a scheduler that crashes, pauses and reorders.
simulate: .venv/.developed
	$(BIN)/python -m tests.simulator --seeds $(SEEDS) $(ARGS)

# Each remedy of tests/counterexamples taken out of a copy of the tree: its test must then fail.
counterexamples: .venv/.developed .kafka
	$(BIN)/python -m tests.counterexamples.without all

lint: .venv/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Every part, or those that ARGS names (make bench ARGS="score --rounds 3"), then the tables of what was measured.
bench: .venv/.developed .venv-bench/.installed .kafka
	$(BIN)/python bench/run.py --peers .venv-bench/bin/python $(ARGS)
	$(BIN)/python bench/table.py

# The peers' packages do not go with all of ours: see pyproject.toml.
.venv-bench/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[bench]'
	touch $@

.PHONY: .kafka
.kafka:
	@command -v java >/dev/null && command -v mvn >/dev/null || { \
	  echo "The tests run a real Kafka: install Java 17 or later and Maven (Debian: apt-get install default-jre-headless maven; macOS: brew install openjdk maven)." >&2; exit 1; }

build: .venv/.installed
	$(PIP) wheel --no-deps --wheel-dir dist .

.venv/.installed: pyproject.toml | .venv/bin/python
	$(PIP) install --editable .
	touch $@

.venv/.developed: pyproject.toml | .venv/bin/python
	$(PIP) install --editable '.[dev]'
	touch .venv/.installed $@

.venv/bin/python:
	@for python in python3.13 python3.12 python3.11 python3; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making .venv with $$("$$python" --version)"; exec "$$python" -m venv .venv; \
	  fi; \
	done; \
	echo "Riverkeeper needs Python 3.11 or later with its venv module: install it (Debian: apt-get install python3 python3-venv; macOS: brew install python@3.13)." >&2; exit 1
