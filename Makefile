# Two commands do all set-up: `make run` trains the embedded digits through `flwr run`, `make test` runs the tests.
VENV ?= .venv
# Test files that run at once: tests wait more than they compute. Real runs have the machine for themselves.
JOBS ?= 3
E2E_JOBS ?= 1
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The oldest Flower that pyproject.toml allows. Its environment is not in the checkout, all of which `flwr run` looks through.
OLD_FLWR := 1.41
OLD ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/psl-flower/flwr-$(OLD_FLWR)
OLD_TESTS ?= tests/unit/test_bundle.py tests/unit/test_questions.py \
	"tests/e2e/test_training.py::test_train_then_use_the_model" "tests/e2e/test_training.py::test_uppers_are_averaged[flower]"

.PHONY: help setup run test check audit format docs e2e e2e-old slow bench clean

help:            ## Show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 12

setup: $(STAMP)  ## Install everything into .venv, in the tested versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "psl-flower needs Python 3.11 to 3.13; set PYTHON=python3.12, say" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'uv<0.14'  # as flwr asks
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: setup       ## Train the embedded digits: 4 Upper nodes, one Lower, ResNet18
	@$(BIN)/psl train
	@echo "psl is $(BIN)/psl: call it so, or activate it once with: . $(BIN)/activate"

test: setup      ## Run the default tests (some minutes)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

check: setup     ## Lint, format, types, who imports whom, and what bandit finds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive psl_flower strategies clients server .ci
	$(BIN)/bandit --quiet --configfile pyproject.toml --skip B311,B607 --recursive simulations  # draws to be repeated, the system's tools

audit: setup     ## Ask for known vulnerabilities of all that is installed; needs the network
	@$(BIN)/python .ci/audit.py

format: setup    ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup      ## Build the documentation site into site/; a broken link or name fails
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs site

e2e: setup       ## Run the long tests: real `flwr run`, real processes
	$(BIN)/python -m pytest -m e2e --timeout 900 --numprocesses $(E2E_JOBS) --dist loadfile

e2e-old: setup   ## Some of these with the oldest Flower supported; all of them with OLD_TESTS=tests/e2e
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLD)
	grep -v '^flwr==' constraints.txt > $(OLD)/constraints.txt
	$(BIN)/uv pip install --quiet --python $(OLD)/bin/python --constraint $(OLD)/constraints.txt --editable '.[dev]' 'flwr==$(OLD_FLWR).*'
	$(OLD)/bin/python -m pytest -m 'not slow' --timeout 900 $(OLD_TESTS)

slow: setup      ## Run the exhaustive versions of other tests
	$(BIN)/python -m pytest -m slow --timeout 1800

bench: setup     ## Federated against one process, on digits; see docs/benchmarks.md for CIFAR-10
	$(BIN)/python -m simulations.throughput

clean:           ## Remove what setup and the tools made
	rm -rf $(VENV) $(OLD) site docs/reference .import_linter_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
