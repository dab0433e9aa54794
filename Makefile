# `make demo` and `make test` need Python 3.11 or newer (PYTHON=python3.12 picks another) and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := dev train app nudity eval private # what requirements.lock holds

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench lock sbom clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with the versions of requirements.lock

# Every extra, so that every test runs; `nudity` among them, whose nudenet carries an AGPL-3.0 text.
$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed and $(PYTHON) is not: install it, then \`make PYTHON=python3.11 $(MAKECMDGOALS)\`." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
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

lock: ## requirements.lock again, each version as it is where it still fits
	$(PYTHON) -m venv build/uv && build/uv/bin/pip install --disable-pip-version-check -q "uv>=0.9"
	grep -v -- --hash= requirements.lock | sed 's/ *\\$$//' > build/constraints.txt
	grep '^#' requirements.lock > build/requirements.lock
	build/uv/bin/uv pip compile pyproject.toml $(addprefix --extra ,$(EXTRAS)) --python-version 3.11 \
		--universal -c build/constraints.txt --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links -q >> build/requirements.lock
	mv build/requirements.lock requirements.lock

sbom: ## dist/sbom.cdx.json: every locked package with its hashes, as CycloneDX
	$(PYTHON) -m venv build/sbom && build/sbom/bin/pip install --disable-pip-version-check -q "cyclonedx-bom==7.5.0"
	mkdir -p dist
	build/sbom/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --of JSON \
		-o dist/sbom.cdx.json

clean: ## remove .venv, caches and builds; runs/ is kept
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
