# Everything here needs only make and Python 3.9 or newer. The environment is made in .venv on the
# first run; PYTHON=python3.12 (say) chooses another interpreter, `make clean` starts afresh.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGING := setup.cfg setup.py pyproject.toml
ARGS ?=
# For both in one run: make soak matrix SOAK="--seed 1" MATRIX=ends
SOAK ?= $(ARGS)
MATRIX ?= $(ARGS)
# Tests wait more than they compute.
JOBS ?= 6
# Where this is set, every program that a test starts would compile all of revconn again.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(BIN)/$(if $(COVERAGE),coverage run,python) -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types imports docs bench soak fuzz proto matrix coverage floors clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/run.stamp  ## a gateway, a connector and a client on real sockets (ARGS="--requests 100")
	@echo "make demo: calls through a gateway into a handler, and a gateway that dies and comes back"
	@$(BIN)/revconn demo $(ARGS)

# With EMBEDDING=required uWSGI is there too, and a test that finds something missing fails; with
# FRONT_PROXIES=required so does one that finds nginx, HAProxy or Caddy missing.
test: $(VENV)/$(if $(EMBEDDING),all,$(if $(COVERAGE),dev,test)).stamp  ## run the tests (ARGS="-k deadline -x")
	@echo "make test: running the tests, $(JOBS) at a time"
	@$(PYTEST) -m "not alone" -n $(JOBS) $(ARGS)
	@echo "make test: those that measure time, alone"
	@$(PYTEST) -m alone $(ARGS) || [ $$? = 5 ]  # 5: none of them was asked for

lint: $(VENV)/dev.stamp  ## ruff: rules and formatting
	@echo "make lint: ruff check, ruff format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/dev.stamp  ## let ruff format and fix what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/dev.stamp  ## mypy --strict
	@echo "make types: mypy --strict revconn"
	@$(BIN)/mypy --strict

imports: $(VENV)/dev.stamp  ## who may import whom (setup.cfg, [importlinter])
	@echo "make imports: the import contracts"
	@$(BIN)/lint-imports

docs: $(VENV)/dev.stamp  ## build docs/_build/html, warnings as errors
	@echo "make docs: docs/_build/html"
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

coverage: $(VENV)/dev.stamp  ## the tests under coverage, and its floors
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory test COVERAGE=yes
	@$(MAKE) --no-print-directory floors

floors: $(VENV)/dev.stamp  ## hold what the tests covered to 95 % of revconn, 100 % of revconn.core and of what links decide
	@echo "make floors: branch coverage"
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report --fail-under=95
	@$(BIN)/coverage report --include='revconn/core/*,revconn/link/plan.py,revconn/link/records.py' --fail-under=100

matrix: $(VENV)/test.stamp  ## the tests on every Python found, oldest and newest dependencies
	@echo "make matrix: the tests on every Python found"
	@$(BIN)/python -m tests.matrix $(MATRIX)

bench: $(VENV)/bench.stamp  ## CPU time per request and requests per second
	@echo "make bench: measuring"
	@$(BIN)/python -m benchmarks $(ARGS)

# Linux. ARGS="--requests 20000 --seed 1 --transport grpcio"
soak: $(VENV)/test.stamp  ## 200,000 calls over a network that breaks every second
	@echo "make soak: calls over a network that breaks every second"
	@$(BIN)/python -m tests.soak $(SOAK)

fuzz: $(VENV)/fuzz.stamp  ## broken conversations for 60 s, with atheris (ARGS="-runs=100000")
	@echo "make fuzz: the http2 transport, and the gateway, against whatever peers may say"
	@$(BIN)/python -m tests.fuzz $(ARGS)

# grpcio-tools 1.62 has wheels for Python 3.9 to 3.12 only, and an environment of its own
# because its protobuf is not the newest.
PROTO_TOOLS := grpcio-tools==1.62.3 "setuptools<81"

proto: .venv-proto/stamp  ## compile protos/ into revconn/_proto
	@echo "make proto: compiling protos/ into revconn/_proto"
	@.venv-proto/bin/python protos/generate.py

.venv-proto/stamp: Makefile
	@for python in $(PYTHON) python3 python3.12 python3.11 python3.10 python3.9; do \
	  if $$python -c 'import sys, venv; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	    echo "make proto: installing grpcio-tools into .venv-proto ($$python)"; \
	    $$python -m venv --clear .venv-proto && \
	    .venv-proto/bin/pip install --quiet --only-binary :all: $(PROTO_TOOLS) && \
	    touch $@ && exit 0; exit 1; \
	  fi; \
	done; \
	echo "make proto needs a Python from 3.9 to 3.12; name one with PYTHON=…" >&2; exit 1

clean:  ## remove everything that was made here
	rm -rf $(VENV) .venv-proto .matrix .coverage .coverage.* build dist docs/_build *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment: what each kind of target needs, installed when the packaging changes.

$(VENV)/run.stamp: EXTRAS :=
$(VENV)/test.stamp: EXTRAS := [test]
$(VENV)/dev.stamp: EXTRAS := [dev]
$(VENV)/fuzz.stamp: EXTRAS := [fuzz]
$(VENV)/bench.stamp: EXTRAS := [bench]
$(VENV)/all.stamp: EXTRAS := [dev,uwsgi]
# To compile uWSGI takes more than all the rest, and half of that is to optimize it.
$(VENV)/all.stamp: export CFLAGS := $(CFLAGS) -O0

# What is installed along, so that nobody asks for it again.
$(VENV)/test.stamp: ALONG := run
$(VENV)/dev.stamp: ALONG := run test
$(VENV)/all.stamp: ALONG := run test dev

$(VENV)/%.stamp: $(VENV)/made $(PACKAGING)
	@echo "make: installing revconn$(EXTRAS) into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.$(EXTRAS)'
	@touch $@ $(ALONG:%=$(VENV)/%.stamp)

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || \
	  { echo "revconn needs Python 3.9 or newer; name one: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "make: creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
