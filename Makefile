# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test lint test-heavy bench bench-gpu clean
help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 18

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lite,test]'
	@touch $@

demo: .venv/installed   ## train the built-in demo: no data and no network needed
	$(BIN)/kclf demo --out demo-run --force

test: lint       ## lint, types and the tests (what CI runs)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: .venv/installed   ## ruff and mypy
	$(BIN)/ruff check kclf tests
	$(BIN)/mypy

test-heavy: .venv/installed   ## the long matrices
	$(BIN)/python -m pytest -m heavy

bench: .venv/installed  ## the benchmarks, beside the peers in PEERS (a virtual environment)
	for b in step inference optimizer augment loader imports; do echo "see tests/benchmarks: $$b"; done

clean:           ## remove what the targets made
	rm -rf .venv demo-run .pytest_cache .mypy_cache .ruff_cache
