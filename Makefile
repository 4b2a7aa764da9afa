# `make demo` and `make test` do their own set-up. PYTHON=… uses an existing environment as it is, instead of making .venv.
.DEFAULT_GOAL := help
# The release that the tests run on; TORCH=… installs another, and a torch that is already there is kept.
TORCH ?= torch==2.13.0
HOST_PYTHON ?= python3
JOBS ?= 2
CLANG_FORMAT = $(PYTHON) -c 'from clang_format import clang_format; clang_format()'
GXX ?= g++
HEADER_RELEASES := 2.11.0 2.12.0  # and the installed one
# The tests that reach C++.
OP_TESTS := $(addprefix python_tests/test_,input_factor.py input_factor_interface.py output_factor.py \
	rayleigh_quotients.py rayleigh_quotients_interface.py spectral_newton.py accumulator.py raw_ops.py \
	guard_pages.py fuzz_ops.py)
NATIVE := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

ifdef PYTHON
READY :=
INSTALLED := build/.stamp
else
PYTHON := .venv/bin/python
READY := .venv/.ready
INSTALLED := .venv/bin/spectral-ext
endif

.venv/bin/python:
	$(HOST_PYTHON) -m venv .venv
	$(PYTHON) -m pip install -q --upgrade pip "setuptools>=77" wheel ninja

# torch first, and only if it is missing: what is installed decides what the ops are compiled against.
.venv/.ready: pyproject.toml python_tests/requirements-no-deps.txt | .venv/bin/python
	$(PYTHON) -c "import torch" 2>/dev/null || $(PYTHON) -m pip install -q "$(TORCH)"
	$(PYTHON) tools/requirements.py test lint bench docs cli | $(PYTHON) -m pip install -q -r /dev/stdin
	$(PYTHON) -m pip install -q --no-deps -r python_tests/requirements-no-deps.txt
	$(PYTHON) -c "import backpack, curvlinops, einconv"  # tests skip an oracle that cannot be imported
	touch $@

build/.stamp: setup.py tools/toolchain.py $(NATIVE) $(READY)
	MAX_JOBS=$(JOBS) $(PYTHON) setup.py -q build_ext --inplace
	mkdir -p build && touch $@

# The command .venv/bin/spectral-ext, and `import spectral_ext` from any folder: an editable install of what is built.
.venv/bin/spectral-ext: pyproject.toml | build/.stamp
	SPECTRAL_EXT_PREBUILT=1 $(PYTHON) -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

.PHONY: help setup build test demo bench paper lint format cubin headers clang sanitize tsan sdist-check docs axe vendor \
	workflows sdist wheels notebook clean

help:
	@echo "make demo    train a small ResNet on real images and measure its curvature landscape"
	@echo "make test    all tests            make bench   every op against its peers, as ratios"
	@echo "make paper   the paper's tables and figures measured again, at small scale (PAPER=\"--scale full --device cuda\")"
	@echo "make lint    ruff, clang-format, mypy       make cubin   compile every CUDA kernel, fail on a spill"
	@echo "make sanitize      the tests of the ops under the address and undefined-behaviour sanitizers"
	@echo "make tsan          the tests of the ops' threads under the thread sanitizer"
	@echo "make headers       compile every binding, with and without CUDA, against torch 2.11, 2.12 and the installed one"
	@echo "make clang         every C++ file under clang, and sdist-check with it"
	@echo "make sdist-check   source distribution, wheel from it, import and tests of the ops outside the tree"
	@echo "make workflows     the public workflows against their schema    make sdist, wheels   what is published"
	@echo "make docs    the documentation    make build   compile in place    make clean"
	@echo "Each sets up .venv first; PYTHON=/path/to/python uses that environment as it is."

setup: $(READY)

build: $(INSTALLED)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n $(JOBS) python_tests

demo: $(INSTALLED)
	$(PYTHON) -m examples.demo --out demo_output

bench: build/.stamp
	$(PYTHON) -m benchmarks

# Small networks on two cores, without the sweep of optimizers; what experiments/results holds is not run again.
# PAPER="--scale full --device cuda" runs the paper's networks on a GPU.
paper: build/.stamp
	OMP_NUM_THREADS=1 $(PYTHON) -m experiments run $(PAPER)

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

headers: $(READY)
	for release in $(HEADER_RELEASES); do $(PYTHON) tools/check_syntax.py --torch $$release || exit 1; done
	$(PYTHON) tools/check_syntax.py

clang: $(READY)
	$(PYTHON) tools/check_syntax.py --compiler clang++
	CC=clang CXX=clang++ MAX_JOBS=$(JOBS) $(PYTHON) tools/check_sdist.py

