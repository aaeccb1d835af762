# make demo: set up everything and watch a transformer learn, in a few minutes, most of which installs PyTorch.
# make test: set up everything, then lint, types and tests.
# make test-lowest: the tests with the lowest versions that pyproject.toml admits, in an environment of their own.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo train test test-lowest lint format bench clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python -m stn.train experiment=demo

train: setup
	$(BIN)/python -m stn.train

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	python3.11 -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[dev]"
	touch $@

test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n auto

bench: setup
	$(BIN)/python -m stn.benchmark layers

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-lowest build *.egg-info .mypy_cache .ruff_cache .pytest_cache
