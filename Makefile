# Two commands on a fresh machine: `make demo` does the whole of it, `make test` passes the tests.
# ARGS reaches the command: `make demo ARGS="--seed 1 --out runs/one"`.
PYTHON ?= python3
RUN ?= runs/demo
ARGS ?=
BIN := .venv/bin
export TOKENIZERS_PARALLELISM = false

.PHONY: demo report test test-slow test-trl kills bench-training lint format docs base evidence clean

demo: .venv/ready
	$(BIN)/xreasoner demo $(ARGS)

report: .venv/ready
	$(BIN)/xreasoner report $(RUN) $(ARGS)

test: .venv/ready lint
	$(BIN)/python -m pytest -q

test-slow: .venv/ready
	$(BIN)/python -m pytest -q -m slow

lint: .venv/ready
	$(BIN)/ruff format --check -q src tests benchmarks
	$(BIN)/ruff check -q src tests benchmarks
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format -q src tests benchmarks
	$(BIN)/ruff check --fix -q src tests benchmarks

# the commands' help, in docs/cli.md; a test compares
docs: .venv/ready
	$(BIN)/python tests/test_docs.py

# our losses beside TRL's own, in an environment of its own
test-trl: .venv-trl/ready
	PYTHONPATH=src .venv-trl/bin/python -m pytest -q --noconftest -W default tests/peers/test_trl.py

# fifty runs killed with -9 at random moments, resumed until done: the weights of an unbroken run, bit for bit
kills: .venv/ready
	$(BIN)/python -m pytest -q -s -m slow tests/training/test_kills.py

# tokens a second, seconds of a step and memory beside TRL's; ratios in one run
bench-training: .venv/ready .venv-trl/ready
	$(BIN)/python benchmarks/training.py $(ARGS)

base: .venv/ready
	$(BIN)/python -m xreasoner.tiny.base

evidence: .venv/ready
	$(BIN)/python -m xreasoner.tiny.evidence

# torch comes first and by its exact version, so that a build that is there already, or that pip is pointed to, is
# taken: PyPI's build for Linux brings CUDA, which a machine with no GPU has no use for.
.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q "torch==2.13.0"
	$(BIN)/python -m pip install -q --group dev -e .
	touch $@

.venv-trl/ready:
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install -q "torch==2.13.0"
	.venv-trl/bin/python -m pip install -q "trl==1.16.*" "transformers>=5.16.1,<5.20" peft pillow "pytest>=8" pytest-timeout
	touch $@

clean:
	rm -rf .venv .venv-trl runs build dist
