# Ordinary make and pip. Two variables can be set on the command line: PYTHON (3.11 or newer) makes the virtual
# environment, VENV is where it lies.
PYTHON ?= python3
VENV ?= .venv
PRESET ?= quick
ONLY ?=
PIP_OPTIONS ?=
BOOK_OPTIONS ?=

RUN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help study book picture test bench lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  variables: PRESET=quick|standard|tiny  ONLY=<benchmark id>  PYTHON=python3  VENV=.venv"

# A stamp beside the environment is renewed when pyproject.toml changes, so that a second run installs nothing.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("$(PYTHON) is %d.%d; CryoSentinel needs Python 3.11 or newer: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install $(PIP_OPTIONS) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN)/python -m pip install $(PIP_OPTIONS) -e '.[dev,ingest]'
	@touch $@

study: $(VENV)/.installed  ## run the whole study on the embedded benchmark and build the book (PRESET=quick)
	$(RUN)/python -m cryosentinel study --preset $(PRESET)
	$(RUN)/jupyter-book build $(BOOK_OPTIONS) book/
	@echo "The book: $(CURDIR)/book/_build/html/index.html"

book: $(VENV)/.installed  ## build the book from the last study (runs the quick study first if there is none)
	$(RUN)/jupyter-book build $(BOOK_OPTIONS) book/
	@echo "The book: $(CURDIR)/book/_build/html/index.html"

picture: $(VENV)/.installed  ## put the study's cover where README and book show it
	$(RUN)/python scripts/picture.py

# Two processes of one thread each: threads that wait for each other on two cores are slower than one.
test: $(VENV)/.installed-dev  ## run the tests, notebooks and book included
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.installed-dev  ## run the benchmarks beside their peers (ONLY=id for one)
	$(RUN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

lint: $(VENV)/.installed-dev  ## style, types, and notebooks without output
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	@shopt -s nullglob; notebooks=(notebooks/*.ipynb); test $${#notebooks[@]} -eq 0 || $(RUN)/nbstripout --keep-id --verify "$${notebooks[@]}"

format: $(VENV)/.installed-dev  ## put code in the project's style and strip the notebooks
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .
	$(RUN)/nbstripout --keep-id notebooks/*.ipynb

clean:  ## remove what was generated; the virtual environment stays
	rm -rf outputs book/_build book/chapters book/assets .pytest_cache .mypy_cache .ruff_cache
