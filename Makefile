# What people run and what CI runs are the same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
DEMO := examples/digits

.PHONY: help setup demo test test-thorough test-lowest test-slow test-gpu check clean

help:
	@echo "make demo           train a small model, build it, print the table"
	@echo "make test           the suite"
	@echo "make test-thorough  whole builds, and what else takes some seconds a test"
	@echo "make test-lowest    both with the lowest versions that pyproject.toml allows"
	@echo "make test-slow      the tests that take longer still"
	@echo "make test-gpu       on an NVIDIA GPU: its tests, then engines against peers in one table"
	@echo "make check          format, lint, types, Dockerfiles, import directions"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if not (3, 11) <= sys.version_info[:2] <= (3, 13) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: setup
	cd $(DEMO) && $(BIN)/python train.py
	cd $(DEMO) && $(BIN)/deploy build model.pt

# Many processes read the same files: what one has compiled is kept for the others. Three of them on
# two cores gain nothing by threads of their own: with one each they took a tenth less time.
ONE_THREAD := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
SIDE_BY_SIDE := -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=12
test: setup
	$(ONE_THREAD) $(BIN)/python $(SIDE_BY_SIDE) -m "not thorough and not slow and not gpu"

test-thorough: setup
	$(ONE_THREAD) $(BIN)/python $(SIDE_BY_SIDE) -m "thorough and not slow and not gpu"

# Python 3.11 or 3.12: the lowest numpy has no wheels for newer ones.
LOWEST := $(CURDIR)/.venv-lowest
test-lowest: $(LOWEST)/.installed
	$(ONE_THREAD) $(LOWEST)/bin/python $(SIDE_BY_SIDE) -m "not slow and not gpu"

$(LOWEST)/.installed: pyproject.toml tests/lowest_versions.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check packaging 'setuptools>=77,<82'
	$(LOWEST)/bin/python tests/lowest_versions.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-gpu: setup
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py --short -o gpu.json

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/python -m pytest -q tests/test_architecture.py

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis
