# `make run` and `make test` do their own set-up in .venv; the second time they start at once.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=

.PHONY: run test check setup clean

run: setup ## the main job: the quick profile's methods and tasks
	$(BIN)/python -m bench run $(ARGS)

test: setup ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadscope $(ARGS)

check: setup ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/.ready

# robosuite comes without its dependencies: it declares a keyboard driver that needs a compiler and kernel headers.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install -c constraints.txt -e ".[dev]"
	$(PIP) install -c constraints.txt --no-deps robosuite
	touch $@

clean:
	rm -rf .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache
