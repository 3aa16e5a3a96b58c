# Everything runs from .venv, which `make setup` fills from the locked requirements.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
FAST := tests/unit tests/golden

.PHONY: help setup demo test test-fast test-node test-matrix test-model test-kueue bench-trainer bench-preempt verify format generate golden lock bench soak docs clean \
	cluster-up cluster-down cluster-demo images sbom

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: ## Install everything into .venv; the command is .venv/bin/finetune
	@PYTHON=$(PYTHON) tools/setup.sh

demo: setup ## Fine-tune a small model on this machine with the quickstart and show what it learnt
	@$(BIN)/finetune run manifests/examples/quickstart.yaml --output-dir $${DEMO_DIR:-finetune-runs/quickstart}

test: setup ## Install what the tests need and run all of them
	$(BIN)/pytest $(FAST)
	$(BIN)/python -m tests.cluster.harness.binaries
	@tools/test.sh

test-node: setup ## Only the tests on a real node (kubelet, containerd); they need root
	$(BIN)/pytest tests/node

test-matrix: setup ## Train every supported cell of method x objective x strategy; writes benchmarks/results/matrix.json
	FINETUNE_MATRIX=all $(BIN)/pytest tests/trainer/test_matrix.py

test-model: setup ## SmolLM2 learns by lora, qlora, dora and dpo; minutes each
	$(BIN)/pytest tests/model -rP

test-kueue: setup ## Jobs in a queue of the real Kueue, on a real node; builds Kueue first
	$(BIN)/pytest tests/node/kueue

test-fast: setup ## Run the tests that take milliseconds
	@$(BIN)/pytest $(FAST) -q --durations=3

verify: setup ## Lint, types, layers, and that everything generated is up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	$(BIN)/python -m tools.generate --check

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: setup ## Write the CRD, the quickstart and the reference anew
	$(BIN)/python -m tools.generate

golden: setup ## Write the golden manifests anew; read the difference
	UPDATE_GOLDEN=1 $(BIN)/pytest -q tests/golden

lock: ## Lock the requirements anew
	requirements/compile.sh

docs: generate ## Write the reference pages

cluster-up: setup ## Start a real one-node cluster with both images; prints a kubeconfig
	@$(BIN)/python -m tests.node.harness up

cluster-down: setup ## End it
	@$(BIN)/python -m tests.node.harness down

cluster-demo: setup ## The cluster, the chart and the quickstart, with the answers before and after
	@$(BIN)/python -m tests.node.harness demo

images: setup ## Build both images for the node; prints sizes and times
	@$(BIN)/python -m tests.node.harness images

sbom: setup ## Write dist/sbom/*.cdx.json
	@$(BIN)/python -m tests.node.harness sbom

bench: bench-trainer bench-preempt ## Measure against named peers
	$(BIN)/python -m benchmarks.reconcile

bench-trainer: setup ## Tokens/s and memory of the trainer against plain scripts
	$(BIN)/python -m benchmarks.trainer

bench-preempt: setup ## What an interruption costs, against transformers' own just-in-time checkpoint
	$(BIN)/python -m benchmarks.preempt

soak: setup ## The long forms of the fault tests; writes benchmarks/results/soak.json
	FINETUNE_SOAK=1 $(BIN)/pytest tests/fault/test_kill.py tests/trainer/test_stop.py tests/trainer/test_checkpoint_s3.py tests/node/test_no_step_lost.py

clean: ## Remove what the targets made in this checkout
	rm -rf .venv finetune-runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
