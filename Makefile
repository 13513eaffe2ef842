# make demo   set up, train on the miniature, pasting what helps, evaluate, draw pictures
# make rank   best and worst cut-outs of a category, by the demo's model (or WEIGHTS, CATEGORY)
# make test   set up, run the tests
# make slow   the tests that take long: thorough fuzzing, runs on Ray
# make faults kills, full disks, damaged files: 200 kills and how they end, 15 CPU minutes
# make gpu    what a GPU makes of a training step: tests, ratios, memory; under 8 minutes
# make docs   the documentation site, in output/site/index.html
# make lint   ruff
# All do all their set-up themselves and are quick when nothing has changed. The demo installs what
# it needs; everything else (tests, generation, Ray, the site) comes with the first other target.

# Python >= 3.10 to make the environment from, and the torch to put in it, e.g.
#   make test PYTHON=python3.12 TORCH="torch==2.14.1 torchvision --index-url ..."
PYTHON ?= python3
TORCH ?= torch torchvision

# Installs packages: uv where it is on the PATH (with the CPU build of torch where there is no GPU),
# else pip. uv does not read pip's settings, so pip also tries what uv could not get.
UV := $(shell command -v uv)
install = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python $(1) || { echo "uv could not; pip tries."; false; } || )$(BIN)/python -m pip install --quiet $(2)
TORCH_BUILD := $(if $(findstring --,$(TORCH)),,--torch-backend auto)

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

.PHONY: setup miniature demo rank pictures test slow faults gpu docs lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/.complete

$(VENV)/.demo: setup.py pyproject.toml tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "GAL-D2 needs Python >= 3.10: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing torch, the largest download; then detectron2 and what the demo needs."
	$(call install,$(TORCH_BUILD) $(TORCH),$(TORCH))
	$(BIN)/python tools/install_detectron2.py
	$(call install,--editable '.[testbeds]',--editable '.[testbeds]')
	touch $@

$(VENV)/.complete: $(VENV)/.demo tools/fetch_u2netp.py
	$(call install,--editable '.[dev]',--editable '.[dev]')
	$(BIN)/python tools/fetch_u2netp.py
	touch $@

miniature: $(MINIATURE)

$(MINIATURE): $(VENV)/.demo $(wildcard gal_d2/testbeds/miniature/*.py)
	$(BIN)/python tools/prepare_miniature.py
	touch $@

demo: $(VENV)/.demo $(MINIATURE)
	$(BIN)/python tools/demo.py

rank: $(VENV)/.demo $(MINIATURE)
	@test -f "$(WEIGHTS)" || { echo "error: $(WEIGHTS) does not exist: run make demo first, or name a model with WEIGHTS=" >&2; exit 1; }
	$(BIN)/python tools/rank_instances.py --config-file configs/miniature_gal.yaml --category "$(CATEGORY)" --placements 6 MODEL.WEIGHTS "$(WEIGHTS)"

# The pictures of README.md, from the demo's.
pictures: demo
	mkdir -p docs/images
	cp output/miniature_gal/training_images.png output/miniature_gal/predictions.png docs/images/

test: $(VENV)/.complete
	$(TEST) -m "not slow"

slow: $(VENV)/.complete
	$(TEST) -m "slow and not faults"

faults: $(VENV)/.complete
	$(TEST) tests/faults

gpu: $(VENV)/.complete
	benchmarks/gpu.sh

# Without pages that are out of date, dead links or warnings.
docs: $(VENV)/.complete
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "output/site/index.html (its search needs a server: python3 -m http.server -d output/site)"

lint: $(VENV)/.complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) output datasets/miniature
