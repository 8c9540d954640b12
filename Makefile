# Needs Python 3.11, make and git; everything else goes into .venv.
# Another interpreter: make setup PYTHON=/path/to/python3.12
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Without this project's settings for uv, which would lock nothing.
LOCK := $(BIN)/uv pip compile --no-config --quiet --universal --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' --python-version 3.11 -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-deploy coverage bench-smoke lint lock clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  \1\t/' | expand -t 14

setup: $(STAMP)  ## Create .venv and install everything, pinned (a second call costs nothing)

# The stamp is younger than the two files that decide what is installed, or the step runs again. The
# package itself is installed editable, so its own code never asks for a new set-up.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "make: $(PYTHON) not found; install Python 3.11 or name another: make setup PYTHON=python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off \
		-c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## Watch three institutions learn three tasks (a few minutes on two cores)
	$(BIN)/casam run quickstart

# Slow tests of one process run side by side; those that start Flower, a browser or a backbone need the machine.
ONE_PROCESS := $(addprefix tests/,casam_bench casam_core client fuzz whole_runs)

test: test-fast  ## Run every test but those in containers
	$(BIN)/python -m pytest -m "slow and not deploy" -n 2 --dist loadfile $(ONE_PROCESS)
	$(BIN)/python -m pytest -m "slow and not deploy" $(addprefix --ignore=,$(ONE_PROCESS))

test-fast: setup  ## Run the tests that start neither Flower nor the real backbone
	$(BIN)/python -m pytest -m "not slow" -n 2

test-deploy: setup  ## Run the compose demo in containers (root and Debian, or a running engine; else a counted skip)
	$(BIN)/python -m pytest -m deploy tests/deploy

coverage: setup  ## Which lines the fast tests run: files with gaps, and the figure (TOTAL)
	$(BIN)/python -m pytest -m "not slow" -n 2 -q --cov --cov-report=term

lint: setup  ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup  ## Write requirements.lock, requirements-node.lock (a site) and docker/thin.lock, with hashes
	$(LOCK) --extra deploy --extra medical --extra report --extra simulation --extra studio --extra study \
		pyproject.toml -o requirements.lock
	$(LOCK) --extra medical pyproject.toml -o requirements-node.lock
	printf 'flwr\nnumpy\n' | $(LOCK) - -o docker/thin.lock

bench-smoke: setup  ## Is anything a fifth slower than stored? (ratios only, under three minutes)
	$(BIN)/casam bench --smoke --baseline casam_bench/baseline.json

clean:  ## Remove .venv and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
