# Two commands do it all: `make demo` and `make test`. Each makes .venv and installs what it needs, once.

# Any Python from 3.10 on makes the virtual environment; choose one with `make test PYTHON=python3.12`.
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo $$candidate && break; done)
VENV ?= .venv
# Options for every pip install, for example PIP_ARGS="--index-url ..." to take another build of torch.
PIP_ARGS ?=
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2

# The oldest transformers that checkpoints are tested with, in an environment of its own.
OLDEST_TRANSFORMERS = 5.0.0
OLDEST_VENV = .venv-oldest

BIN = $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
export HF_HUB_DISABLE_TELEMETRY = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all test-oldest browser docs lint format bench readme clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.dev ## make .venv with everything for development

demo: $(VENV)/.demo ## compress a real model, reload it and show what it costs and keeps
	$(BIN)/fewfold demo --out demo-out

test: $(VENV)/.test ## the tests, in minutes
	$(PYTEST) -m "not full" -n $(WORKERS)

test-all: $(VENV)/.test $(OLDEST_VENV)/.test ## every test, and checkpoints on the oldest transformers too
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -m checkpoint -n $(WORKERS)
	$(PYTEST) -n $(WORKERS)

test-oldest: $(OLDEST_VENV)/.test ## the checkpoint tests on the oldest transformers
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -m checkpoint -n $(WORKERS)

browser: $(VENV)/.test ## a headless Chromium for the tests of the report
	@$(BIN)/python tests/install_browser.py

docs: $(VENV)/.docs ## the documentation site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## let ruff mend and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## run every benchmark; each writes its table
	@found=0; for file in benchmarks/[a-z]*.py; do [ -f "$$file" ] || continue; found=1; \
		echo "== $$file"; $(BIN)/python "$$file" || exit 1; done; \
		[ $$found = 1 ] || echo "there are no benchmarks yet"

readme: $(VENV)/.demo ## run the demo and put its table and picture into README.md and docs
	$(BIN)/fewfold demo --out demo-out --readme README.md

clean: ## remove environments, caches and what the demo wrote
	rm -rf .venv .venv-oldest demo-out build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file stands for an installed extra, and goes stale when the project or its pins change.
$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then echo "fewfold needs Python 3.10 or newer; name one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; fi
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.bench $(VENV)/.docs $(VENV)/.dev: $(VENV)/.%: $(VENV)/.made pyproject.toml $(CONSTRAINTS)
	@echo "installing fewfold[$*] into $(VENV) (the first time takes some minutes)"
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint $(CONSTRAINTS) --editable '.[$*]'
	@touch $@

# Only what depends on transformers may be older than its pin here.
NEWER = transformers|huggingface-hub|tokenizers|sentence-transformers|peft|accelerate|torchao|hf-xet|datasets
$(OLDEST_VENV)/.test: pyproject.toml $(CONSTRAINTS) Makefile
	@$(MAKE) --no-print-directory VENV=$(OLDEST_VENV) $(OLDEST_VENV)/.made
	@grep -vE '^($(NEWER))==' $(CONSTRAINTS) > $(OLDEST_VENV)/constraints.txt
	@echo 'transformers==$(OLDEST_TRANSFORMERS)' >> $(OLDEST_VENV)/constraints.txt
	@echo "installing fewfold[test] with transformers $(OLDEST_TRANSFORMERS) into $(OLDEST_VENV)"
	@$(OLDEST_VENV)/bin/python -m pip install --quiet $(PIP_ARGS) --constraint $(OLDEST_VENV)/constraints.txt --editable '.[test]'
	@touch $@
