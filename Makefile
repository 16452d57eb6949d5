# The commands a user types; each makes what it needs. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
# The tests' own environment: tools, and the TPU compiler, which warns in every program that there is no TPU.
DEV := $(VENV)-dev
# The documentation's: mkdocs and what it reads docstrings with.
DOCS := $(VENV)-docs
# The program that executes private inference: SPU needs Python 3.10 or 3.11. Without one the tests
# of that program are skipped.
PRIVATE := $(VENV)-private
PRIVATE_PYTHON := $(shell for p in $(PYTHON) python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test test-all check docs benchmark paper active-matter zeta private private-env clean

demo: $(VENV)/.installed
	$(VENV)/bin/python -m experiments.demo

# Without the slow tests, and with them. Neighbours stay in one process: they share what they make.
test: MARKED := -m "not slow"
test test-all: $(DEV)/.installed $(if $(PRIVATE_PYTHON),$(PRIVATE)/.installed)
	EGATTN_PRIVATE_PYTHON=$(abspath $(PRIVATE))/bin/python $(DEV)/bin/python -m pytest -n auto --dist worksteal $(MARKED)

check: $(DEV)/.installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/pyright --pythonpath $(DEV)/bin/python

# The site, in site/; a warning is an error. To look at it while writing: $(DOCS)/bin/mkdocs serve
docs: $(DOCS)/.installed
	$(DOCS)/bin/mkdocs build --strict

benchmark: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.step_time $(ARGS)

# A study of the paper at toy size, and its table.
paper: $(VENV)/.installed
	$(VENV)/bin/python -m experiments.paper run depth --smoke
	$(VENV)/bin/python -m experiments.paper tables depth --smoke

# Entropy production of active matter, held against exact answers.
active-matter: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[flow]'
	$(VENV)/bin/python -m experiments.active_matter demo

# Zeros of zeta searched and proved, a control, rare events, in minutes: a page in report/zeta.
zeta: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[zeta]'
	$(VENV)/bin/python -m experiments.zeta demo

# A token of the demo's decoder, computed by two processes: one has the prompt, the other the weights.
private: exports/demo/program.json $(PRIVATE)/.installed
	$(PRIVATE)/bin/python experiments/private_inference/run.py exports/demo --processes

private-env: $(PRIVATE)/.installed

runs/demo/ereg_sm_t_scfuffn/config.json: | $(VENV)/.installed
	$(VENV)/bin/python -m experiments.demo

exports/demo/program.json: runs/demo/ereg_sm_t_scfuffn/config.json $(wildcard egattn/private/*.py)
	rm -rf exports/demo
	$(VENV)/bin/egattn private export runs/demo/ereg_sm_t_scfuffn exports/demo --length 64

$(PRIVATE)/.installed: experiments/private_inference/requirements.txt
	@test -n "$(PRIVATE_PYTHON)" || { echo "SPU needs Python 3.10 or 3.11; try make private PRIVATE_PYTHON=python3.11" >&2; exit 1; }
	$(PRIVATE_PYTHON) -m venv $(PRIVATE)
	$(PRIVATE)/bin/python -m pip install --quiet --requirement $<
	touch $@

.PRECIOUS: %/bin/python
%/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("egattn needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $*

$(DEV)/.installed: EXTRAS := [dev]
$(DOCS)/.installed: EXTRAS := [docs]
%/.installed: setup.cfg pyproject.toml | %/bin/python
	$*/bin/python -m pip install --quiet --editable '.$(EXTRAS)'
	touch $@

clean:
	rm -rf $(VENV) $(DEV) $(DOCS) $(PRIVATE) build site *.egg-info
