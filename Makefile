# Everything runs in a virtual environment of its own (.venv), made on first use. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a large yellow triangle circling clockwise slowly at the center on a plain black background
SWITCH ?= a large red circle bouncing sideways quickly at the center on a striped gray background camera panning left
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test check lint-fix clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## make .venv and install the package with its developer tools (again only when the pins change)

# torch comes first and pinned, so that nothing else decides which build of it is taken.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $$($(PYTHON) --version) is too old, 3.11 or newer is needed: make install PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## make a short video with the embedded model, its prompt switched halfway: demo.mp4, and demo.png with its frames
	$(BIN)/forcing-kv generate "$(PROMPT)" --switch 4 "$(SWITCH)" --seconds 8 -o demo.mp4 --contact-sheet demo.png --overwrite
	@echo "the video is $(CURDIR)/demo.mp4, its frames are on $(CURDIR)/demo.png"

test: install  ## run the tests, on all cores
	$(BIN)/python -m pytest -n auto --dist worksteal

check: install  ## lint, format check and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lint-fix: install  ## let ruff fix and format what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
