# Everything a fresh machine with Python ≥ 3.11 and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-all lint docs bench clean

help:
	@echo "make demo      set up, then the whole road on a synthetic dataset (about 4 minutes)"
	@echo "make test      set up, then the tests (under 10 minutes)"
	@echo "make test-all  set up, then the long tests too"
	@echo "make lint      formatting, style, types, import contracts, spelling"
	@echo "make docs      the pages of docs/ as a site, in site/"
	@echo "make bench     the benchmarks of speed"
	@echo "make clean     remove the environment and what tools leave behind; runs/ and data/ stay"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cpprune needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Try: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/cpprune demo

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow and not slurm and not browser" $(ARGS)

test-all: setup
	$(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: setup
	benchmarks/all.sh $(BIN)/python

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
