# What a newcomer types. Everything lives in .venv; nothing outside this directory is touched.
#   make demo            the whole job in ten minutes        make demo MINUTES=2   in two
#   make test            style, types, layers, tests         make bench            speed beside its peers
#   make docs            the picture and tables of the lineage
PYTHON ?= python3
MINUTES ?= 10
RUN ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
# A smaller torch, without CUDA: make setup PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu'
PIP_FLAGS ?=

.PHONY: setup demo test bench docs clean

setup: $(STAMP)

# Installs again only when what is to be installed changes: the second time needs neither time nor network.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "etymon needs Python 3.11 or later: make PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	touch $@

# Always a fresh run, so that twice in a row means the same; `etymon run $(RUN)` goes on with one that was interrupted.
demo: setup
	$(BIN)/etymon run recipes/demo.yaml minutes=$(MINUTES) run=$(RUN) --fresh

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

bench: setup
	@for file in benchmarks/*.py; do test -e "$$file" || continue; echo "── $$file"; $(BIN)/python "$$file" || exit 1; done

# The generated parts of the pages: the picture and the tables of the lineage.
docs: setup
	$(BIN)/etymon lineage --svg docs/images/lineage.svg --markdown docs/lineage.md

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
