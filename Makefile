# Two commands: `make demo` does the main job on real data, `make test` checks everything. Both make .venv from pinned versions.
# The CPU build of torch comes first, so that nothing after it pulls a CUDA one. Where the package index gives the CUDA build of
# torch for Linux, name PyTorch's own: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
OUT ?= demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check mutate clean

demo: $(VENV)/.ready
	$(BIN)/negatron demo --out $(OUT)

test: check
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Applies each mutation of tests/invariants/mutations_*.toml to a copy and expects its test to go red.
mutate: $(VENV)/.ready-dev
	$(BIN)/python tests/mutate.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "negatron needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: constraints.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[all]'
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --editable '.[all,dev]'
	touch $@

clean:
	rm -rf $(VENV)
