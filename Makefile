# Everything a fresh machine with Python ≥ 3.11 and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What `cpprune` itself needs (with what exports models, 113 MB), and what its developers need beside it.
PRODUCT := $(VENV)/.product
STAMP := $(VENV)/.installed

UV := uv==0.13.9
SYNC := UV_PROJECT_ENVIRONMENT=$(VENV) UV_PYTHON_DOWNLOADS=never $(BIN)/uv sync --locked --inexact --compile-bytecode

PYTEST := $(BIN)/python -m pytest
# One worker more than cores, since many tests wait for the processes that they start.
# Neighbours stay on one worker, since they share what is made for a module.
WORKERS := --dist worksteal
WORKERS += -n $(shell echo $$(( ($$(nproc 2>/dev/null || echo 2) < 4 ? $$(nproc 2>/dev/null || echo 2) : 4) + 1 )))

.PHONY: help setup demo test test-all lint lock docs pages bench clean

help:
	@echo "make demo      set up, then the whole road on a synthetic dataset (5 to 15 minutes on 2 cores: quickest with AVX-512)"
	@echo "make test      set up, then the tests (about 10 minutes on 2 cores)"
	@echo "make test-all  set up, then all tests (about 80 minutes on 2 cores; what the long ones need: CONTRIBUTING.md)"
	@echo "make lint      formatting, style, types, import contracts, spelling"
	@echo "make lock      bring uv.lock up to date with pyproject.toml and the newest packages"
	@echo "make docs      the pages of docs/ as a site, in site/"
	@echo "make pages     write what docs/ and CONTRIBUTING.md take from the code"
	@echo "make bench     the benchmarks of speed"
	@echo "make clean     remove the environment and what tools leave behind; runs/ and data/ stay"

setup: $(STAMP)

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cpprune needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Try: make PYTHON=python3.11 ..."; exit 2; }
	@echo "Making $(VENV) and installing uv, which installs the rest …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(UV)'

$(PRODUCT): pyproject.toml uv.lock | $(BIN)/uv
	@echo "Installing cpprune and what it needs into $(VENV), as pinned by uv.lock: about 3 GB, most of it torch …"
	@$(SYNC) --extra export-c
	@touch $@

$(STAMP): $(PRODUCT)
	@echo "Installing what developers need beside it: tests, lint, docs, extras …"
	@$(SYNC) --extra dev
	@touch $@

demo: $(PRODUCT)
	$(BIN)/cpprune demo

test: setup
	$(PYTEST) $(WORKERS) -m "not slow and not slurm and not browser" $(ARGS)

# In one run rather than after `test`: what many tests share is then made once.
test-all: setup
	$(PYTEST) $(WORKERS) -m "not slurm and not browser" $(ARGS)
	$(PYTEST) -m "slurm or browser" $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd benchmarks && MYPYPATH=.. ../$(BIN)/mypy --config-file= --ignore-missing-imports --follow-imports=silent .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python docs/map.py

lock: $(BIN)/uv
	$(BIN)/uv lock --upgrade

docs: setup
	$(BIN)/python -m cpprune.settings.page docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

pages: setup
	$(BIN)/python docs/map.py --write
	$(BIN)/python -m cpprune.settings.page docs/configuration.md

bench: setup
	benchmarks/all.sh $(BIN)/python

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
