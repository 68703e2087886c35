# Everything begins with `make install`, and nothing is done twice.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: install quickstart test lint compatibility bench examples clean

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

quickstart: install
	$(BIN)/python -m blip_recipe.finetune recipes/shapes_tiny.json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy blip_recipe tests benchmarks

test: lint
	$(BIN)/python -m pytest -q

# What a run saves, loaded by plain transformers: the newest 5, and 4.57 beside it in a folder of its own.
compatibility: install
	rm -rf build/compatibility
	$(BIN)/pip install --quiet --no-deps --target build/compatibility/transformers4 \
		"transformers==4.57.*" "huggingface-hub>=0.36,<1" "tokenizers>=0.22,<0.23"
	$(BIN)/python tests/compatibility/save_repositories.py build/compatibility/saved
	$(BIN)/python tests/compatibility/check_repositories.py build/compatibility/saved
	PYTHONPATH=build/compatibility/transformers4:. \
		$(BIN)/python tests/compatibility/check_repositories.py build/compatibility/saved

bench: install
	$(BIN)/python -m benchmarks.scoring

clean:
	rm -rf .venv

examples: quickstart  ## the example cards, from the run that they describe
	cp outputs/shapes_tiny/README.md outputs/shapes_tiny/*.png model_cards/examples/shapes_tiny/
