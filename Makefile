# make demo | test | lock | clean. Needs Python 3.11 to 3.13 and make; uses uv where it is on PATH.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help python demo test lint lock clean

# The first of these that runs and is of a version that the locks are tried on; or say make PYTHON=...
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
endif
BIN := .venv/bin
EXAMPLE := examples/teach_a_skill
WORKERS ?= 3

help:
	@echo 'make demo    install, then data -> curation -> fine-tuning -> evaluation on this machine'
	@echo 'make test    install with the tools, then lint, types, payload environments and all tests'
	@echo 'make lock    write requirements*.lock from pyproject.toml (UPGRADE=1 moves the pins)'
	@echo 'make clean   remove .venv, caches and what the example left'

python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "Error: this needs Python 3.11, 3.12 or 3.13 ($(or $(PYTHON),python3): $$($(or $(PYTHON),python3) --version 2>/dev/null || echo not found)). Name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }

demo: python
	@$(PYTHON) .ci/venv.py
	@$(BIN)/nemotron pipelines run teach_a_skill --project $(EXAMPLE)
	@echo
	@echo 'The figures and pictures named above are on disk. Next, the lineage, logs and plots in the Dagster UI:'
	@echo '    cd $(EXAMPLE) && ../../.venv/bin/nemotron ui'

lint: python
	@$(PYTHON) .ci/venv.py --dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/nemotron env build
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lock: python
	@$(PYTHON) .ci/venv.py --dev
	@$(BIN)/python .ci/lock.py $(if $(UPGRADE),--upgrade)

clean:
	rm -rf .venv build dist .hypothesis .pytest_cache .ruff_cache .mypy_cache .nemotron $(EXAMPLE)/.nemotron
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
