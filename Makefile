# Two commands on a fresh machine: `make demo` does the whole of it, `make test` passes the tests.
# ARGS reaches the command: `make demo ARGS="--seed 1 --out runs/one"`.
PYTHON ?= python3
RUN ?= runs/demo
ARGS ?=
BIN := .venv/bin
export TOKENIZERS_PARALLELISM = false

.PHONY: demo report test test-slow lint format docs base evidence peers bench-evaluation clean

demo: .venv/ready
	$(BIN)/xreasoner demo $(ARGS)

report: .venv/ready
	$(BIN)/xreasoner report $(RUN) $(ARGS)

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

# the commands' help, in docs/cli.md; a test compares
docs: .venv/ready
	$(BIN)/python tests/test_docs.py

base: .venv/ready
	$(BIN)/python -m xreasoner.tiny.base

evidence: .venv/ready
	$(BIN)/python -m xreasoner.tiny.evidence

# grading and speed beside lm-eval, math-verify and Inspect; ARGS: parts, --items N (benchmarks/evaluation.py)
bench-evaluation: .venv/ready peers
	PYTHONPATH=src $(BIN)/python benchmarks/evaluation.py $(ARGS)

# others' packages, in an environment of their own
peers: .venv-peers/ready

.venv-peers/ready:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q "torch==2.13.0"
	.venv-peers/bin/python -m pip install -q "transformers>=5.16.1,<5.20" "lm-eval[hf]==0.4.13" "inspect-ai==0.3.285" \
		"math-verify==0.9.0" "antlr4-python3-runtime==4.11.*"
	touch $@

# torch comes first and by its exact version, so that a build that is there already, or that pip is pointed to, is
# taken: PyPI's build for Linux brings CUDA, which a machine with no GPU has no use for.
.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q "torch==2.13.0"
	$(BIN)/python -m pip install -q --group dev -e .
	touch $@

clean:
	rm -rf .venv .venv-peers runs build dist
