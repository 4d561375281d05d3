# Every target makes what it needs by itself: Python >= 3.11 and make are enough. PYTHON=... names another Python.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test check format api reference bench soak clean

PYTHON ?=
export PYTHON

bin := .venv/bin
cli := @sh scripts/setup cli
dev := @sh scripts/setup dev

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

DIR ?= .
demo: export DEMO_DIR = $(value DIR)
demo: ## Count the words of a folder's text files with two workers (DIR=., any folder)
	$(cli)
	@$(bin)/python -m examples.wordcount -- "$$DEMO_DIR"

# Most tests wait for processes that they have started, so three at a time keep two cores busy.
JOBS ?= 3
test: ## Run all tests, three at a time (JOBS=0: one by one; ARGS="-k retry -x", anything pytest takes)
	$(dev)
	@$(bin)/python scripts/services install redis rabbitmq memcached
	@$(bin)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: ## Check format, lint, strict types and import floors
	$(dev)
	@$(bin)/ruff format --check --quiet . || { echo "make format puts this right"; exit 1; }
	@$(bin)/ruff check --quiet .
	@$(bin)/mypy --no-error-summary
	@$(bin)/lint-imports --no-logo --cache-dir .import_linter_cache

format: ## Format the code, and fix what ruff can fix
	$(dev)
	@$(bin)/ruff check --fix-only --quiet .
	@$(bin)/ruff format --quiet .

api: ## Write down the public API as it is now (tests/unit/public_api.txt)
	$(dev)
	@$(bin)/python -m tests.unit.test_public_api --update

reference: ## Write the command line's reference into docs/cli.md, from the parsers
	$(dev)
	@$(bin)/python -m greenroom.cli.reference

bench: ## Run the benchmarks, each against a peer on the same engine (CASE=drain for one)
	$(dev)
	@$(bin)/python -m benchmarks $(CASE)

MINUTES ?= 20
SEED ?= 1
ENGINE ?= sqlite
soak: ## Kill, stall and reload workers for MINUTES=20, on ENGINE=sqlite, redis or rabbitmq, storms counted from SEED=1
	$(dev)
	@$(bin)/python -m tests.chaos.storm --minutes "$(MINUTES)" --seed "$(SEED)" --engine "$(ENGINE)"

clean: ## Remove the environment, the caches and what the demo may have left
	@rm -rf .venv .greenroom/wordcount .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
