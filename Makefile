# One word each; CI calls the same words. Every word does its own set-up into .venv, so a fresh clone
# needs only make and Python 3.11 to 3.13.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.done
PYTEST_ARGS ?=
# The test files are shared out over two processes; WORKERS=0 runs them in one.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile
BENCH_ARGS ?=
GPU_ARGS ?=
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)

# PYTHON=/path/to/python chooses; else the first of these that runs and is recent enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)

.PHONY: help demo test test-all check fmt bench gpu-check emu-asan docs

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DONE)/demo ## start a server, run three real problems on it, stop it
	@$(BIN)/python examples/demo.py

test: $(DONE)/test ## the tests that need neither a GPU nor minutes
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not pykeops" $(PYTEST_ARGS)

test-all: $(DONE)/test $(DONE)/bench ## every test: the slow ones and the comparison with pykeops too
	@HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest --timeout=900 $(PYTEST_ARGS)

check: $(DONE)/test ## lint, format, types, import contracts, generated code, the repository's own rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python proto/generate.py --check
	@$(BIN)/python -m pytest -q $(PARALLEL) -m "not slow" tests/repo tests/cuda/test_sanitizers.py

fmt: $(DONE)/test ## format the code and repair what the linter can
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(DONE)/bench ## the figures of the README, with every peer in the same run (pykeops needs a C++ compiler)
	@$(BIN)/python -m benchmarks.cpu --json $(BENCH_ARGS)
	@$(BIN)/python -m benchmarks.w11_small --json $(BENCH_ARGS)
	@$(BIN)/python -m benchmarks.wire --json $(BENCH_ARGS)
	@$(BIN)/python -m benchmarks.torch_autograd --json $(BENCH_ARGS)

# On a machine with a GPU the libraries at hand are used: GPU_PYTHON names the Python that has CuPy.
gpu-check: ## prove and measure the CUDA engine on this machine's GPU; GPU_ARGS=--dry does what needs none
	@PYTHONPATH=.:client:server:kernels:proto $(GPU_PYTHON) -m benchmarks.gpu_check $(GPU_ARGS)

emu-asan: $(DONE)/test ## every kernel for GPUs on the CPU, under AddressSanitizer and UBSan (minutes; needs g++)
	@FARSUM_EMULATOR_SANITIZE=1 $(BIN)/python -m pytest -q -m emulated --timeout=900 tests/cuda $(PYTEST_ARGS)

docs: $(DONE)/docs ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: site/index.html"

# ── set-up ──────────────────────────────────────────────────────────────────────────────────────
# A file in .venv/.done says what is installed; a change of pyproject.toml makes all of it stale.

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "farsum needs Python 3.11 to 3.13 with its venv module (on Debian and Ubuntu:" \
		"apt install python3-venv). Or say where it is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "set-up: creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(DONE)/demo: WHAT = -e ".[server]" "scikit-learn>=1.5" "pillow>=10.3"
$(DONE)/test: WHAT = -e ".[test]"
$(DONE)/bench: WHAT = -e ".[bench]"
$(DONE)/docs: WHAT = -e ".[docs]"

$(DONE)/%: pyproject.toml | $(BIN)/python
	@echo "set-up: installing what 'make $*' needs into $(VENV) (the first time takes a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(WHAT)
	@mkdir -p $(DONE) && touch $@
