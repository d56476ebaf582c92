# Every target creates .venv first if it is missing. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch comes first and pinned: the range in setup.py would install several GB of CUDA on a machine without a GPU.
TORCH ?= torch==2.13.0
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-full test-faults test-gpu check bench bench-data bench-model reference clean

quickstart: $(INSTALLED)
	$(BIN)/dsmath quickstart --out runs/quickstart

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

test-full: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not gpu"

test-faults: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m fault -p tests.faults.closing_table

test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet -e ".[check]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/generate_reference.py --check
	$(BIN)/python tools/generate_fault_list.py --check

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/training_step.py

bench-data: $(VENV)/.installed-test
	$(BIN)/python benchmarks/tokenization.py
	$(BIN)/python benchmarks/decontamination.py
	$(BIN)/python benchmarks/blend.py
	$(BIN)/python benchmarks/sft_packing.py

bench-model: $(VENV)/.installed-test
	$(BIN)/python benchmarks/recompute.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/averaging.py

reference: $(INSTALLED)
	$(BIN)/python tools/generate_reference.py
	$(BIN)/python tools/generate_fault_list.py

$(INSTALLED): setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
