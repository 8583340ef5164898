# Every target sets up what it needs; run again, set-up costs nothing.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
UNIT := tests/unit ssray
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help venv demo test test-unit coverage check bench fuzz gpu-check ablation docs clean

help:
	@echo "make demo   generate data, train, evaluate; ends with a report to open"
	@echo "make test   all tests that continuous integration runs"
	@echo "make test-unit   those that need no Ray, server or browser, and the doctests"
	@echo "make coverage    the same, with the lines that they miss; fails under the floor"
	@echo "make check  format, lint, types, import contracts, documentation"
	@echo "make bench  slow tests and timings"
	@echo "make fuzz   read 10,000 mutated images and 2,000 archives under limits of time and memory"
	@echo "make ablation DATA=ROOT   what parts and defaults contribute; hours, resumable"
	@echo "make gpu-check   compare training and scoring on a GPU with the CPU"
	@echo "make docs   build the documentation into site/"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(VENV)/bin/ssray demo --out demo-out

test: $(STAMP)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-unit: $(STAMP)
	$(PY) -m pytest -n 2 --dist loadfile $(UNIT)

coverage: $(STAMP)
	$(PY) -m pytest -n 2 --dist loadfile $(UNIT) --cov --cov-report=term

check: $(STAMP)
	$(VENV)/bin/ruff format --check ssray jobs benchmarks tests conftest.py
	$(VENV)/bin/ruff check ssray jobs benchmarks tests conftest.py
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mkdocs build --strict --quiet

docs: $(STAMP)
	$(VENV)/bin/mkdocs build --strict

bench: $(STAMP)
	$(PY) -m pytest -m slow -s

fuzz: $(STAMP)
	$(PY) -m tests.fuzz --archives 2000 --images 10000

gpu-check: $(STAMP)
	$(PY) benchmarks/gpu_check.py

ablation: $(STAMP)
	$(PY) benchmarks/ablation.py --data "$(DATA)"
	$(PY) benchmarks/ablation_defaults.py --data "$(DATA)"

clean:
	rm -rf $(VENV) site demo-out .mypy_cache .ruff_cache .pytest_cache