PYTHON_ANYWHERE = $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON))
# Instruments csrc/, not torch; data races in the CUDA kernels are part of `make test` (test_cuda_emulation.py).
# A report ends the process while pytest holds its output: log_path keeps it, and it is shown at the end.
# $(call instrumented,folder in build/,sanitizers,options,libraries to load first,threads per process,pytest options)
define instrumented
	CC=gcc CXX=$(GXX) SPECTRAL_EXT_SANITIZE="$(2)" SPECTRAL_EXT_CUDA=0 MAX_JOBS=$(JOBS) $(PYTHON) setup.py -q build --build-base build/$(1)/temp --build-lib build/$(1)
	rm -f build/$(1)/report.*
	cd build/$(1) && { env SPECTRAL_EXT_SANITIZE="$(2)" $(3) LD_PRELOAD="$(foreach library,$(4),$$($(GXX) -print-file-name=$(library)))" OMP_NUM_THREADS=$(5) PYTHONPATH=$(CURDIR) $(PYTHON_ANYWHERE) -m pytest -q -p no:cacheprovider $(6) \
		$(addprefix ../../,$(OP_TESTS)) || { cat report.* 2>/dev/null; exit 1; }; }
endef
COMMA := ,

# torch itself leaks at exit. libstdc++ is preloaded so that exceptions are intercepted.
sanitize: $(READY)
	$(call instrumented,sanitize,address$(COMMA)undefined,ASAN_OPTIONS=detect_leaks=0:log_path=report UBSAN_OPTIONS=print_stacktrace=1:log_path=report,libasan.so libstdc++.so,1,-n $(JOBS))

# The tests whose names say threads; `make tsan SELECT=` runs all tests of the ops but those that fork, which the
# sanitizer cannot follow. torch's own accesses are not seen.
SELECT ?= threads
tsan: $(READY)
	$(call instrumented,tsan,thread,TSAN_OPTIONS=halt_on_error=1:die_after_fork=0:ignore_noninstrumented_modules=1:log_path=report,libtsan.so,2,$(if $(SELECT),-k $(SELECT)) --deselect ../../python_tests/test_guard_pages.py)

sdist-check: $(READY)
	MAX_JOBS=$(JOBS) $(PYTHON) tools/check_sdist.py

docs: $(INSTALLED)
	$(PYTHON) tools/requirements.py docs | $(PYTHON) -m pip install -q -r /dev/stdin
	rm -rf site && $(PYTHON) -m sphinx -q -W --keep-going docs site

# The workflows of the public host, against its own schema.
workflows: $(READY)
	$(PYTHON) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(PYTHON) -m check_jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

sdist: .venv/bin/python
	$(PYTHON) -m pip install -q build
	$(PYTHON) -m build --sdist --no-isolation

# CPU wheels for this machine's architecture, in manylinux containers (docker or podman).
wheels: .venv/bin/python
	$(PYTHON) -m pip install -q cibuildwheel
	$(PYTHON) -m cibuildwheel --output-dir dist

# The accessibility linter of the page's tests, which skip it where npm is missing.
axe:
	npm install --silent --no-audit --no-fund --prefix build/npm axe-core@4

# The part of Observable Plot that the page carries.
vendor:
	npm install --silent --no-audit --no-fund --prefix build/npm @observablehq/plot@0.6.17 d3@7.9.2 esbuild@0.28
	cp spectral_ext/report/vendor/plot.entry.js build/npm/
	build/npm/node_modules/.bin/esbuild build/npm/plot.entry.js --bundle --minify --format=iife --global-name=Plot \
		--legal-comments=none --outfile=spectral_ext/report/vendor/plot.js

# The first tutorial as a notebook, for those who read it where the repository is hosted.
notebook: $(READY)
	$(PYTHON) tools/requirements.py docs | $(PYTHON) -m pip install -q -r /dev/stdin
	mkdir -p build/notebook examples/notebooks && cp examples/tutorials/01_landscape_of_a_resnet.py build/notebook/
	cd build/notebook && $(PYTHON_ANYWHERE) -c "from sphinx_gallery.notebook import python_to_jupyter_cli as write; write(['01_landscape_of_a_resnet.py'])"
	cp build/notebook/01_landscape_of_a_resnet.ipynb examples/notebooks/landscape_of_a_resnet.ipynb

clean:
	rm -rf build dist site demo_output spectral_ext/*.so spectral_ext/_build_info.py *.egg-info docs/tutorials
