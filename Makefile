# rlm_jax needs Python 3.11 or newer and make; everything else goes into a virtual
# environment beside this file.  `make` alone lists the targets.

PYTHON ?= python3
# One environment per interpreter, so that `make test PYTHON=python3.12` stands alone.
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
PY := $(VENV)/bin/python
WORKERS ?= 2
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist loadfile
SOURCES := rlm_jax experiments tests benchmarks colab setup.py

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-times test-faults lint format bench clean
.DELETE_ON_ERROR:

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' \
	  $(firstword $(MAKEFILE_LIST))
	@echo "Another interpreter: make test PYTHON=python3.12"

install: $(VENV)/.installed-test  ## Create the virtual environment

demo: $(VENV)/.installed-test  ## Train the tiny TRIME, compare it, draw the plots
	$(PY) -m experiments.demo --workdir runs/demo

# NPROC: on a machine of two cores JAX's thread pool is otherwise too small for four
# simulated devices, and a collective can wait for a thread for ever.
test test-all test-times: export JAX_PLATFORMS := cpu
test test-all test-times: export NPROC := 16

# Compiled as users have it; `test` spares LLVM's expensive passes (tests/conftest.py).
test-all: export XLA_FLAGS ?=

test: $(VENV)/.installed-test  ## Run the fast tests, on the CPU
	$(PYTEST) -m "not slow and not torch and not gpu"

test-all: $(VENV)/.installed-dev  ## Run every test, with the parity tests against torch
	$(PYTEST) -m "not gpu"

# In one process, and with nothing compiled before.
test-times: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/jax-times
test-times: $(VENV)/.installed-test  ## Processor seconds of each test file (FILES=...)
	rm -rf $(JAX_COMPILATION_CACHE_DIR)
	$(PY) -m pytest -q -p tests.times -p no:xdist -m "not slow and not torch and not gpu" $(FILES)

# Stopped, it goes on where it was; FAULTS="--systems lm --tries 2" tries less.
test-faults: $(VENV)/.installed-test  ## Kill, damage and starve every system (an hour or two)
	$(PY) -m tests.faults $(FAULTS)

lint: $(VENV)/.installed-lint  ## Check style and types
	$(PY) -m ruff check $(wildcard $(SOURCES))
	$(PY) -m ruff format --check $(wildcard $(SOURCES))
	$(PY) -m pyright --pythonpath $(PY) $(wildcard rlm_jax experiments tests benchmarks)

format: $(VENV)/.installed-lint  ## Format the sources, sort the imports
	$(PY) -m ruff check --select I --fix $(wildcard $(SOURCES))
	$(PY) -m ruff format $(wildcard $(SOURCES))

bench: $(VENV)/.installed-dev  ## Run the benchmarks; figures go to benchmarks/results
	$(PY) -m benchmarks

clean:  ## Remove environments, caches and build output; runs/ stays
	rm -rf .venv .venv-* .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an installation that was cut short is done again.
$(VENV)/.installed-%: setup.py pyproject.toml | $(VENV)/bin/python
	@echo "Installing rlm_jax into $(VENV); the first time takes a minute or two."
	@$(PY) -m pip install --disable-pip-version-check --quiet --editable ".[test,$*]"
	@touch $@

$(VENV)/bin/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON) is not on the PATH: install Python 3.11 or newer, or name" \
	    "one with make PYTHON=/path/to/python3.12." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "rlm_jax needs Python 3.11 or newer and $(PYTHON) is older or does not run: name another" \
	    "one with make PYTHON=python3.12." >&2; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { \
	  rm -rf "$(VENV)"; \
	  echo "$(PYTHON) cannot create virtual environments: install its venv module" \
	    "(Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
