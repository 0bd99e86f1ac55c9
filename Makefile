# `make serve` starts the server, `make test` passes the tests; both install what they need into .venv first.

# the Python to make .venv with; by default the newest suitable one that is there (deploy/find_python.sh)
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
# another torch than the tested one, or another build of it: make serve TORCH=2.15.0,
# make serve TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_INDEX ?=
# the stamp of the torch that is installed, one for each version and index
TORCH_STAMP := $(VENV)/.torch-$(TORCH)$(subst /,-,$(subst :,,$(TORCH_INDEX)))
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# the project in this folder, with one of its extras
INSTALL = @$(PIP) --constraint $(VENV)/constraints.txt -e '.$(1)' && touch $@
export SD_HOME := $(CURDIR)

.PHONY: serve test test-ci test-faults fault-matrix test-pythons test-browser test-container test-cluster test-clients \
  test-true-shapes fuzz soak check lock archives bench bench-true-shapes train eval-embedded clean

serve: $(VENV)/.installed
	@$(BIN)/python server.py $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 3 $(ARGS)

# what `make test` leaves out, as CI runs it: two at a time
test-ci: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder \
	  -m 'faults or pythons or browser or container or cluster or clients or thorough' \
	  tests/package tests/container tests/cluster tests/faults tests/clients tests/browser tests/handlers tests/launch \
	  tests/training $(ARGS)

# load, faults, reloads, other models, shutdown: many servers
test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m faults tests/faults $(ARGS)

# every part killed, ended and stopped, idle and loaded: docs/reliability.md's table
fault-matrix: $(VENV)/.installed-dev
	SD_FAULT_MATRIX=1 $(BIN)/python -m pytest -s -m faults tests/faults/test_matrix.py $(ARGS)

# the wheel in a venv of the oldest and of the newest Python that is there
test-pythons: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m pythons tests/package $(ARGS)

# in the system's Chromium, else in that of `playwright install chromium`
test-browser: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

test-container: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m container tests/container $(ARGS)

test-cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m cluster tests/cluster $(ARGS)

# other programs' libraries, those of Python in venvs of their own, those of JavaScript with Node.js 20 or later
test-clients: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m clients tests/clients $(ARGS)

test-true-shapes: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m true_shapes tests/handlers/pipelines/test_true_shapes.py $(ARGS)

fuzz: $(VENV)/.installed-fuzz
	SD_FUZZ_EXAMPLES=$(or $(EXAMPLES),20000) $(BIN)/python -m pytest tests/handlers/test_properties.py
	$(BIN)/python -m tests.fuzz $(ARGS)

soak: $(VENV)/.installed-dev
	SD_SOAK_ROUNDS=$(or $(ROUNDS),20) $(BIN)/python -m pytest -s -m faults tests/faults/test_load.py $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# constraints.txt from pyproject.toml; UPGRADE=1 looks for newer versions
lock: $(VENV)/.installed
	$(PIP) 'uv>=0.13'
	cp constraints.txt $(VENV)/lock.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --all-extras --no-header \
	  --no-annotate $(if $(UPGRADE),--upgrade) --output-file $(VENV)/lock.txt pyproject.toml
	(grep '^#' constraints.txt; grep -Ev '^(nvidia|cuda|triton)' $(VENV)/lock.txt) > $(VENV)/locked.txt
	mv $(VENV)/locked.txt constraints.txt

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
	rm -rf $(VENV) logs build dist *.egg-info model_store/*.mar model_store/.staged

# an environment that is there keeps its Python
$(BIN)/python:
	@python=$$(sh deploy/find_python.sh '$(PYTHON)') && \
	  echo "$(VENV) gets $$("$$python" --version), from $$(command -v "$$python")." && "$$python" -m venv $(VENV)
ifneq (,$(and $(PYTHON),$(wildcard $(BIN)/python)))
ifneq ($(shell $(PYTHON) --version 2>&1),$(shell $(BIN)/python --version 2>&1))
$(error $(VENV) has $(shell $(BIN)/python --version 2>&1), not $(PYTHON): remove it with `make clean`, or name another with VENV=)
endif
endif

# torch comes first, so that another version or build of it than the tested one can be chosen
$(TORCH_STAMP): constraints.txt pyproject.toml $(BIN)/python
	@echo "Installing into $(VENV), once, which takes minutes: torch $(TORCH)$(if $(TORCH_INDEX), from $(TORCH_INDEX)) first."
	@$(PIP) $(if $(TORCH_INDEX),--force-reinstall --index-url $(TORCH_INDEX)) torch==$(TORCH)
	@$(BIN)/python deploy/constraints.py > $(VENV)/constraints.txt
	@rm -f $(VENV)/.torch* && touch $@

$(VENV)/.installed: $(TORCH_STAMP)
	@echo "Installing the other packages."
	$(call INSTALL)

$(VENV)/.installed-dev: $(VENV)/.installed
	$(call INSTALL,[dev])

$(VENV)/.installed-fuzz: $(VENV)/.installed
	$(call INSTALL,[fuzz])

$(VENV)/.installed-bench: $(VENV)/.installed
	$(call INSTALL,[bench])

$(VENV)/.installed-training: $(VENV)/.installed
	$(call INSTALL,[training])
