# Development tasks for people and CI; `make` lists them.
# Requires make, Python 3.11 or newer and a package index for pip; no root, no Docker.

PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_BENCH := $(VENV)/.installed-bench
INSTALLED_FUZZ := $(VENV)/.installed-fuzz
# Versions of maim_message whose clients tests run, beside the one in .venv.
MAIM := 0.2.0 0.3.8 0.5.7 0.6.8 0.7.5
# Version of LangBot whose widget and web client tests run.
LANGBOT := 4.10.8
# Last file that protos/compile.py writes.
STUBS := build/stubs/trunkline/v1/catalogue.py
# Distributions of this repository, each before those that depend on it.
PROJECTS := protos runtime edge router clients/python
EDITABLE := $(PROJECTS:%=-e ./%)
PROTOS := $(shell find protos -name '*.proto' -o -path '*trunkline/v1/*.py') protos/compile.py
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Without bytecode each of the hundreds of processes that tests start would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run certs check test lint format bench fuzz soak stress protos stubs-check constraints clean

help: ## list the targets
	@echo "make run     start Trunkline, on this machine only"
	@echo "make test    check everything"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do \
		printf '  %-12s %s\n' "$$name" "$$text"; done

setup: $(INSTALLED) $(STUBS) ## create .venv and install everything into it

run: setup ## start router, edge and two agents on 127.0.0.1, and print commands to try
	@exec $(BIN)/python deploy/run.py

certs: setup ## create TLS certificates in ./certs, valid for 90 days; NAMES=router.example,10.0.0.1 sets host names
	@FORCE='$(FORCE)' NAMES='$(NAMES)' CERTS='$(CERTS)' $(BIN)/python deploy/certs.py

check: lint ## lint, then run the tests that need no process and no socket, in under a minute
	$(BIN)/python -m pytest -m pure -n auto --maxprocesses 4 --max-worker-restart 0 --dist worksteal $(ARGS)

test: lint $(MAIM:%=build/maim/%) build/langbot/$(LANGBOT) ## lint, then run every test; ARGS="-k name" is passed to pytest
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup ## check style, types, layers, contract and container files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python protos/lint.py
	$(BIN)/hadolint router/Dockerfile edge/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

format: setup ## reformat Python and .proto files
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

bench: setup $(INSTALLED_BENCH) ## run the benchmarks; ARGS are passed to bench/run.py
	PYTHONPATH=.:deploy $(BIN)/python bench/run.py $(ARGS)

fuzz: setup $(INSTALLED_FUZZ) ## fuzz the dialects for a minute; FUZZ_SECONDS=600 sets the time
	$(BIN)/python fuzz/run.py

soak: setup ## run the state machines with many steps; MINUTES=60 sets the time for each, SEED= repeats a run, MACHINE= chooses
	PYTHONPATH=deploy $(BIN)/python -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(MACHINE),--machine $(MACHINE))

stress: setup ## inject faults into routers and databases; SEED= repeats a run, SCENARIO= chooses, ROUNDS= sets how many
	PYTHONPATH=deploy $(BIN)/python -m tests.stress $(if $(SEED),--seed $(SEED)) $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(ROUNDS),--rounds $(ROUNDS))

build/maim/%: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ maim-message==$*

build/langbot/%: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ langbot==$*

protos: $(INSTALLED) ## recompile the contract to build/stubs
	$(BIN)/python protos/compile.py build/stubs

stubs-check: setup ## run the programs of protos/README.md in each language installed here; LANGUAGES=Go chooses
	PYTHONPATH=deploy $(BIN)/python -m tests.contract.readme_programs $(LANGUAGES)

constraints: ## regenerate constraints.txt with the newest compatible versions
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check $(EDITABLE) -e '.[dev,bench,fuzz]'
	{ sed -n '/^#/p' constraints.txt; \
		build/constraints/bin/python -m pip freeze --exclude-editable; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/constraints

clean: ## remove build output and .venv; ./data is kept
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): $(PROJECTS:%=%/pyproject.toml) pyproject.toml protos/hatch_build.py constraints.txt
	@$(PYTHON) -c '' 2>/dev/null || { \
		echo "$(PYTHON) not found. Install Python 3.11 or newer, or set its path: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Trunkline requires Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Set another: make PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv. Or set another Python: make PYTHON=python3.12" >&2; \
		exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "Creating a virtual environment in $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing Trunkline and its tools into $(VENV); the first time takes a minute or two"
	@$(PIP_INSTALL) $(EDITABLE) -e '.[dev]'
	@touch $@
	@echo "Installed"

$(INSTALLED_BENCH): $(INSTALLED)
	@echo "Installing the benchmark dependencies"
	@$(PIP_INSTALL) $(EDITABLE) -e '.[dev,bench]'
	@touch $@

$(INSTALLED_FUZZ): $(INSTALLED)
	@echo "Installing the fuzzing dependencies"
	@$(PIP_INSTALL) $(EDITABLE) -e '.[dev,fuzz]' || { \
		echo "Cannot install atheris: it supports Linux and some Python versions only, such as 3.11" >&2; \
		exit 1; }
	@touch $@

# Installing compiles the contract, too. This rule is for a changed contract or a removed build/.
$(STUBS): $(PROTOS) | $(INSTALLED)
	@echo "Compiling the contract"
	@$(BIN)/python protos/compile.py build/stubs
