# make demo   set up, train on the miniature, pasting what helps, evaluate, draw pictures
# make rank   best and worst cut-outs of a category, by the demo's model (or WEIGHTS, CATEGORY)
# make test   set up, run the tests
# make slow   the tests that take long: thorough fuzzing, runs on Ray
# make gpu    what a GPU makes of a training step: tests, ratios, memory; under 8 minutes
# make lint   ruff
# All do all their set-up themselves and are quick when nothing has changed.

# Python >= 3.10 to make the environment from, and the torch to put in it, e.g.
#   make test PYTHON=python3.12 TORCH="torch==2.14.1 torchvision --index-url ..."
PYTHON ?= python3
TORCH ?= torch torchvision

VENV := .venv
BIN := $(VENV)/bin
MINIATURE := datasets/miniature/.complete

# A checkout of detectron2 to run the tests against, in place of the installed one:
#   make test DETECTRON2=../detectron2
DETECTRON2 ?=
TEST := $(if $(DETECTRON2),PYTHONPATH="$(abspath $(DETECTRON2))") $(BIN)/python -m pytest

# Of `make rank`.
CATEGORY ?= handbag
WEIGHTS ?= output/miniature_gal/model_final.pth

.PHONY: setup miniature demo rank pictures test slow gpu lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/.complete

$(VENV)/.complete: setup.py pyproject.toml tools/install_detectron2.py tools/fetch_u2netp.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "GAL-D2 needs Python >= 3.10: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python tools/install_detectron2.py
	$(BIN)/python -m pip install --quiet --quiet --editable '.[dev]'
	$(BIN)/python tools/fetch_u2netp.py
	touch $@

miniature: $(MINIATURE)

$(MINIATURE): $(VENV)/.complete gal_d2/testbeds/miniature/scenes.py gal_d2/testbeds/miniature/faults.py gal_d2/testbeds/miniature/sources.py
	$(BIN)/python tools/prepare_miniature.py
	touch $@

demo: $(VENV)/.complete $(MINIATURE)
	$(BIN)/python tools/demo.py
	$(BIN)/python benchmarks/pasted.py output/miniature_gal

rank: $(VENV)/.complete $(MINIATURE)
	@test -f "$(WEIGHTS)" || { echo "error: $(WEIGHTS) does not exist: run make demo first, or name a model with WEIGHTS=" >&2; exit 1; }
	$(BIN)/python tools/rank_instances.py --config-file configs/miniature_gal.yaml --category "$(CATEGORY)" --placements 6 MODEL.WEIGHTS "$(WEIGHTS)"

# The pictures of README.md, from the demo's.
pictures: demo
	mkdir -p docs/images
	cp output/miniature_gal/training_images.png output/miniature_gal/predictions.png docs/images/

test: $(VENV)/.complete
	$(TEST) -m "not slow"

slow: $(VENV)/.complete
	$(TEST) -m slow

gpu: $(VENV)/.complete
	benchmarks/gpu.sh

lint: $(VENV)/.complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) output datasets/miniature
