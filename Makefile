# The commands a user types; each makes what it needs. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
# The tests' own environment: tools, and the TPU compiler, which warns in every program that there is no TPU.
DEV := $(VENV)-dev

.PHONY: demo test check benchmark clean

demo: $(VENV)/.installed
	$(VENV)/bin/python -m experiments.demo

test: $(DEV)/.installed
	$(DEV)/bin/python -m pytest -n auto

check: $(DEV)/.installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/pyright --pythonpath $(DEV)/bin/python

benchmark: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.step_time $(ARGS)

.PRECIOUS: %/bin/python
%/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("egattn needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $*

$(DEV)/.installed: EXTRAS := [dev]
%/.installed: setup.cfg pyproject.toml | %/bin/python
	$*/bin/python -m pip install --quiet --editable '.$(EXTRAS)'
	touch $@

clean:
	rm -rf $(VENV) $(DEV) build *.egg-info
