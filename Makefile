# `make demo` and `make test` are all the set-up there is: each works alone on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check fast lint docs bench bench-peers peer-losses bench-gpu gpu-plan study study-quick study-tune advice-regret test-browser test-vllm clean

demo: $(READY)
	$(BIN)/modeseek quickstart

test: $(READY) lint
	$(BIN)/pytest -n 2 --dist worksteal

check: $(READY) lint fast

fast: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/python -m modeseek.catalogue docs/objectives.md

bench: $(READY)
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/hypo.py
	$(BIN)/python benchmarks/vocabulary.py

# Against TRL, in an environment of its own.
bench-peers: .venv-peers/ready
	.venv-peers/bin/python benchmarks/peers.py --markdown peers.md --json peers.json
	.venv-peers/bin/python benchmarks/peers.py --case dpo --model M --markdown peers.md --json peers-M.json \
		--peer "TRL, fp32, precomputed" --peer "TRL, fp32, precomputed, compacted"

# Losses and gradients against TRL's own trainers, through import-config.
peer-losses: .venv-peers/ready
	.venv-peers/bin/python benchmarks/peer_known.py
	.venv-peers/bin/python benchmarks/peer_losses.py --markdown peer_losses.md

# On a GPU, with that machine's own Python; `make gpu-plan` first, where modeseek is installed.
bench-gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py $(if $(wildcard gpu-plan.json),--plan gpu-plan.json) --markdown gpu.md --json gpu.json

gpu-plan: $(READY)
	$(BIN)/python benchmarks/gpu.py --write-plan gpu-plan.json

study: $(READY)
	$(BIN)/modeseek study all --purpose report --markdown docs/studies/all.md

study-quick: $(READY)
	$(BIN)/modeseek study all --quick

study-tune: $(READY)
	$(BIN)/modeseek study all --tune

# 400 worlds of each of three generators: 19 minutes of a busy core; QUICK=--quick, 60 of each: 3 minutes
advice-regret: $(READY)
	$(BIN)/python benchmarks/advice_regret.py $(QUICK)

test-browser: $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[browser]"
	$(BIN)/pytest tests/browser -m browser

test-vllm: $(READY)
	$(BIN)/python tests/vllm_server/install.py .venv-vllm || echo "vLLM cannot be installed here: its tests are skipped"
	$(BIN)/pytest tests/vllm_server -m vllm -rs

clean:
	rm -rf .venv .venv-peers .venv-vllm .pytest_cache .ruff_cache dist build

.venv-peers/ready: pyproject.toml constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/peers.txt -e .
	touch .venv-peers/ready

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)
