# Two commands on a fresh machine: `make demo` does the whole of it, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin
# matrix products on the CPU gain nothing from more threads than cores
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-slow lint format base evidence clean

demo: .venv/ready
	$(BIN)/xreasoner demo

test: .venv/ready lint
	$(BIN)/python -m pytest -q

test-slow: .venv/ready
	$(BIN)/python -m pytest -q -m slow

lint: .venv/ready
	$(BIN)/ruff format --check -q src tests
	$(BIN)/ruff check -q src tests
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format -q src tests
	$(BIN)/ruff check --fix -q src tests

base: .venv/ready
	$(BIN)/python -m xreasoner.tiny.base

evidence: .venv/ready
	$(BIN)/python -m xreasoner.tiny.evidence

# torch comes first and by its exact version, so that a machine with a CPU build at hand takes that one.
.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q "torch==2.13.0"
	$(BIN)/python -m pip install -q --group dev -e .
	touch $@

clean:
	rm -rf .venv runs build dist
