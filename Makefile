# Every target sets up what it needs: a virtual environment of its own in .venv, nothing outside it.
#   make demo     the whole story on real images          make test    the tests (ARGS="-k name" for some)
#   make lint     ruff and pyright                        make docs    the generated pages of docs/
#   make wheel    sdist, wheel from the sdist, checked    make asan    the native engine under sanitizers
#   make clean    back to a fresh clone
# PYTHON picks the interpreter (3.11 or newer): make PYTHON=/opt/python3.12/bin/python3 demo

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=

.PHONY: help setup demo test lint docs wheel asan hooks clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

setup: $(INSTALLED)

# Again only when what is installed could differ: the code itself is linked, not copied.
# The native libraries are built with it; without a compiler escc is complete all the same, only slower.
$(INSTALLED): pyproject.toml constraints.txt setup.py $(wildcard backend_sim/simulator/native/*.cpp backend_sim/simulator/native/*.h passes/math/native/*.cpp)
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "error: escc needs Python 3.11 or newer, and $(or $(PYTHON),no python here) is not: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "creating $(VENV) with $$("$(PYTHON)" --version)"; \
		"$(PYTHON)" -m venv --clear $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }; fi
	@echo "installing escc and what it needs into $(VENV) (once; a few minutes with a slow network)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/escc demo $(ARGS)

# One thread per worker: several workers with a thread pool each only get in each other's way.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(INSTALLED)
	$(BIN)/python tools/make_docs.py

wheel: $(INSTALLED)
	$(BIN)/python tools/check_wheel.py

asan: $(INSTALLED)
	$(BIN)/python tools/sanitize_native.py

hooks: $(INSTALLED)
	$(BIN)/pre-commit install

clean:
	rm -rf $(VENV) build dist backend_sim/simulator/native/kernel.so passes/math/native/coding.so .pytest_cache .ruff_cache .hypothesis src/escc.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
