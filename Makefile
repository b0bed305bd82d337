# Everything runs from .venv, which `make setup` makes; targets that need it make it.
SHELL := /bin/bash
BIN := .venv/bin
ENGINE := .ci/with-engine

.PHONY: help setup servers test-setup lint unit test test-full bench demo clean

help:  ## print this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup:  ## install what is missing (OS packages as root, .venv); instant when nothing changed
	@.ci/setup

servers: setup  ## MinIO and versitygw for tests, built once (6 min) where they are not on PATH
	@$(BIN)/python -m batchyard.worker.binaries minio versitygw >/dev/null

test-setup: servers  ## what only tests need: Compose, a browser, and the servers above
	@.ci/setup test

lint: setup  ## ruff, mypy, pyright, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONPATH=.ci/ns $(BIN)/lint-imports

unit: setup  ## tests that need neither Redis nor an engine
	$(BIN)/pytest tests/unit tests/property

test: test-setup lint  ## lint and all tests but the long ones; starts dockerd where none answers, and stops it
	$(ENGINE) $(BIN)/pytest -m "not full and not bench"

test-full: test-setup lint  ## lint and all tests, the long ones too
	$(ENGINE) $(BIN)/pytest -m "not bench"

bench: servers  ## measure; writes build/bench.json
	@mkdir -p build
	$(ENGINE) $(BIN)/python tests/bench/run.py

demo: setup  ## the product from one end to the other on this machine
	$(ENGINE) $(BIN)/python demo/run.py

clean:  ## remove what the other targets made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
