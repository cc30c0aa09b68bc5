# Two commands set up everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

# Where no source of the real models is reachable, the synthetic set takes their place (data build says so).
quickstart: $(VENV)/.quickstart
	@set -e; variant=; \
	$(BIN)/openshape data build sweethome3d --fallback primitives || \
	  if [ $$? -eq 3 ]; then variant=primitives; else exit 1; fi; \
	$(BIN)/python -m openshape_jax.main --config=configs/quickstart.py$${variant:+:$$variant} \
	  --workdir=runs/quickstart$${variant:+-$$variant}

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

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
