.PHONY: help demo test quality style clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py src examples benchmarks tests
# everything runs offline once it is installed
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

help:  ## say what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.test: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[test,quality]"
	touch $@ $(VENV)/.core

demo: $(VENV)/.core  ## sample from the checkpoint, and write demo.png
	$(OFFLINE) $(BIN)/python examples/demo.py --output demo.png

test: quality  ## run the test suite
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

quality: $(VENV)/.test  ## check the style
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

style: $(VENV)/.test  ## mend the style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache
