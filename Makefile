# Two commands do all: `make run` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := common beam_pipelines spark_jobs feature_repo tests benchmarks

.PHONY: help run test test-fast test-faults conformance conformance-spark lint format lock bench bench-runner clean

help:  ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY)  ## the main job on embedded services, from nothing: Kafka to served features
	$(BIN)/python -m beam_pipelines run --runner=SparkRunner

test: lint test-fast  ## all checks and tests; what CI runs
	$(BIN)/python -m pytest -q -m "slow and not bench and not matrix"

test-fast: $(READY)  ## the tests that start no service
	$(BIN)/python -m pytest -q -m "not slow and not bench"

test-faults: $(READY)  ## kills processes and compares what is left
	$(BIN)/python -m pytest -q -m fault

conformance: $(READY)  ## Beam's own suites on SparkRunner in process, batch and streaming
	$(BIN)/python -m tests.conformance --transport local --refresh
	$(BIN)/python -m tests.conformance.capabilities

conformance-spark: $(READY)  ## the same suites as Spark jobs
	$(BIN)/python -m tests.conformance --transport spark --refresh
	$(BIN)/python -m tests.conformance.capabilities

lint: $(READY)  ## ruff, mypy --strict, and the import law
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(wildcard $(SOURCES))
	$(BIN)/lint-imports

format: $(READY)  ## ruff's formatter and its safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## measure the main job, and the parts against their peers
	$(BIN)/python -m benchmarks.main_job
	$(BIN)/python -m pytest -q -s -m bench

bench-runner: $(READY)  ## measure SparkRunner against Beam's in-memory runner, PySpark and Beam's trigger driver
	$(BIN)/python -m benchmarks.runner

lock: $(READY)  ## resolve the dependencies anew, with hashes
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --all-extras pyproject.toml -o requirements/dev.lock

clean:  ## stop the services, remove their data and the caches; the environment stays
	-[ -x $(BIN)/python ] && $(BIN)/python -m beam_pipelines services down
	rm -rf .pipelines .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The environment, made once: a locked installer, the locked dependencies, then the project itself.
$(READY): requirements/bootstrap.lock requirements/dev.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bootstrap.lock
	@# Compiled once here: without .pyc files each Python process would compile Beam for ~10 s.
	$(BIN)/uv pip sync -q --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/bootstrap.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@
