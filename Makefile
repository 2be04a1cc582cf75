# make demo    .venv, install, train on the built-in world, print the table
# make test    .venv, install, lint, types, layers, tests
# make bench   every benchmark, small (SIZE=full: as published, for hours), into runs/bench (OUT=…), with a page of them
# make results the pages that are made from benchmarks/results/*.json: its README.md, docs/results.md, README's table
# make notebooks run the notebooks and keep their outputs, charts as pictures (PAGES="01_quickstart …": only these)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SIZE ?= small
OUT ?= runs/bench

.PHONY: demo test lint bench results notebooks clean

demo: $(VENV)/.demo
	$(BIN)/recsys train data=world world=tiny model=als

# A test is given one thread; files are shared between a worker a core.
test: $(STAMP) lint
	$(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run_all.py --size $(SIZE) --out $(OUT)

results: $(STAMP)
	$(BIN)/python benchmarks/page.py

notebooks: $(STAMP)
	$(BIN)/python notebooks/render.py $(PAGES)

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
