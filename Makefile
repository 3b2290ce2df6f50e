# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: help demo test lint test-newest test-heavy test-pretended-gpu verify recipes docs bench bench-gpu clean
help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lite,test,tuner]'
	@touch $@

demo: .venv/installed   ## train the built-in demo: no data and no network needed
	$(BIN)/kclf demo --out demo-run --force

test: lint       ## lint, types and the tests (what CI runs)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --pretend-cuda tests/test_predict.py tests/test_activations.py

lint: .venv/installed   ## ruff and mypy
	$(BIN)/ruff check kclf tests recipes docs
	$(BIN)/mypy

# On a GPU that is pretended: what `make test` runs of it, and the suites that know a device.
PRETEND := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --pretend-cuda
SUITES := $(addprefix tests/,test_predict.py test_activations.py test_ensembles.py test_interpret.py test_report.py \
	test_learner.py test_fastai_habits.py test_multi_level.py test_cli.py reliability/test_checkpoint.py reliability/test_command.py)
test-pretended-gpu: .venv/installed   ## the suites of training and prediction on a GPU that is pretended
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/pretended_cuda -m 'heavy or not heavy'
	$(PRETEND) -m 'gpu or not heavy' tests/test_gpu.py
	$(PRETEND) $(SUITES)

# Above the bounds of pyproject.toml, which pip then warns of: what breaks there is to be seen before it is allowed.
CORE := test_keras_private.py test_optimizers.py test_optimizers_saving.py test_acceleration_step.py test_delivered.py \
	test_callbacks_together.py test_models.py
NEWEST := $(subst .venv,.venv-newest,$(BIN))
test-newest:     ## the core of the tests with the newest Keras and torch that pip gives; it may fail, and says the versions
	$(PYTHON) -m venv .venv-newest
	$(NEWEST)/pip install --quiet --editable '.[lite,test]'
	$(NEWEST)/pip install --quiet --upgrade keras torch
	KERAS_BACKEND=torch $(NEWEST)/python -c 'import keras, torch; print("keras", keras.__version__, "torch", torch.__version__)'
	OMP_NUM_THREADS=1 $(NEWEST)/python -m pytest -n auto -W default $(addprefix tests/,$(CORE))

test-heavy: .venv/installed   ## the long matrices
	$(BIN)/python -m pytest -m heavy

verify: .venv/installed   ## every promised figure measured again, hours; ONLY="layers loader" picks some
	$(BIN)/python tests/verify.py $(if $(ONLY),--only $(ONLY))

recipes: .venv/installed   ## the recipes in small mode, a few minutes: do they run?
	$(BIN)/python recipes/run.py --small

docs: .venv/docs   ## the site, into site/; a public name without docs or a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@

PEERS ?=
PHOTOS ?= ../shared/data/dogscats
BENCH := $(BIN)/python tests/benchmarks
WEIGHTS ?=
WITH_PEERS := $(if $(PEERS),--peers $(PEERS))
RECORDS := build/bench.jsonl
KEPT := --json $(RECORDS) $(WITH_PEERS)
bench: .venv/installed   ## the benchmarks; PEERS=VENV adds fastai, timm and torchvision; PHOTOS=, WEIGHTS= folders
	@mkdir -p build && rm -f $(RECORDS)
	$(BENCH)/train_step.py --threads 2 $(KEPT)
	$(BENCH)/train_step.py --threads 2 $(KEPT) --set model=EfficientNetB0
	$(BENCH)/train_step.py --threads 2 $(KEPT) --set model=MobileNetV2
	$(BENCH)/inference.py --threads 2 $(KEPT)
	$(BENCH)/overhead.py --json $(RECORDS)
	$(BENCH)/optimizer.py --threads 2 --json $(RECORDS)
	$(BENCH)/augment.py --threads 2 $(KEPT)
	$(BENCH)/loader.py --threads 2 --set folder=$(PHOTOS) $(KEPT)
	$(BENCH)/precompute.py --threads 2 --rounds 3 --json $(RECORDS)
	$(BENCH)/serving.py $(PHOTOS) --json $(RECORDS)
	$(BENCH)/imports.py $(KEPT)
	$(if $(WEIGHTS),$(BENCH)/end_to_end.py $(PHOTOS) --threads 2 --warmup 0 --rounds 3 --set weights=$(WEIGHTS) $(WITH_PEERS))

ARGS ?=
bench-gpu:       ## the table of a machine with CUDA; PYTHON names an environment; ARGS="--device cpu --quick" tries it
	PYTHONPATH=.$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) tests/benchmarks/gpu_bench.py $(ARGS)

clean:           ## remove what the targets made
	rm -rf .venv .venv-newest demo-run site .pytest_cache .mypy_cache .ruff_cache
