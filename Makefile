# Everything begins with `make install`, and nothing is done twice.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
# Some images forbid it; each of the tests' processes would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install quickstart test test-all checks lint compatibility compatibility-all bench bench-gpu kills soak examples fuzz docs notebooks clean

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps --editable .  # for the command `blip-recipe`
	touch $@

quickstart: install
	$(BIN)/python -m blip_recipe.finetune recipes/shapes_tiny.json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python tests/imports.py
	$(BIN)/mypy blip_recipe tests benchmarks

# A process of pytest on each core, with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(CORES) --dist worksteal --durations 20

test: checks
	$(PYTEST) -m "not long"

test-all: checks  ## with the proofs that take minutes each, and hours together
	$(PYTEST)
	$(MAKE) kills soak fuzz compatibility-all

checks: install
	$(MAKE) -j 2 lint compatibility

# What a run saves, loaded by plain transformers: the installed one, and others (VERSIONS="4.57.* 5.18.*").
VERSIONS ?= 4.57.*
compatibility: install
	$(BIN)/python tests/compatibility/run.py $(foreach version,$(VERSIONS),"$(version)")

# The core tests and the quickstart recipe with the lowest and the newest packages of requirements.txt; other Pythons
# as in SETS="newest@3.13 newest@3.14".
SETS ?= lowest newest
compatibility-all: compatibility
	$(BIN)/python tests/compatibility/environments.py $(SETS)

bench: install
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.loading

bench-gpu: install  ## all that needs a GPU, in under 9 minutes
	$(BIN)/python -m benchmarks.gpu

soak: install  ## a folder of 2,000 pictures captioned, killed three times and resumed
	$(BIN)/python -m benchmarks.captioning

kills: install  ## runs killed fifty times, compared with runs that nobody killed: about 20 minutes
	$(BIN)/python tests/kills.py --kills 50

FUZZ_INPUTS ?= 200000

fuzz: install  ## odd inputs of every kind; FUZZ_INPUTS says how many
	FUZZ_INPUTS=$(FUZZ_INPUTS) $(BIN)/python -m pytest -q -s --timeout 0 tests/fuzz

notebooks: install  ## executes and saves them
	$(BIN)/python notebooks/execute.py

docs: install  ## the site, in build/site; broken links are errors
	$(BIN)/pip install --quiet -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv

examples: install  ## the example cards, from the runs that they describe
	PYTHONPATH=. $(BIN)/python tests/make_examples.py
