# Everything a newcomer needs on a machine with Python 3.10+, make and g++ (nvcc optional):
#
#   make demo     train on handwritten digits with fused and with eager losses
#   make test     build everything and run all tests (test-slow: those that need minutes and 17 GB)
#   make sanitize only the C++ tests, under the address and undefined-behaviour sanitizers
#   make bench    time fusedloss against eager, torch.compile and known packages
#   make wheel    sdist and wheel into dist/, the latter built from the former and checked
#   make lint     formatting and types
#   make docs     the documentation site, into build/docs
#
# Each creates .venv, installs what is missing and builds; a second run only does what changed.
# Variables: PYTHON, TORCH (the torch to install), VENV, PYTEST_ARGS, BENCH_ARGS, DEMO_ARGS; and
# FUSEDLOSS_CUDA, TORCH_CUDA_ARCH_LIST, which setup.py explains.

PYTHON ?= python3
TORCH ?= torch==2.14.1
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
CMAKE_BUILD ?= build/cmake
MYPY := mypy==2.4.1
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q
export PATH := $(BIN):$(PATH)

SOURCES := setup.py pyproject.toml $(shell find csrc kernels -type f -not -name '*.py*')
CMAKE_SOURCES := CMakeLists.txt $(shell find kernels tests/emu tests/native -type f -not -name '*.py*')
# Another torch or another wish about CUDA is another installation.
INSTALLED := $(VENV)/.installed-$(TORCH)
space := $(subst ,, )
BUILT := $(VENV)/.built-$(TORCH)-cuda$(FUSEDLOSS_CUDA)-$(subst $(space),_,$(subst ;,_,$(TORCH_CUDA_ARCH_LIST)))

.PHONY: all build cmake test test-slow sanitize demo bench wheel docs lint format clean
.DELETE_ON_ERROR:

all: build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(INSTALLED): $(VENV)/bin/python pyproject.toml
	@echo "installing $(TORCH) and the tools into $(VENV)"
	$(PIP) "$(TORCH)" "setuptools>=77" wheel build ninja cmake "pybind11>=2.13" numpy
	$(PIP) "pytest>=8" "pytest-xdist>=3.6" "hypothesis>=6.100" "expecttest>=0.2" "scikit-learn>=1.3" "matplotlib>=3.7"
	@rm -f $(VENV)/.installed-* $(VENV)/.built-*
	@touch "$@"

$(BUILT): $(INSTALLED) $(SOURCES)
	@echo "building the native library (CUDA kernels where nvcc and a CUDA torch are found)"
	PYTHONWARNINGS=ignore $(PIP) --no-build-isolation --no-deps -e .
	@rm -f $(VENV)/.built-*
	@touch "$@"

build: $(BUILT)

$(CMAKE_BUILD)/.built: $(INSTALLED) $(CMAKE_SOURCES)
	@mkdir -p $(CMAKE_BUILD)
	cmake -S . -B $(CMAKE_BUILD) -G Ninja -DPython_EXECUTABLE=$(BIN)/python > $(CMAKE_BUILD)/configure.log \
	  || (cat $(CMAKE_BUILD)/configure.log; exit 1)
	cmake --build $(CMAKE_BUILD) --target fusedloss_testing fusedloss_emu_selftest
	@touch "$@"

cmake: $(CMAKE_BUILD)/.built

test: build cmake sanitize
	FUSEDLOSS_CMAKE_BUILD=$(CMAKE_BUILD) $(BIN)/python -m pytest tests -n auto $(PYTEST_ARGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/test_triton.py -n auto $(PYTEST_ARGS)

# Tensors of more than 2^31 elements: minutes, and 17 GB of memory.
test-slow: build
	FUSEDLOSS_LARGE=1 $(BIN)/python -m pytest tests/test_large.py $(PYTEST_ARGS)

# The C++ tests of the CPU's kernels and of the emulated CUDA kernels under the address and
# undefined-behaviour sanitizers.
sanitize: $(INSTALLED)
	cmake -S . -B build/sanitize -G Ninja -DFUSEDLOSS_SANITIZE=address,undefined > /dev/null
	cmake --build build/sanitize
	ctest --test-dir build/sanitize --output-on-failure -j 2

demo: build
	$(BIN)/python -m fusedloss demo $(DEMO_ARGS)

bench: build cmake
	-$(PIP) "$(TORCH)" torchvision
	-$(PIP) "$(TORCH)" torchvision timm segmentation-models-pytorch
	-$(PIP) "$(TORCH)" pytorch-metric-learning
	-$(PIP) "$(TORCH)" monai
	-$(PIP) "$(TORCH)" liger-kernel
	FUSEDLOSS_CMAKE_BUILD=$(CMAKE_BUILD) $(BIN)/python tests/cuda_report.py build/cuda_facts.json
	$(BIN)/python -m fusedloss bench --cuda-facts build/cuda_facts.json $(BENCH_ARGS)

# Without isolation: pip would download a torch of its own, gigabytes, for the build alone.
wheel: $(INSTALLED)
	@$(PIP) $(MYPY)
	@mkdir -p build && rm -f dist/fusedloss-*
	$(BIN)/python -m build --no-isolation > build/wheel.log 2>&1 || (tail -n 50 build/wheel.log; exit 1)
	$(BIN)/python tests/wheel_check.py --types dist/fusedloss-*.whl

# Warnings are errors: a broken link, an option that a docstring names wrongly.
docs: build
	@$(PIP) "sphinx>=8" furo "myst-parser>=4" sphinx-mathjax-offline sphinx-copybutton "matplotlib>=3.7"
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

LINT_TOOLS := ruff==0.17.6 $(MYPY) clang-format==23.1.5
CXX_FILES := $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' 2>/dev/null)

lint: $(INSTALLED)
	@$(PIP) $(LINT_TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@rm -rf build/typed && mkdir -p build/typed && cp -r python/fusedloss build/typed
	@rm -rf build/typed/fusedloss/_triton && cp -r kernels/triton build/typed/fusedloss/_triton
	MYPYPATH=build/typed $(BIN)/mypy build/typed/fusedloss/_triton
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(INSTALLED)
	@$(PIP) $(LINT_TOOLS)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist python/*.egg-info python/fusedloss/_C*.so $(VENV)/.built-*
