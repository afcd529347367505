# The commands for users, developers and CI. `make` alone lists the targets.
#
# PYTHON=python3.12      the interpreter for the virtual environments (3.10 or newer)
# ARGS="--port 9091"     passed to `gner-backend serve` or to pytest
# WORKERS=2              how many processes run the tests: by default one per core, and four at most
# TORCH_PIP_ARGS="..."   passed to `pip install torch`. By default pip on Linux installs the CUDA build (several GB;
#                        it also runs without a GPU). For the small CPU build, pass the --index-url option that
#                        PyTorch's install page shows for "CPU". On macOS there is only one build.

PYTHON ?= python3
VENV := .venv
LABEL_STUDIO_VENV := .venv-labelstudio
BIN := $(VENV)/bin
WORKERS ?= logical
PARALLEL_PYTEST = $(BIN)/pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal

# These variables would make other packages visible in the virtual environments.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install serve test check lint format browser clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## set up .venv with the pinned dependencies and the backend

serve: install ## start the backend on :9090 (Ctrl-C stops it); ARGS="--port 9091 ..." sets options
	@$(BIN)/gner-backend serve $(ARGS)

# The end-to-end tests run alone: they start servers with time limits. When ARGS selects tests of one part only,
# pytest finds nothing to do in the other part and exits with 5.
test: export E2E_REQUIRED := 1
test: $(VENV)/.installed-dev $(LABEL_STUDIO_VENV)/.installed browser ## run every test, with a real Label Studio and browser
	@$(PARALLEL_PYTEST) $(ARGS) -m "not e2e"; first=$$?; \
	[ $$first = 0 ] || [ $$first = 5 ] || exit $$first; \
	$(BIN)/pytest $(ARGS) -m e2e; second=$$?; \
	[ $$second = 5 ] && exit $$first || exit $$second

check: lint ## formatting, lint, types and the fast tests
	$(PARALLEL_PYTEST) $(ARGS) -m "not e2e and not slow"

lint: $(VENV)/.installed-dev ## formatting, lint and types alone
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## rewrite the code the way `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the virtual environments, caches and test artifacts (not your MODEL_DIR)
	rm -rf $(VENV) $(LABEL_STUDIO_VENV) artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find backend tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp file is touched last, so that an interrupted install is repeated. label-studio-ml is installed without its
# dependencies: it pins Flask 1.1 and Werkzeug 2.0, which have known vulnerabilities. pyproject.toml lists what it really
# imports.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(call make_venv,$(VENV))
	$(BIN)/pip install --quiet -c constraints.txt setuptools
	$(BIN)/pip install --quiet -c constraints.txt $(TORCH_PIP_ARGS) torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e .
	$(BIN)/pip install --quiet --no-deps label-studio-ml==1.0.9
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

$(LABEL_STUDIO_VENV)/.installed: constraints-labelstudio.txt
	$(call make_venv,$(LABEL_STUDIO_VENV))
	$(LABEL_STUDIO_VENV)/bin/pip install --quiet -c constraints-labelstudio.txt label-studio==1.23.2
	@touch $@

browser:
	@if command -v chromedriver > /dev/null && { command -v chromium || command -v google-chrome; } > /dev/null; then exit 0; fi; \
	$(call debian_packages,chromium chromium-driver) \
	{ echo 'make test needs Chromium and chromedriver on the PATH (Debian: apt-get install chromium chromium-driver)'; exit 1; }

# $(call debian_packages,NAMES) || FALLBACK: installs Debian packages if we are root on Debian, else runs FALLBACK
debian_packages = { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1); } ||

# $(call make_venv,FOLDER)
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): Python 3.10 or newer is needed (make PYTHON=python3.12 ...)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || $(call debian_packages,python3-venv) \
	{ echo '$(PYTHON) has no venv module (Debian and Ubuntu: apt-get install python3-venv)'; exit 1; }
	$(PYTHON) -m venv $(1)
endef
