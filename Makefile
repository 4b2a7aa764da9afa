# `make demo` and `make test` do their own set-up. PYTHON=… uses an existing environment as it is, instead of making .venv.
.DEFAULT_GOAL := help
# The release that the tests run on; TORCH=… installs another, and a torch that is already there is kept.
TORCH ?= torch==2.13.0
HOST_PYTHON ?= python3
JOBS ?= 2
CLANG_FORMAT = $(PYTHON) -c 'from clang_format import clang_format; clang_format()'
NATIVE := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

ifdef PYTHON
READY :=
else
PYTHON := .venv/bin/python
READY := .venv/.ready
endif

.venv/bin/python:
	$(HOST_PYTHON) -m venv .venv
	$(PYTHON) -m pip install -q --upgrade pip "setuptools>=77" wheel ninja

# torch first, and only if it is missing: what is installed decides what the ops are compiled against.
.venv/.ready: pyproject.toml python_tests/requirements-no-deps.txt | .venv/bin/python
	$(PYTHON) -c "import torch" 2>/dev/null || $(PYTHON) -m pip install -q "$(TORCH)"
	$(PYTHON) tools/requirements.py test lint bench | $(PYTHON) -m pip install -q -r /dev/stdin
	$(PYTHON) -m pip install -q --no-deps -r python_tests/requirements-no-deps.txt
	touch $@

build/.stamp: setup.py $(NATIVE) $(READY)
	MAX_JOBS=$(JOBS) $(PYTHON) setup.py -q build_ext --inplace
	mkdir -p build && touch $@

.PHONY: help setup build test demo bench lint format cubin docs clean

help:
	@echo "make demo    train a small ResNet on real images and measure its curvature landscape"
	@echo "make test    all tests            make bench   every op against its peers, as ratios"
	@echo "make lint    ruff, clang-format, mypy       make cubin   compile every CUDA kernel, fail on a spill"
	@echo "make docs    the documentation    make build   compile in place    make clean"
	@echo "Each sets up .venv first; PYTHON=/path/to/python uses that environment as it is."

setup: $(READY)

build: build/.stamp

test: build/.stamp
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n $(JOBS) python_tests

demo: build/.stamp
	$(PYTHON) -m examples.demo --out demo_output

bench: build/.stamp
	$(PYTHON) -m benchmarks

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(CLANG_FORMAT) --dry-run --Werror $(NATIVE)
	$(PYTHON) -m mypy

format: $(READY)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(CLANG_FORMAT) -i $(NATIVE)

cubin: $(READY)
	$(PYTHON) tools/check_cubin.py

docs: build/.stamp
	$(PYTHON) tools/requirements.py docs | $(PYTHON) -m pip install -q -r /dev/stdin
	$(PYTHON) -m mkdocs build --strict

clean:
	rm -rf build dist site demo_output spectral_ext/*.so spectral_ext/_build_info.py *.egg-info
