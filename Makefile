# make run: the complete loop · make test: all checks · make lab: JupyterLab
# Everything is installed into .venv from requirements.lock, by `make setup`.
SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.complete
export HF_HUB_DISABLE_TELEMETRY := 1
unexport PYTHONHOME

help:
	@echo "make run        the demo: preset cpu, about half an hour on two cores"
	@echo "make test       all checks that CI runs"
	@echo "make test-slow  the tests that take minutes"
	@echo "make bench      speed of the engines and of training beside the alternatives, twenty minutes"
	@echo "make docs       the documentation site, into data/site; no network"
	@echo "make lab        the notebooks in JupyterLab"
	@echo "make setup      only .venv; the other targets call it"

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@bash setup.sh

run: $(STAMP)
	$(BIN)/a3t run cpu --name cpu

test: $(STAMP)
	$(BIN)/ruff check --quiet a3t tests nbs/site.py nbs/wheel.py
	$(BIN)/ruff check --quiet --select E501,F401,F821 nbs
	OMP_NUM_THREADS=1 $(BIN)/python tests/check_notebooks.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

bench: $(STAMP)
	@mkdir -p data/bench
	@set -e; for nb in nbs/bench/*.ipynb; do echo "$$nb"; OMP_NUM_THREADS=1 $(BIN)/papermill -k python3 --cwd nbs/bench --no-progress-bar $$nb data/bench/$${nb##*/}; done
	@$(BIN)/python -c "import json; [print(f'{e:10} load and reset {r[\"load\"]:10.2f} ms   {1e3/r[\"step\"]:12,.0f} steps a second') for e,r in json.load(open('data/bench/alfworld.json'))['engines'].items()]"
	@$(BIN)/python -c "import json; d = json.load(open('data/bench/training.json')); [print(f'{k:24} {r[\"rate\"]:6.0f} tokens/s {r[\"peak\"]/2**30:6.2f} GB') for k,r in d['runs'].items()]"

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open data/site/index.html; its search needs a server: $(BIN)/python -m http.server -d data/site"

lab: $(STAMP)
	$(BIN)/jupyter lab nbs

.PHONY: help setup run test test-slow bench docs lab
