# Two commands set up everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

.PHONY: quickstart test lint clean

quickstart: $(VENV)/.quickstart
	$(BIN)/openshape quickstart --workdir=$(RUN)

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: setup.py | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check -e '.[quickstart]'
	touch $@

$(VENV)/.test: setup.py | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
