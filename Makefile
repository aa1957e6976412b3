# make demo   a real audit of the pictures in examples/images, offline
# make test   lint, types and tests
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check docs clean

demo: $(VENV)/.installed
	$(BIN)/ood-audit embed examples/images --store $(VENV)/demo
	$(BIN)/ood-audit report --labels examples/classes.txt --top 15 --store $(VENV)/demo

test: $(VENV)/.installed-dev check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Writes what is generated: docs/cli.md, and the outputs that the README shows.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m tests.readme

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV)
