# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
PROCESSES ?= 3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test bench campaign check format clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv and install the pinned packages

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Sightline needs Python 3.11 or newer; name one with `make PYTHON=python3.12 ...`")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## the main job, from images and captions to a served model (6 minutes on two cores)
	$(BIN)/sightline demo

test: $(STAMP) ## all tests (12 minutes on two cores)
	$(BIN)/pytest -n $(PROCESSES) --dist loadgroup -m "not campaign"

bench: $(STAMP) ## our figures beside the peers', on CORPUS=... PHOTOS=... [CLASSES=... WEIGHTS=... LABELLED=... SCENES=...], written to BENCHMARKS.md (two hours)
	@test -n "$(CORPUS)" -a -n "$(PHOTOS)" || { echo 'make bench CORPUS=PATH PHOTOS=PATH: a corpus of photos with splits, as `sightline ingest` writes it, and a folder of .jpg files'; exit 2; }
	$(BIN)/python -m benchmarks.ingest_vs_img2dataset $(PHOTOS)
	$(BIN)/python -m benchmarks.corpus_scale
	$(BIN)/python -m benchmarks.ingest_memory
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.grad_cache
	$(BIN)/python -m benchmarks.feeding $(PHOTOS)
	$(BIN)/python -m benchmarks.checkpointing
	$(BIN)/python -m benchmarks.serving_engines
	$(BIN)/python -m benchmarks.serving_masks $(PHOTOS)
	$(BIN)/python -m benchmarks.serving $(PHOTOS)
	$(BIN)/python -m benchmarks.nlmeans $(PHOTOS)
	$(BIN)/python -m benchmarks.speed_vs_open_clip $(CORPUS)
	$(if $(WEIGHTS),$(BIN)/python -m benchmarks.imagenette $(CLASSES) $(WEIGHTS))
	$(if $(LABELLED),$(BIN)/python -m benchmarks.architectures $(LABELLED))
	$(if $(and $(LABELLED),$(WEIGHTS)),$(BIN)/python -m benchmarks.lenses $(LABELLED) $(WEIGHTS))
	$(if $(SCENES),$(BIN)/python -m benchmarks.contrast_vs_predict $(SCENES))
	$(BIN)/python -m benchmarks.clip_small_vs_open_clip $(CORPUS)

campaign: $(STAMP) ## kills by the dozen (half an hour), written to BENCHMARKS.md
	$(BIN)/pytest -m campaign
	$(BIN)/python -m benchmarks.campaign_ingest
	$(BIN)/python -m benchmarks.campaign_train
	$(BIN)/python -m benchmarks.campaign_serve $(PHOTOS)

check: $(STAMP) ## ruff, mypy and import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
