# The few commands a person types. `make demo` and `make test` do all the set-up too.
.PHONY: demo test lint bench lock clean
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
RUN := demo
CONFIG := config/config.yaml

demo: $(READY)
	@mkdir -p results
	@# flock keeps two of make's runs apart and ends with them, however they end; those of a plain
	@# snakemake tell by its own locks, which make's leave none of.
	@exec 9> results/.make.lock; flock -w 10 9 || { echo "make: another run is going on here" >&2; exit 1; }; \
	PATH="$(CURDIR)/$(BIN):$$PATH"; export PATH; \
	set -- .snakemake/locks/*.lock; if [ -e "$$1" ]; then \
	echo "make: a snakemake is at work here, or was killed; wait for it, or, if none runs, say" \
	"$(BIN)/snakemake --unlock --cores 1 --configfile $(CONFIG)" >&2; exit 1; fi; \
	snakemake --cores all --configfile $(CONFIG) --nolock && \
	echo && echo "Tables:  results/$(RUN)/tables/*.md (also .csv .tex .html)" && \
	echo "Figures: results/$(RUN)/figures/*.png (also .svg .pdf)" && \
	echo "Report:  results/$(RUN)/report.html"

test: $(READY)
	@# A file of tests goes to one process; the long ones come first (tests/conftest.py).
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakefmt --check --diff Snakefile workflow/rules
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --lint --configfile $(CONFIG)

bench: $(READY)
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

lock:
	envs/lock.sh

$(READY): envs/requirements.lock pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r envs/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

clean:
	rm -rf results/$(RUN)
