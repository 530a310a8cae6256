# make demo: find defects on real photos    make test: prove the numbers    make lint    make bench    make bench-peers    make clean
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint bench bench-peers format clean

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flawmap needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/flawmap demo --output demo-output

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/gaussian.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/flawmap benchmark speed
	$(BIN)/python benchmarks/trained.py
	$(BIN)/python benchmarks/kill.py

bench-peers: $(INSTALLED)
	test -x .peers/anomavision/bin/python || $(PYTHON) -m venv .peers/anomavision
	.peers/anomavision/bin/python -m pip install --quiet 'anomavision[cpu]' openvino onnx onnxscript
	test -x .peers/anomalib/bin/python || $(PYTHON) -m venv .peers/anomalib
	.peers/anomalib/bin/python -m pip install --quiet 'anomalib[cpu]' openvino onnx onnxscript
	$(BIN)/flawmap benchmark speed --peers .peers

clean:
	rm -rf $(VENV) .peers demo-output benchmark-output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build
	find . -name __pycache__ -prune -exec rm -rf {} +
