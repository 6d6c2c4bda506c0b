# Two commands from a clean clone, with Python 3.11 or newer and nothing else: `make demo`, `make test`.
# `make PYTHON=/path/to/python3.12 demo` chooses the Python that .venv is made with.

PYTHON ?=
JOBS ?= 2
PYTEST_ARGS ?=
BIN := .venv/bin
SOURCES := $(wildcard setup.py src tests scripts benchmarks examples)
INSTALLED_FROM := pyproject.toml setup.py constraints.txt scripts/setup $(wildcard src/nextvlad/data/compiled/*)

.PHONY: help demo test check format clean clean-venv
.DEFAULT_GOAL := help

help:
	@echo "make demo        the whole job twice: on the data inside the package (a minute on two cores), and on"
	@echo "                 clips that it draws and encodes itself (three minutes)"
	@echo "make test        formatting, lint, types, and every test"
	@echo "make check       formatting, lint and types alone"
	@echo "make format      let ruff put right what it can"
	@echo "make clean       remove what builds, tests and the demo leave behind"
	@echo "make clean-venv  remove .venv"
	@echo
	@echo "All but the clean ones first make .venv and install into it, where that is still to do."
	@echo "Options: PYTHON=python3.12 (to make .venv with), JOBS=2 (test processes),"
	@echo "PYTEST_ARGS='tests/test_plots.py -x' (with make test)"

# An edited Python file needs no new install; a changed dependency does, and what is compiled.
.venv/.installed-demo: $(INSTALLED_FROM)
	@PYTHON='$(PYTHON)' scripts/setup demo
	@touch $@

# The test extra holds all of the demo's.
.venv/.installed-test: $(INSTALLED_FROM)
	@PYTHON='$(PYTHON)' scripts/setup test
	@touch .venv/.installed-demo $@

demo: .venv/.installed-demo
	$(BIN)/nextvlad demo
	$(BIN)/nextvlad demo --video

# The tests run even where the checks fail, so that one run tells everything.
# One thread of arithmetic a process: JOBS processes share the cores.
test: .venv/.installed-test
	@status=0; \
	$(MAKE) --no-print-directory check || status=$$?; \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS) || status=$$?; \
	exit $$status

check: .venv/.installed-test
	@status=0; \
	echo "ruff format --check"; $(BIN)/ruff format --check $(SOURCES) || status=$$?; \
	echo "ruff check"; $(BIN)/ruff check $(SOURCES) || status=$$?; \
	echo "mypy"; $(BIN)/mypy || status=$$?; \
	exit $$status

format: .venv/.installed-test
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf build dist demo-run demo-video-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

clean-venv:
	rm -rf .venv
