# Instar's front door: every target sets up what it needs. Wanted on the machine: make, and python3 >= 3.11.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

# The first of these that really runs, is new enough and can make environments. PYTHON=... overrides.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo "$$p"; break; fi; done)

# What runs Instar, and what also tests it. Each is a file, so that nothing is installed twice.
RUNS := $(VENV)/.runs
TESTS := $(VENV)/.tests

.PHONY: help run test check bench bench-search bench-serving clean

help: ## show this
	@echo 'make TARGET; every target first makes what it needs in $(VENV)/'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

run: $(RUNS) ## play the whole loop on a real digit reader; ARGS=--exit leaves at the end, ARGS=--help says more
	@echo '[3/3] starting the demo'
	@$(BIN)/instar demo $(ARGS)

test: $(TESTS) ## run all tests, the stories over real processes too; ARGS='-k word' runs some
	@$(BIN)/python -m pytest $(ARGS)

check: $(TESTS) ## format, lint, types, imports between the rooms, links in the documents
	@echo 'format:  ruff format --check' && $(BIN)/ruff format --check --quiet .
	@echo 'lint:    ruff check' && $(BIN)/ruff check --quiet .
	@echo 'types:   mypy --strict' && $(BIN)/mypy --no-error-summary
	@echo 'imports: lint-imports' && $(BIN)/lint-imports --no-logo
	@echo 'links:   docs/check_links.py' && $(BIN)/python docs/check_links.py
	@echo 'check: all well'

bench: $(TESTS) ## run every benchmark that has no table of its own, one after the other
	@for script in $$(grep -l '__main__' benchmarks/*/*.py benchmarks/*.py 2>/dev/null \
		| grep -v -E '^benchmarks/(search|serving)/' | sort); do \
		echo "== $$script"; $(BIN)/python "$$script" $(ARGS) || exit 1; done
	@echo 'The others take longer: make bench-serving, and make bench-search (hours)'

bench-search: $(TESTS) ## measure the search beside its peers, into docs/benchmarks; ARGS=--help says more
	@$(BIN)/python -m benchmarks.search.table $(ARGS)

bench-serving: $(TESTS) ## measure the serving beside its peers, into docs/benchmarks; ARGS=--help says more
	@$(BIN)/python -m benchmarks.serving.table $(ARGS)

clean: ## remove the environment, the caches and the demo's state
	rm -rf $(VENV) .instar/demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo 'make: expected a python3 >= 3.11 with the venv module, found none' >&2; \
		echo '      (python3 here: '"$$(python3 --version 2>&1 || true)"')' >&2; \
		echo '      On Debian and Ubuntu: apt-get install python3 python3-venv; else make PYTHON=/path/to/python3' >&2; \
		exit 1; fi
	@echo '[1/3] making $(VENV) with $(PYTHON), '"$$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(RUNS): pyproject.toml constraints.txt | $(BIN)/python
	@echo '[2/3] installing Instar and what it needs (torch is large: some minutes the first time)'
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(TESTS): $(RUNS)
	@echo '[3/3] installing what the tests need'
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
