# `make demo` and `make test` need Python 3.11 or newer (PYTHON=python3.12 picks another) and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with the versions of requirements.lock

# Every extra, so that every test runs; `nudity` among them, whose nudenet carries an AGPL-3.0 text.
$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed and $(PYTHON) is not: install it, then \`make PYTHON=python3.11 $(MAKECMDGOALS)\`." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock -e ".[dev,train,app,nudity,eval,private]"
	@touch $@

demo: setup ## erase "dog" from the embedded model, as a report in runs/dog
	$(BIN)/erase --concept dog --out runs/dog
	@echo "open file://$(CURDIR)/runs/dog/report.html"

test: setup ## the tests that take seconds (PYTEST_ARGS is passed on)
	$(BIN)/pytest -n auto --dist loadfile $(PYTEST_ARGS)

test-all: setup ## every test, those marked slow included
	$(BIN)/pytest -n auto --dist loadfile -m "" $(PYTEST_ARGS)

lint: setup ## ruff, ruff format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## the benchmark over concepts
	$(BIN)/python -m benchmarks.concepts

clean: ## remove .venv, caches and builds; runs/ is kept
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
