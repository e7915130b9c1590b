# Two commands do all set-up: `make run` trains the embedded digits through `flwr run`, `make test` runs the tests.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup run test check format e2e slow bench clean

help:            ## Show this list
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 12

setup: $(STAMP)  ## Install everything into .venv, in the tested versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "psl-flower needs Python 3.11 to 3.13; set PYTHON=python3.12, say" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'uv<0.13'  # as flwr asks
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: setup       ## Train the embedded digits: 4 Upper nodes, one Lower, ResNet18
	@$(BIN)/psl train
	@echo "psl is $(BIN)/psl: call it so, or activate it once with: . $(BIN)/activate"

test: setup      ## Run the default tests (some minutes)
	$(BIN)/python -m pytest

check: setup     ## Lint, format, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup    ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

e2e: setup       ## Run the long tests: real `flwr run`, real processes
	$(BIN)/python -m pytest -m e2e --timeout 900

slow: setup      ## Run the exhaustive versions of other tests
	$(BIN)/python -m pytest -m slow --timeout 1800

bench: setup     ## Federated against one process, on digits; see docs/benchmarks.md for CIFAR-10
	$(BIN)/python -m simulations.throughput

clean:           ## Remove what setup and the tools made
	rm -rf $(VENV) .import_linter_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
