# Two commands: make demo, make test. Both make .venv on first use; afterwards they take seconds to start.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check bench bench-peers clean

demo: $(VENV)/installed-demo
	$(VENV)/bin/gradfit fit examples/thermometer.csv "t_c = w*t_u + b"
	$(VENV)/bin/gradfit fit examples/thermometer.csv "t_c = w*t_u + b" --method sgd --epochs 5000 --validation 0.2 --seed 0 \
		--every 1000 --html thermometer.html --save thermometer.json

test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -n 2

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check src tests docs bench
	$(VENV)/bin/ruff check src tests docs bench
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

# Ratios beside torch, C, scipy, and what of JAX, lmfit, optimistix, xarray `make bench-peers` has installed.
bench: $(VENV)/installed-demo
	$(VENV)/bin/python bench/run.py

bench-peers: $(VENV)/installed-demo
	$(PIP) --requirement bench/requirements.txt

$(VENV)/installed-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[plot]"
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[dev]"
	touch $@ $(VENV)/installed-demo

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
