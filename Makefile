# make search    the main job on the default example: trains it once, then searches for BUDGET
# make test      lint, types and tests, as CI runs them
# Both set themselves up on a fresh machine; what is already done is not done again.

BUDGET ?= 3m
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: search test setup clean

search: $(READY)
	$(BIN)/python experiments/digits/task.py
	$(BIN)/autocompress search --budget $(BUDGET)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadgroup

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing autocompress and its dependencies into .venv (once, some minutes)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
