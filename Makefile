# `make` lists what there is. Every target sets up what it needs, in .venv/, and keeps what it makes in .tunes/.
#
#   PYTHON=python3.12       the Python that the environment is made from (3.11 or newer)
#   CPU=1                   PyTorch without CUDA, also where there is an NVIDIA GPU (without one it is the default)
#   WORKERS=                tests one after the other, in one process
#   TORCH='torch==2.13.0'   another PyTorch, TORCH_INDEX=https://… to take it from another index

PYTHON ?= python3
TORCH ?=
TORCH_INDEX ?= $(if $(CPU),cpu)
HOST ?= 127.0.0.1
PORT ?= 3000
API_PORT ?= 8000

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
export TUNES_HOME ?= $(CURDIR)/.tunes
export TUNES_DAGSTER_STORAGE ?= $(TUNES_HOME)/dagster
export DAGSTER_HOME ?= $(CURDIR)
export PATH := $(BIN):$(PATH)
# One worker more than cores (tests/conftest.py), at most four; a file's tests stay together, since its fixtures are
# what takes long, and files keep their order: those with few and long tests would come last otherwise.
WORKERS ?= -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
TEST_ENV := env -u DAGSTER_HOME -u TUNES_DAGSTER_STORAGE TUNES_HOME=$(CURDIR)/.tunes/test

SETUP := $(PYTHON) scripts/setup_venv.py
SETUP_FLAGS := $(if $(TORCH),--torch '$(TORCH)') $(if $(TORCH_INDEX),--torch-index '$(TORCH_INDEX)')

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo dev test test-all check lint format fidelity doctor clean distclean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup:  ## make .venv ready to run tunes-dagster
	@$(SETUP) $(SETUP_FLAGS)

setup-dev:  ## the same, and what tests and linters need
	@$(SETUP) dev $(SETUP_FLAGS)

demo: setup  ## train a tune on the demo subject and render with it: minutes, no GPU, no download of models
	@$(BIN)/tunes registry upgrade >/dev/null && $(BIN)/tunes demo

dev: setup  ## the Dagster UI with sensors on at http://127.0.0.1:3000 (HOST=, PORT=), the HTTP APIs at :8000 (API_PORT=)
	@$(BIN)/tunes registry upgrade && $(BIN)/tunes dev --host $(HOST) --port $(PORT) --api-port $(API_PORT)

test: setup-dev lint  ## lint, type-check and run the tests that take seconds each
	@$(TEST_ENV) $(BIN)/python -m pytest $(WORKERS) -m "not slow and not proof" $(PYTEST_ARGS)

test-all: setup-dev lint  ## the same with the slow ones: about half as long again
	@$(TEST_ENV) $(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

check: setup-dev  ## the quick tests only (PYTEST_ARGS="tests/cli")
	@$(TEST_ENV) $(BIN)/python -m pytest $(WORKERS) -m "not slow and not proof" $(PYTEST_ARGS)

lint: setup-dev  ## ruff, its formatter, mypy, and whether Dagster can load everything
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy \
		&& $(TEST_ENV) $(BIN)/dg check defs

format: setup-dev  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

fidelity: setup  ## measure likeness, leak and obedience on held-out subjects (FIDELITY_ARGS="--quick")
	@$(BIN)/python -m benchmarks.fidelity $(FIDELITY_ARGS)

doctor: setup  ## say what this machine has and what would stop a run
	@$(BIN)/tunes doctor

clean:  ## delete caches; tunes, renders and the environment stay
	rm -rf .tunes/cache .venv/pycache build dist *.egg-info

distclean: clean  ## delete the environment too; tunes and renders stay
	rm -rf .venv
