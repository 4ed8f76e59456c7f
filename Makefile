# The two commands of the README are `make quickstart` and `make test`; `make check` is what a change must pass, too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
PIP := $(BIN)/pip --disable-pip-version-check --no-input

export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: quickstart test check format docs clean

quickstart: $(VENV)/.run-installed
	$(BIN)/tunesmith run recipes/quickstart.yaml

test: $(VENV)/.dev-installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

check: $(VENV)/.dev-installed
	$(BIN)/ruff format --check src tests scripts benchmarks quickstart
	$(BIN)/ruff check src tests scripts benchmarks quickstart
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --config pyproject.toml
	$(BIN)/python scripts/make_docs.py --check
	$(BIN)/python quickstart/make_data.py --check
	$(BIN)/python scripts/budgets.py

format: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix src tests scripts benchmarks quickstart
	$(BIN)/ruff format src tests scripts benchmarks quickstart

docs: $(VENV)/.dev-installed
	$(BIN)/python scripts/make_docs.py

# torch first, from a file or an index of CPU builds where PIP_* settings name one; constraints.txt pins the rest.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP) install -q -c constraints.txt "$(TORCH)"
	$(PIP) install -q -c constraints.txt -e ".[train,serve,eval,tensorboard]"
	$(BIN)/python -m compileall -q src
	touch $@

$(VENV)/.dev-installed: $(VENV)/.run-installed
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) outputs artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis
