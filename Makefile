# Every target sets up what it needs, in .venv: nothing has to be installed before.
# ARGS is passed on: make test ARGS="tests/unit -k frames".

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
SLURM := slurmctld slurmd slurm-client munge iproute2 util-linux \
	slurmdbd slurm-wlm-mysql-plugin mariadb-server-core
GLOBUS := rabbitmq-server
SERVERS := redis-server haproxy nginx-light
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Processes that run tests side by side; with 0, pytest itself runs them (for --pdb).
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint types format bench docs clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(VENV)/.demo ## Run the example campaign: agents that find the best cluster
	$(BIN)/academy demo examples/hpc/replica_exchange.toml $(ARGS)

test: $(VENV)/.dev ## Run the tests
	@scripts/debian-packages "tests on a real Slurm (marked hpc)" $(SLURM) || true
	@scripts/debian-packages "tests of Globus Compute" $(GLOBUS) || true
	@scripts/debian-packages "tests of several exchange servers" $(SERVERS) || true
	@scripts/debian-packages "tests with a clock that jumps" libfaketime || true
	@scripts/globus-endpoint-venv $(BIN)/python >/dev/null || true
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.dev ## Check format, lint rules and the layers of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.dev ## Check types with mypy and pyright
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## Measure latency, throughput, launch rate, memory, import time
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.dev ## Run every example of the README, docs/ and docstrings
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

clean: ## Remove .venv and everything that was generated
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(1): what to install. An environment without a working pip is made anew.
define set_up
@echo "Setting up $(VENV); the first time takes a minute"
@$(PIP) --version >/dev/null 2>&1 || \
	{ python=$$(scripts/find-python) && "$$python" -m venv --clear $(VENV); }
$(PIP) install --quiet --upgrade 'pip>=25.1'
$(PIP) install --quiet --editable $(1)
endef

$(VENV)/.demo: pyproject.toml
	$(call set_up,'.[demo]')
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(call set_up,'.[demo]' --group dev)
	@touch $@ $(VENV)/.demo

# The Python that the environment was made from may have gone away since.
ifneq ($(shell test -x $(BIN)/python && echo present),present)
.PHONY: $(VENV)/.demo $(VENV)/.dev
endif
