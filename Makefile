# gateshift: everything a fresh machine needs. `make rehearse` and `make test` set up what they use.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install check test test-long docs docs-test browser browser-test rehearse lab-up lab-down torture lock clean bench-diagnose bench-judge

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## Make .venv with the locked versions; .venv/bin/gateshift is the command

$(STAMP): requirements.lock pyproject.toml
	@PYTHON=$(PYTHON) deploy/install.sh $(VENV)
	@touch $@

check: install  ## Lint, types, layers and unit tests (no lab), under two minutes
	@$(BIN)/ruff check lib tests bench
	@$(BIN)/ruff format --check lib tests bench
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@$(BIN)/pytest -q -n 3 --dist worksteal -m "not lab and not slow"

test: check  ## Everything: check, the lab's tests, nbval of the notebooks, a short rehearsal
	@$(BIN)/pytest -q -n 2 --dist loadgroup -m "(lab or slow) and not long and not browser and not docs"
	@$(BIN)/gateshift rehearse --short --keep --lab test
	@GATESHIFT_LAB=test GATESHIFT_MIGRATION=nbval $(BIN)/pytest -q -x --nbval-lax --nbval-cell-timeout=180 -p no:cacheprovider notebooks; \
		code=$$?; $(BIN)/gateshift lab down --name test; exit $$code

test-long: install browser  ## What takes minutes each: the browser, the documentation's commands, mechanisms combined
	@$(BIN)/pytest -q -m "long or browser or docs"

docs: install  ## Build the documentation site into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict && echo "build/site/index.html"

browser:  ## Install Chromium for the browser test, where this may be done
	@if command -v chromium chromium-browser google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing Chromium for the browser test"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium >/dev/null; } || echo "Chromium cannot be installed here: the browser test will be skipped"; \
	else echo "no Chromium, and no right to install it: the browser test will be skipped"; fi

browser-test: install browser  ## An operator's way through JupyterLab on the lab, in Chromium (part of `make test-long`)
	@$(BIN)/pytest -q -m browser

docs-test: install  ## Type the documentation's commands one after the other, on the lab (part of `make test-long`)
	@$(BIN)/pytest -q -m docs

rehearse: install  ## A whole migration in the lab, then one that is broken on purpose
	@$(BIN)/gateshift rehearse

lab-up: install  ## Start the lab, to step through the notebooks by hand
	@$(BIN)/gateshift lab up

lab-down:  ## Stop the lab
	@$(BIN)/gateshift lab down

lock: install  ## Resolve the locked versions anew
	@$(BIN)/uv pip compile pyproject.toml --extra lab --extra dev --no-annotate --no-header \
		--universal --python-version 3.11 -q -o requirements.lock

clean:  ## Remove the virtual environment and caches of this clone
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis lib/*.egg-info

torture: install  ## Kill a migration at 10,000 random points; each must resume
	@GATESHIFT_CRASH_POINTS=10000 $(BIN)/pytest -q -n auto --durations=5 tests/crash tests/archive/test_audit.py

bench-diagnose: install  ## Inject some 90 faults into a lab; measure how well diagnose names their cause
	@$(BIN)/python -m bench.diagnose --write

bench-judge: install  ## Measure the judge beside Flagger, Argo and Kayenta; writes docs/verdicts.md
	@$(BIN)/python bench/judge.py --out docs/verdicts.md
