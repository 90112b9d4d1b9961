# Everything runs in a virtual environment that is made on first use and again when a
# requirements file changes.
#   make test PYTHON=python3.12 VENV=.venv312             another Python
#   make quickstart REQUIREMENTS=requirements-cuda.txt    another accelerator (or -tpu)
PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= requirements.txt
WORKDIR ?= runs/unclip
DIGITS ?= runs/digits

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(REQUIREMENTS)
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations 10

# Modules are compiled when they are first imported, few of the libraries', and bytecode is kept:
# where the environment forbids that, each start would compile all of them anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help quickstart digits test test-slow lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

quickstart: $(INSTALLED)  ## train unCLIP on scenes of shapes, draw captions, read them back
	@$(BIN)/python main.py --config=configs/unclip_shapes.py --workdir=$(WORKDIR)
	@$(BIN)/python main.py --mode=generate --workdir=$(WORKDIR) --prompts=configs/unclip_shapes.txt
	@$(BIN)/python main.py --mode=evaluate --workdir=$(WORKDIR)

digits: $(INSTALLED)  ## train one small model on handwritten digits, sample from it, evaluate it
	@$(BIN)/python main.py --config=configs/digits.py --workdir=$(DIGITS)
	@$(BIN)/python main.py --mode=sample --workdir=$(DIGITS)
	@$(BIN)/python main.py --mode=evaluate --workdir=$(DIGITS)

test: lint  ## check style, then run the tests
	@$(PYTEST)

test-slow: $(INSTALLED)  ## run the long tests too
	@$(PYTEST) --slow

lint: $(INSTALLED)  ## check style
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet

format: $(INSTALLED)  ## mend style
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet

clean:  ## remove the virtual environment and caches; work directories stay
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): $(REQUIREMENTS) requirements.txt requirements-test.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is not Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing $(REQUIREMENTS) and requirements-test.txt into $(VENV) (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile \
	  -c constraints.txt -r $(REQUIREMENTS) -r requirements-test.txt
	@touch $@
