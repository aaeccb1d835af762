# make demo: set up everything and watch a transformer learn, in about two minutes.
# make test: set up everything, then lint, types and tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo train test lint format bench clean

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

bench: setup
	$(BIN)/python -m stn.benchmark layers

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
