# `make demo` and `make test` set up $(VENV) once, and again when setup.cfg changes.

VENV ?= .venv
PYTHON ?= python3
EXTRAS ?= cpu,rtx,dev
DEMO ?= demo
RUNS ?= runs
# processes of the tests and of the type checker
JOBS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-model nuclei-model check test test-all lint docs gpu-check clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo       export the demo model, run it in every runtime of this machine, print AP and speed"
	@echo "make test       run the tests but for the slow ones"
	@echo "make test-all   run all tests"
	@echo "make lint       run the linters and the type checker"
	@echo "make check      make lint, then make test"
	@echo "make docs       build the documentation into site/"
	@echo "make gpu-check  check and measure everything on a machine with an NVIDIA GPU, into $(DEMO)/gpu.json"
	@echo "make demo-model train the demo model again, into $(RUNS)/shapes_320"
	@echo "make nuclei-model  train the model of cell nuclei again, into $(RUNS)/nuclei; NUCLEI_SOURCE names the pictures"
	@echo "make setup      create the virtual environment only ($(VENV))"
	@echo "make clean      remove caches and build products"
	@echo "make distclean  also remove the virtual environment"
	@echo
	@echo "Settings: VENV=$(VENV) PYTHON=$(PYTHON) EXTRAS=$(EXTRAS) JOBS=$(JOBS)"

setup: $(STAMP)

demo: $(STAMP)
	@$(BIN)/yolact-deploy demo -o $(DEMO)

# At 192 and 256 pixels first, where an iteration costs less; see yolact_deploy/training/recipes/shapes_demo.py.
TRAIN_SHAPES := $(BIN)/yolact-deploy train --recipe shapes_demo --data $(RUNS)/shapes/shapes.yaml --resume
demo-model: $(STAMP)
	$(BIN)/yolact-deploy data shapes -o $(RUNS)/shapes --train 12000 --val 500
	$(TRAIN_SHAPES) -o $(RUNS)/shapes_192 \
	  --set config.image_size=192 --set iterations=2250 --set milestones=2250 --set warmup_iterations=200
	$(TRAIN_SHAPES) -o $(RUNS)/shapes_256 --weights $(RUNS)/shapes_192/last.safetensors \
	  --set iterations=2200 --set milestones=2200 --set warmup_iterations=100
	$(TRAIN_SHAPES) -o $(RUNS)/shapes_320 --weights $(RUNS)/shapes_256/last.safetensors \
	  --set config.image_size=320
	@echo "The weights are $(RUNS)/shapes_320/last.safetensors"

# Pictures of a quarter of the area first, where an iteration costs less; see yolact_deploy/training/recipes/nuclei.py.
NUCLEI_SOURCE ?= nuclei-source
TRAIN_NUCLEI := $(BIN)/yolact-deploy train --recipe nuclei --data $(RUNS)/nuclei_data/nuclei.yaml --resume
SMALL_NUCLEI := --size 256 --priors pixels --set iterations=771 --set milestones=771 --set lr=8e-4 --set warmup_iterations=100
nuclei-model: $(STAMP)
	$(BIN)/yolact-deploy data nuclei $(NUCLEI_SOURCE) -o $(RUNS)/nuclei_data
	$(TRAIN_NUCLEI) -o $(RUNS)/nuclei_1 --weights yolact_deploy/samples/shapes_demo.safetensors $(SMALL_NUCLEI)
	$(TRAIN_NUCLEI) -o $(RUNS)/nuclei_2 --weights $(RUNS)/nuclei_1/last.safetensors --size 256 --priors pixels
	$(TRAIN_NUCLEI) -o $(RUNS)/nuclei --weights $(RUNS)/nuclei_2/last.safetensors \
	  --set iterations=100 --set 'milestones=(60,85)' --set lr=3e-4 \
	  --set ema_decay=0.98 --set warmup_iterations=5 --set augmentation.crop=no
	@echo "The weights are $(RUNS)/nuclei/last.safetensors"

# Pseudo-random weights of ResNet-50: speed and agreement need no trained ones.
$(DEMO)/weights.pth: $(STAMP) tests/deterministic.py
	@mkdir -p $(DEMO)
	@PYTHONPATH=tests:tests/golden $(BIN)/python -c "import deterministic; deterministic.write_checkpoint('$@', 'yolact_resnet50')"

gpu-check: $(DEMO)/weights.pth
	@$(BIN)/python -m yolact_deploy.benchmarks.gpu_check --weights $< --work $(DEMO)/gpu -o $(DEMO)/gpu.json

check: lint test

test: $(STAMP)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m ""

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/mypy --num-workers $(JOBS)

# The variable silences an advertisement of the theme, which would look like a warning.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html"

$(STAMP): setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch is several GB, so this takes minutes. It is done once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 5 --timeout 60 -e '.[$(EXTRAS)]'
	@touch $@

clean:
	@rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find cli.py yolact_deploy tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	@if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
