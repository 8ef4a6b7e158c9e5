# "make help" lists what there is.
.DEFAULT_GOAL := help
.PHONY: help book print test lint format bench lab notebooks extract stamp serve clean

.NOTPARALLEL:

SHELL := bash
.SHELLFLAGS := -o pipefail -c # what fails in a pipe fails

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PAGES := _build/html
WORKERS ?= 2
# Each worker takes a file, or a notebook, at a time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The environment, set up again when what it is made from changes.
$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip' || { echo "This Python has no venv module: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-compile -r requirements.txt -c constraints.txt | { grep --line-buffered '^Collecting' || true; }
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true # on all cores, which pip does not do
	@$(PIP) -qq install --no-build-isolation --no-deps -e .
	@touch $@

book: $(READY) ## build the pages into _build/html, and generate a first continuation
	@rm -rf _build # a page that was not written anew would be typeset twice
	@$(BIN)/python book/vendor.py
	@$(BIN)/jupyter-book build . -q -W --keep-going
	@$(BIN)/python book/browser.py
	@$(BIN)/stt-lite generate --samples 3 --out _build/continuation.gif
	@echo "The book is in $(PAGES). Open $(CURDIR)/$(PAGES)/book/index.html in a browser, or run: make serve"

print: $(READY) ## print the built pages into one PDF, _build/stt_lite.pdf (needs Chromium)
	@$(BIN)/python book/printed.py

test: lint ## run every notebook and compare its outputs, then the tests
	$(PYTEST) --nbval notebooks
	$(PYTEST) tests

lint: $(READY) ## check style, and that package and notebooks agree
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/python book/extract.py --check
	@$(BIN)/python book/stamp.py --check

format: $(READY) ## bring code into style, cells too, then extract
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format
	@$(BIN)/python book/extract.py

bench: $(READY) ## time what chapter 16 shows, on one core, and write it to book/results/
	OMP_NUM_THREADS=1 $(BIN)/python book/bench.py

lab: $(READY) ## open the notebooks in JupyterLab
	$(BIN)/jupyter-lab notebooks

notebooks: stamp extract ## run every notebook in place, storing outputs
	$(BIN)/python book/execute.py

extract: $(READY) ## write stt_lite/ from the notebooks' export cells
	@$(BIN)/python book/extract.py

stamp: $(READY) ## write links and first cell into every notebook
	@$(BIN)/python book/stamp.py

serve: $(READY) ## serve the built pages on this machine
	@test -f $(PAGES)/index.html || { echo "No pages yet: run make book first"; exit 1; }
	@$(BIN)/python -c 'import socket; socket.create_server(("127.0.0.1", $(PORT)))' 2> /dev/null || { echo "Port $(PORT) is taken: try make serve PORT=8001"; exit 1; }
	@echo "http://localhost:$(PORT)/book/index.html (Ctrl-C ends it)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(PAGES)

clean: ## remove the pages and the environment
	rm -rf $(VENV) _build build book/_assets/vendor *.egg-info .pytest_cache .ruff_cache
	find stt_lite book tests notebooks -name __pycache__ -prune -exec rm -rf {} +
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} +
