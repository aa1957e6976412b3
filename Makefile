# make demo   a real audit of the pictures in examples/images, offline
# make test   lint, types and tests
# make site   the documentation as a web site, in build/site
# make test-lowest   the tests on the oldest versions that pyproject.toml allows, in an environment of their own
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

LOWEST = $(VENV)-lowest

.PHONY: demo test test-lowest check docs site clean

demo: $(VENV)/.installed
	$(BIN)/ood-audit run examples/images --labels examples/classes.txt --store $(VENV)/demo

test: $(VENV)/.installed-dev check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	if [ -x $(BIN)/biome ]; then $(BIN)/biome ci --error-on-warnings; fi  # it is only installed on Linux, x86-64

# Writes what is generated: docs/cli.md, the outputs that the pages show, and the figures.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m tests.helpers.readme
	$(BIN)/python docs/figures/draw.py

# Builds the site; any warning is an error.
site: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@ $(VENV)/.installed

$(LOWEST)/.installed: pyproject.toml .ci/lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q uv
	$(LOWEST)/bin/uv pip install -q --compile-bytecode --python $(LOWEST)/bin/python \
		--resolution lowest-direct --overrides .ci/lowest.txt -e '.[dev,umap]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST)
