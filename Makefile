# Needs Python 3.11 or newer and make; everything else goes into .venv, nothing into the system.
#
#   make demo     run a dozen sample flows on a stack of its own
#   make test     run the tests (make test ARGS="tests/unit -k ledger")
#   make cover    prove that the decisions are tested to the last branch
#   make compatibility  run some of the tests with other releases of Prefect
#   make e2e      run the tests with containers; needs a Docker engine
#   make bench    measure everything in docs/benchmarks.md; needs PostgreSQL, and an hour or two
#   make lock     choose anew what the image installs
#   make check    lint, check the format and the types
#   make clean    remove .venv and what the tools have left

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# So that the first flow run does not have to compile Prefect.
export UV_COMPILE_BYTECODE ?= 1

.PHONY: demo test compatibility e2e bench lock cover check venv clean

demo: venv
	$(BIN)/dispatcher demo $(ARGS)

# The tests mostly wait, so three at a time; those that count on a quiet machine come after.
test: venv
ifdef ARGS
	$(BIN)/pytest $(ARGS)
else
	$(BIN)/pytest -n 3 --dist loadfile --ignore tests/chaos --ignore tests/e2e
	$(BIN)/pytest tests/chaos
endif

# With the oldest and the newest Prefect, each in an environment of its own.
compatibility: venv
	$(BIN)/python -m tests.compatibility $(ARGS)

# With E2E_IMAGES=--local, for a machine that reaches no registry of images.
e2e: venv
	tests/e2e/images.sh $(E2E_IMAGES)
	docker build --quiet --tag celery-flow-dispatcher .
	$(BIN)/pytest -n 2 --dist loadfile tests/e2e $(ARGS)

bench: venv
	$(BIN)/uv pip install --quiet --group benchmarks
	for each in end_to_end dispatch burst scale cancel_recovery report; do \
	  env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.$$each || exit; \
	done

lock: venv
	echo '# What the image installs, made by "make lock"; the ranges are in pyproject.toml.' > requirements.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --extra prefect --extra flower --extra docker pyproject.toml >> requirements.lock

# What decides must be tested to the last branch.
cover: venv
	$(BIN)/coverage run -m pytest -q tests/unit/executors/test_templates.py tests/unit/planning
	$(BIN)/coverage report --include='dispatcher/planning/*,executors/templates.py' --fail-under=100

check: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing everything into $(VENV), about a minute; nothing outside it changes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable . --group dev
	@touch $(INSTALLED)

clean:
	rm -rf $(VENV) .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
