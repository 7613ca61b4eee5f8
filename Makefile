# Every target sets up .venv by itself when that is not yet done; nothing needs to be installed before
# but Python >= 3.11, git and make. `uv` is used where it is on the PATH, because it is faster.

VENV := .venv
BIN := $(VENV)/bin
# The stamp is a copy of the pyproject.toml that was installed; UNFINISHED marks a set-up that was cut off.
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
# Tests run side by side, each process with one thread: many small tensors gain nothing from more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow lint format docs check clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

setup: $(STAMP) ## create .venv and install the package with its development tools

demo: $(STAMP) ## make a small data set, train on it, evaluate, write runs/demo/report.html
	$(BIN)/boxwright demo $(ARGS)

test: $(STAMP) ## run the tests; ARGS="tests/ops -k iou" chooses some
	$(PYTEST) -m "not slow" $(ARGS)

slow: $(STAMP) ## run the tests that take minutes
	$(PYTEST) -m slow $(ARGS)

lint: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP) ## put the code into the common format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## build the documentation site in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

check: lint docs test ## all that the continuous integration runs

clean: ## remove what was built, the environment included
	rm -rf $(VENV) docs/_build docs/reference/generated dist build .pytest_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml
	@if [ -e $(UNFINISHED) ]; then echo "The last set-up of $(VENV) was cut off; starting afresh."; rm -rf $(VENV); fi
	@if cmp -s pyproject.toml $@; then touch $@; else $(MAKE) --no-print-directory install; fi

.PHONY: install
install:
	@echo "Setting up $(VENV) (once; a few minutes, most of it PyTorch) ..."
	@if command -v uv >/dev/null 2>&1; then \
		set -e; [ -x $(BIN)/python ] || uv venv --quiet --python '>=3.11' $(VENV); \
		touch $(UNFINISHED); uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
		set -e; \
		[ -n "$(PYTHON)" ] || { echo "No Python >= 3.11 found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }; \
		[ -x $(BIN)/pip ] || "$(PYTHON)" -m venv --clear $(VENV) || { \
			rm -rf $(VENV); \
			echo "\`$(PYTHON) -m venv\` failed; install your system's python3-venv package, or uv" >&2; exit 1; }; \
		touch $(UNFINISHED); \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@cp pyproject.toml $(STAMP)
	@rm -f $(UNFINISHED)
