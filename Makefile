# The two commands of a new checkout: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
DEMO := $(VENV)/.demo
# Most of what is installed is never imported: bytecode is written on import, and kept for the next process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint docs clean

$(SETUP): EXTRAS := dev
$(DEMO): EXTRAS := lightgbm,serve,ab
$(SETUP) $(DEMO): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "adagrpo needs Python 3.11 or newer; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[$(EXTRAS)]"
	touch $@

demo: $(if $(wildcard $(SETUP)),$(SETUP),$(DEMO))
	$(BIN)/adagrpo demo --out runs/demo

# Tests sync and delete thousands of small files: in memory where there are 4 GB of it, since disks take milliseconds.
TMP := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4000000 && system("test -w /dev/shm") == 0 {print "TMPDIR=/dev/shm"}')
# A file's tests go to one process, so that what they share is made once; a process has one thread of a library.
PYTEST := OMP_NUM_THREADS=1 $(TMP) $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# SLOW=1, as in CI: also runs that are killed, repetitions by the hundred, whole studies.
test: $(SETUP)
	$(PYTEST) $(if $(SLOW),,-m "not slow")

lint: $(SETUP)
	$(BIN)/ruff check src tests benchmarks research examples docs
	$(BIN)/ruff format --check src tests benchmarks research examples docs
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(SETUP)
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) runs docs/_build
