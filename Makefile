# Every target sets itself up in .venv; a second call starts at once.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ARGS ?=
WORKERS ?= auto

.PHONY: help demo test gpu lint docs clean

help:
	@echo "make demo   train three adapters on news texts, compose them, remove one (no network after the set-up); ARGS=--compare: a mixture beside plain LoRA"
	@echo "make test   run the tests; ARGS='-m slow' runs the slow ones, ARGS=tests/routing one folder, WORKERS=0 in one process"
	@echo "make gpu    on a machine with a CUDA device: its tests, then the kernels' benchmark with a verdict per target"
	@echo "make lint   check style, format, types and prose"
	@echo "make docs   build the documentation into site/"
	@echo "make clean  remove .venv, caches and built files (runs/ stays)"

demo: $(VENV)/.demo
	$(BIN)/moe-adapt demo $(ARGS)

test: $(VENV)/.dev
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# Tests that fail do not keep the benchmark from running.
gpu: $(VENV)/.dev
	failed=0; HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu $(ARGS) || failed=1; \
	$(BIN)/python benchmarks/kernels/gpu.py --out benchmarks/results/kernels_gpu.json || failed=1; exit $$failed

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/prose.py

docs: $(VENV)/.docs
	$(BIN)/python docs/hooks/method_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per extra: made when the extra is installed, out of date when pyproject.toml changes.
$(VENV)/.demo $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: pyproject.toml | $(VENV)/.python
	@echo "installing moe-adapt[$*] into $(VENV) (some minutes the first time: PyTorch is large)"
	@$(PIP) --editable ".[$*]"
	@touch $@

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "moe-adapt needs Python 3.11 or newer, but '$(PYTHON)' is missing or older: install one, or name it as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON)' cannot create a virtual environment: install its venv module (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	@touch $@
