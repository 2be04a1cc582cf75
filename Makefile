# make demo    .venv, install, train on the built-in world, print the table
# make test    .venv, install, lint, types, layers, tests
# make bench   the benchmark scripts, results under benchmarks/results/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench clean

demo: $(VENV)/.demo
	$(BIN)/recsys train data=world world=tiny model=als

test: $(STAMP) lint
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

# The constraints pin torch to one release, so that pip takes a CPU build where one is at hand.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else "recsys needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[cpu]'
	touch $@

$(STAMP): $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[cpu,dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.bench: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e '.[cpu,dev,bench]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
