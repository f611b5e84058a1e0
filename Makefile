# `make` alone explains. Everything runs in .venv, without prompts and without an account.

.DEFAULT_GOAL := help
.PHONY: help setup quickstart report test lint clean

# Inherited from some containers; it makes every start two to three times as slow.
unexport PYTHONDONTWRITEBYTECODE
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

VITA := .venv/bin/vita-vla
FAST ?=
RUN ?= work/quickstart$(if $(filter-out 0,$(FAST)),-fast)

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14
	@echo
	@echo "FAST=1        tiny budgets, for quickstart and report: shows that it works, not how well"
	@echo "RUN=folder    run folder (default: $(RUN))"
	@echo "PYTHON=path   interpreter for setup (default: any Python 3.12 or 3.13 that is found)"

setup:  ## make .venv with the exact versions of requirements.lock, and check that rendering works
	@PYTHON="$(PYTHON)" scripts/setup.sh

quickstart: setup  ## the whole flow: record, teacher, align, finetune, evaluate, report (FAST=1: in minutes)
	@$(VITA) quickstart --run $(RUN) $(if $(filter-out 0,$(FAST)),--fast)

report: setup  ## make the page of a run again (RUN=work/quickstart)
	@$(VITA) report $(RUN)

test:  ## all tests, offline
	@PYTHON="$(PYTHON)" scripts/setup.sh --test
	@HF_HUB_OFFLINE=1 .venv/bin/python -m pytest $(ARGS)

lint: setup  ## style: ruff check and format
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

clean:  ## remove .venv and what tools left behind; runs in work/ stay
	rm -rf .venv build dist .pytest_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
