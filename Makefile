# `make serve` starts the server, `make test` passes the tests; both install what they need into .venv first.

PYTHON ?= python3.11
ifeq (, $(shell command -v $(PYTHON) 2>/dev/null))
PYTHON := python3
endif
VENV := .venv
BIN := $(VENV)/bin
# another torch build, e.g. make serve TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
# the stamp of the torch build that is installed, one for each index
TORCH_STAMP := $(VENV)/.torch$(subst /,-,$(subst :,,$(TORCH_INDEX)))
export SD_HOME := $(CURDIR)

.PHONY: serve test test-browser test-container test-cluster test-true-shapes fuzz soak check archives bench \
  bench-true-shapes train eval-embedded clean

serve: $(VENV)/.installed
	@$(BIN)/python server.py $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

# in the system's Chromium, else in that of `playwright install chromium`
test-browser: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

test-container: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m container tests/container $(ARGS)

test-cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m cluster tests/cluster $(ARGS)

test-true-shapes: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m true_shapes tests/handlers/test_true_shapes.py $(ARGS)

fuzz: $(VENV)/.installed-fuzz
	SD_FUZZ_EXAMPLES=$(or $(EXAMPLES),20000) $(BIN)/python -m pytest tests/handlers/test_properties.py
	$(BIN)/python -m tests.fuzz $(ARGS)

soak: $(VENV)/.installed-dev
	SD_SOAK_ROUNDS=$(or $(ROUNDS),20) $(BIN)/python -m pytest -s tests/e2e/test_load.py $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

archives: $(VENV)/.installed
	$(BIN)/python -m admin.archive $(ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.serving $(ARGS)

bench-true-shapes: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.true_shapes $(ARGS)

train: $(VENV)/.installed-training
	$(BIN)/python -m training $(or $(ARGS),all)

eval-embedded: $(VENV)/.installed-training
	$(BIN)/python -m training evaluate $(ARGS)

clean:
	rm -rf $(VENV) logs build *.egg-info model_store/*.mar model_store/.staged

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed: make serve PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first, so that another build of it than PyPI's can be chosen
$(TORCH_STAMP): pyproject.toml $(BIN)/python
	@echo "Installing into $(VENV), once: a minute or more, $(if $(TORCH_INDEX),torch from $(TORCH_INDEX),mostly torch)."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--force-reinstall --index-url $(TORCH_INDEX)) $(TORCH)
	@rm -f $(VENV)/.torch* && touch $@

$(VENV)/.installed: $(TORCH_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

$(VENV)/.installed-training: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[training]'
	@touch $@
