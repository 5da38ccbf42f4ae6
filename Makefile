# Two ways in: `make quickstart` and `make test`. Both do all the set-up they need, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.raylm-ready
# What torch compiles is compiled with the ninja that stands in the environment.
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint types docs bench-quick

help:
	@echo 'make setup        the environment in $(VENV), from constraints.txt'
	@echo 'make quickstart   train a tiny model on this machine, losing a node on the way'
	@echo 'make test         the default tests'
	@echo 'make lint types   ruff and mypy'
	@echo 'make docs         the pages of docs/ that follow from the code'
	@echo 'make bench-quick  every benchmark, about a minute each'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raylm needs Python 3.11 or newer; try make PYTHON=python3.12 setup")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
# torch first: DeepSpeed's own set-up looks for it.
	$(BIN)/python -m pip install --quiet setuptools wheel "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c 'from raylm.train.deepspeed_internals import quiet_deepspeed; quiet_deepspeed()'
	@touch $@

quickstart: setup
	$(BIN)/raylm quickstart

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/raylm schema --markdown > docs/jobs.md
	$(BIN)/raylm schema > docs/job.schema.json
	$(BIN)/python -m raylm.testing.documents

bench-quick: setup
	for script in step ray_tax checkpoint stream elastic goodput prepare; do $(BIN)/python benchmarks/$$script.py --quick || exit 1; done
