# Only Python >= 3.11 and make are assumed; the environment is created when it is missing or out of date.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests start hundreds of processes: compiled modules are kept for them, also where the environment says otherwise.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check install clean gpu-report

install: $(STAMP)

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[log,data,export,recordings,plot,serve]" --group dev
	@touch $@

demo: $(STAMP)
	$(BIN)/rgbdseg demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# DATA=folder names a prepared dataset, which loading is measured with.
gpu-report: $(STAMP)
	$(BIN)/python benchmarks/gpu_report.py $(if $(DATA),--data $(DATA)) --out gpu-report.md

clean:
	rm -rf demo .mypy_cache .ruff_cache .pytest_cache
