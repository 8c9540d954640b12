# Needs Python 3.11, make and git; everything else goes into .venv.
# Another interpreter: make setup PYTHON=/path/to/python3.12
# CPU builds of PyTorch (4.3 GB less on Linux): make setup TORCH=cpu, where uv reaches PyTorch's own index;
# or make setup PIP='--index-url URL' with an index that has them.
PYTHON ?= python3.11
TORCH ?= default
PIP ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEVELOPER := $(VENV)/.developer
# What a user needs: every command, without the developers' tools.
USER := .[deploy,medical,report,simulation,studio,study]
# Without this project's settings for uv, which would lock nothing.
LOCK := $(BIN)/uv pip compile --no-config --quiet --universal --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' --python-version 3.11 -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup developer demo test test-fast test-deploy test-gpu gpu-wheels flower-next coverage bench-smoke lint lock clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  \1\t/' | expand -t 14

setup: $(STAMP)  ## Create .venv with every command, pinned (a second call costs nothing)

developer: $(DEVELOPER)  ## The same with the tools of tests and lint; `make test` calls it

# The stamp is younger than the two files that decide what is installed, or the step runs again. The
# package itself is installed editable, so its own code never asks for a new set-up.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "make: $(PYTHON) not found; install Python 3.11 or name another: make setup PYTHON=python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installs about 120 packages into $(VENV), some minutes. On Linux the public index delivers PyTorch with CUDA:"
	@echo "7 GB on disk, 4.3 of them for CUDA. Without CUDA: make setup TORCH=cpu (or see the head of the Makefile)."
ifeq ($(TORCH),default)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP) -c constraints.txt -e '$(USER)'
else
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP) -c constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --torch-backend $(TORCH) -c constraints.txt -e '$(USER)'
endif
	@du -sh $(VENV) | sed 's/^/On disk: /'
	@touch $@

# PyTorch is there already, so its build stays.
$(DEVELOPER): $(STAMP)
	@echo "Adds the tools of tests and lint: about 60 packages, 0.9 GB."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off $(PIP) \
		-c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## Watch three institutions learn three tasks (a few minutes on two cores)
	$(BIN)/casam run quickstart

# Two processes; tests/conftest.py says which tests keep to one of them.
test: developer  ## Run every test but those in containers
	$(BIN)/python -m pytest -n 2

test-fast: developer  ## Run the tests that start neither Flower nor the real backbone
	$(BIN)/python -m pytest -m "not slow" -n 2

test-deploy: developer  ## Run the compose demo in containers (root and Debian, or a running engine; else a counted skip)
	$(BIN)/python -m pytest -m deploy tests/deploy

flower-next: developer  ## Try the newest Flower of the index in an environment of its own; a row in docs/compatibility.md
	$(BIN)/python -m tests.flower.matrix

coverage: developer  ## Which lines the fast tests run: files with gaps, and the figure (TOTAL)
	$(BIN)/python -m pytest -m "not slow" -n 2 -q --cov --cov-report=term

lint: developer  ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: developer  ## Write requirements.lock, requirements-node.lock (a site) and docker/thin.lock, with hashes
	$(LOCK) --extra deploy --extra medical --extra report --extra simulation --extra studio --extra study \
		pyproject.toml -o requirements.lock
	$(LOCK) --extra medical pyproject.toml -o requirements-node.lock
	printf 'flwr\nnumpy\n' | $(LOCK) - -o docker/thin.lock

test-gpu: developer  ## Check and measure on a CUDA card (CASAM_GPU=cpu rehearses it); results in gpu-results
	PYTHON=$(BIN)/python bash tests/gpu/check.sh gpu-results

gpu-wheels: setup  ## For a card on a machine without an index: fetch what tests/gpu/wheels.txt names (Python 3.12)
	rm -rf .gpu-wheels && mkdir .gpu-wheels
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		$(addprefix --platform ,manylinux_2_34_x86_64 manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64) \
		-c constraints.txt -d .gpu-wheels -r tests/gpu/wheels.txt
	@du -sh .gpu-wheels; ls .gpu-wheels

bench-smoke: setup  ## Is anything a fifth slower than stored? (ratios only, under three minutes)
	$(BIN)/casam bench --smoke --baseline casam_bench/baseline.json

clean:  ## Remove .venv and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
