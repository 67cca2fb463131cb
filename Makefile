# Two commands matter: `make demo` and `make test`. Both build what they need in .venv, from the declared dependencies.
# Another interpreter (3.11 or newer): make demo PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help demo test test-all lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    install, then learn a denoiser from photographs and write report/index.html"
	@echo "make test    install what tests need, then run linter, type checker and a diagonal of every test grid"
	@echo "make test-all  the same with the whole test suite"
	@echo "make lint    linter and type checker"
	@echo "make clean   remove .venv, caches and build products; reports stay"

demo: $(VENV)/.installed
	$(BIN)/learnreg demo
	@echo "The report lies in $(CURDIR)/report/index.html"

# A process per core, each with one thread: small tensors gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: lint
	$(PYTEST) --fast

test-all: lint
	$(PYTEST)

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

clean:
	rm -rf "$(VENV)" build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is touched only after its installation has succeeded, so an interrupted one is simply done again.
# The installation is editable: sources may change without another one, pyproject.toml may not.
$(VENV)/.installed: pyproject.toml
	$(make-venv)
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml
	$(make-venv)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	@touch $(VENV)/.installed $@

define make-venv
@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("learnreg needs Python >= 3.11, but %s is %d.%d. \
Name a newer one: make PYTHON=python3.12" % ((sys.executable,) + sys.version_info[:2]))'
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
endef
