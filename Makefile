# `make demo` and `make test` are all the set-up there is: each works alone on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check fast lint docs bench clean

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

clean:
	rm -rf .venv .pytest_cache .ruff_cache dist build

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)
