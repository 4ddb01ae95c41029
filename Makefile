# Every target sets up what it needs, in virtual environments of this folder, with uv where
# it is installed and with venv and pip where it is not (`make UV= ...` leaves uv aside).

.DEFAULT_GOAL := help

PYTHON ?= python3
TEST_FILE ?= tests/unit_tests
INTEGRATION_TEST_FILE ?= tests/integration_tests
OPENAI_TEST_FILES ?= tests/unit_tests/llms tests/unit_tests/router tests/unit_tests/errors
PYTEST_EXTRA ?=
JOBS ?= 2
# Unit tests wait for servers for a third of their time.
UNIT_JOBS ?= 3
SCALE ?= 1
CALLS ?= 2000
SPEED ?= 1
ifeq ($(origin UV),undefined)
UV := $(shell command -v uv 2>/dev/null)
endif

VENV := .venv/bin
TESTED := constraints/tested.txt
MINIMUM := constraints/minimum.txt
LITELLM := constraints/litellm.txt
INTEGRATIONS := constraints/integrations.txt
RAY := constraints/ray.txt
DOCS := constraints/docs.txt
PYTEST := python -m pytest
PROJECT := .[cli,otel,prices,redis,testing,tiktoken]

##@ Everyday

.PHONY: help
help: ## print all targets (default)
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z_]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: .venv/installed ## make .venv with everything a developer needs

.PHONY: format
format: .venv/installed ## apply ruff's safe fixes, then its format
	$(VENV)/ruff check --fix-only .
	$(VENV)/ruff format .

.PHONY: demo
demo: .venv/installed ## real LangChain calls through real HTTP faults, on loopback, no key
	$(VENV)/retryrouter demo

##@ Checks

.PHONY: check
check: lint lint_imports type test ## all that a change must pass before it is proposed

.PHONY: lint
lint: .venv/installed ## ruff, rules and format
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

.PHONY: lint_imports
lint_imports: .venv/installed ## the import layers
	$(VENV)/lint-imports --no-logo

.PHONY: type
type: .venv/installed ## mypy, strict, over the package and the tests
	$(VENV)/mypy

.PHONY: test
test: .venv/installed ## unit tests (TEST_FILE=..., PYTEST_EXTRA=..., UNIT_JOBS=0: one process)
	$(VENV)/$(PYTEST) -n $(UNIT_JOBS) $(TEST_FILE) $(PYTEST_EXTRA)

# The longest files come first; each has servers of its own, which its tests share.
.PHONY: integration_tests
integration_tests: .venv/installed .venvs/litellm/installed .venvs/ray/installed ## tests against real servers, on loopback, no key
	$(VENV)/$(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder $(INTEGRATION_TEST_FILE) $(PYTEST_EXTRA)

.PHONY: integrations
integrations: .venvs/integrations/installed ## LangChain's integrations x faults; rewrites docs/integrations.md (10 minutes)
	.venvs/integrations/bin/$(PYTEST) -n $(JOBS) tests/integrations --write-page $(PYTEST_EXTRA)

.PHONY: integrations_short
integrations_short: .venv/installed ## the same with the packages that .venv has
	$(VENV)/$(PYTEST) -n $(JOBS) tests/integrations $(PYTEST_EXTRA)

.PHONY: promises
promises: .venv/installed ## the promises of docs/promises.md, in short
	$(VENV)/$(PYTEST) -n $(JOBS) tests/promises $(PYTEST_EXTRA)

.PHONY: docs
docs: .venvs/docs/installed ## the docs site, in site/; warnings and dead links are errors
	.venvs/docs/bin/zensical build --strict --clean

.PHONY: serve_docs
serve_docs: .venvs/docs/installed ## the same at localhost:8000, rebuilt when a page changes
	.venvs/docs/bin/zensical serve

.PHONY: live_tests
live_tests: .venv/installed ## tests against a real gateway; needs GPT_ROUTER_API_KEY
	$(VENV)/$(PYTEST) $(INTEGRATION_TEST_FILE) -m live --force-enable-socket $(PYTEST_EXTRA)

.PHONY: test_min
test_min: .venvs/minimum/installed ## unit tests on the lowest allowed direct dependencies
	.venvs/minimum/bin/$(PYTEST) -n $(UNIT_JOBS) $(TEST_FILE) $(PYTEST_EXTRA)

.PHONY: test_openai_majors
test_openai_majors: test_openai_2 test_openai_3 ## tests of what uses openai, on its newest 2 and 3

test_openai_%: .venvs/openai-%/installed
	.venvs/openai-$*/bin/$(PYTEST) -n $(UNIT_JOBS) $(OPENAI_TEST_FILES) $(PYTEST_EXTRA)

.PHONY: coverage
coverage: .venv/installed ## unit tests with branch coverage
	$(VENV)/$(PYTEST) -n $(UNIT_JOBS) $(TEST_FILE) --cov --cov-report=term $(PYTEST_EXTRA)

##@ Now and then

.PHONY: bench
bench: .venvs/bench/installed ## speed beside the peers, 10 minutes; rewrites docs/performance.md (SCALE=0.1: in short)
	.venvs/bench/bin/python -m benchmarks.speed --scale $(SCALE)

.PHONY: answer_bench
answer_bench: .venvs/bench/installed ## share of calls answered under mixed faults, beside the peers (CALLS=2000)
	.venvs/bench/bin/python -m benchmarks.answers --calls $(CALLS)

.PHONY: pool_bench
pool_bench: .venvs/bench/installed ## key pools and affinity, beside the peers; rewrites docs/routing.md
	.venvs/bench/bin/python -m benchmarks.pools --write

.PHONY: fleet_bench
fleet_bench: .venvs/bench/installed ## many processes and a sick provider, beside LiteLLM
	.venvs/bench/bin/python -m benchmarks.fleet

.PHONY: failover_bench
failover_bench: .venvs/bench/installed ## sixteen faults, three routers; rewrites docs/failover.md (SPEED=10: in short)
	.venvs/bench/bin/python -m benchmarks.failover --speed $(SPEED)

.PHONY: prove
prove: .venv/installed ## the promises in full; prints the figures of docs/promises.md
	$(VENV)/$(PYTEST) -n $(JOBS) tests/promises --long $(PYTEST_EXTRA)

.PHONY: audit
audit: .venvs/audit/installed ## known holes in what is tested with, and in the floors
	.venvs/audit/bin/pip-audit --disable-pip --no-deps -r $(TESTED)
	.venvs/audit/bin/pip-audit --disable-pip --no-deps -r $(MINIMUM)

.PHONY: build
build: .venv/installed ## sdist and wheel, in dist/
	rm -rf dist
	$(VENV)/python -m build $(if $(UV),--installer uv)

# The tests start hundreds of processes, which need not all compile the package and the tests.
unexport PYTHONDONTWRITEBYTECODE

# --- Environments --------------------------------------------------------------------------
# An environment is thrown away and made anew when what it is made from changes, so nothing
# that was once a dependency stays behind. `installed` comes last: an interrupted installation
# is begun again.

# uv does not read pip's variables; a machine that has set them means them for uv as well.
ifneq ($(UV),)
ifneq ($(PIP_INDEX_URL),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifneq ($(PIP_EXTRA_INDEX_URL),)
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
endif
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifneq ($(PIP_CERT),)
export SSL_CERT_FILE ?= $(PIP_CERT)
endif
endif

SOURCES := pyproject.toml langchain_retryrouter/__init__.py .venvs/interpreter

# $(call make_venv,FOLDER,WHAT TO INSTALL). pip before 25.1 knows no --group.
ifneq ($(UV),)
define make_venv
	rm -rf $(1)
	"$(UV)" venv --quiet --python "$$(head -n 1 .venvs/interpreter)" $(1)
	"$(UV)" pip install --quiet --python $(1)/bin/python $(2)
	@touch $(1)/installed
endef
else
define make_venv
	rm -rf $(1)
	"$$(head -n 1 .venvs/interpreter)" -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(1)/bin/python -m pip install --quiet $(2)
	@touch $(1)/installed
endef
endif

# What .ci/run needs; make's --jobs makes them side by side.
.PHONY: environments
environments: .venv/installed $(patsubst %,.venvs/%/installed,docs litellm ray minimum openai-2)

.venv/installed: $(SOURCES) $(TESTED)
	$(call make_venv,.venv,--constraint $(TESTED) --group dev --editable '$(PROJECT)')

.venvs/minimum/installed: $(SOURCES) .venvs/minimum.txt
	$(call make_venv,.venvs/minimum,--constraint .venvs/minimum.txt --group test --editable '$(PROJECT)')

.venvs/openai-%/installed: $(SOURCES) .venvs/openai-%.txt
	$(call make_venv,.venvs/openai-$*,--constraint .venvs/openai-$*.txt --group test --editable '$(PROJECT)')

# For examples/batch_on_ray.py, which an integration test runs.
.venvs/ray/installed: $(SOURCES) $(RAY)
	$(call make_venv,.venvs/ray,--constraint $(RAY) --group ray --editable '.[redis]')

# LiteLLM's proxy, a server for the integration tests; the package itself is not in there.
.venvs/litellm/installed: pyproject.toml .venvs/interpreter $(LITELLM)
	$(call make_venv,.venvs/litellm,--constraint $(LITELLM) --group litellm_proxy)

.venvs/integrations/installed: $(SOURCES) $(INTEGRATIONS)
	$(call make_venv,.venvs/integrations,--constraint $(INTEGRATIONS) --group integrations --editable '$(PROJECT)')

# The API pages are read from the sources, so the package itself is not in there.
.venvs/docs/installed: pyproject.toml .venvs/interpreter $(DOCS)
	$(call make_venv,.venvs/docs,--constraint $(DOCS) --group docs)

.venvs/bench/installed: $(SOURCES)
	$(call make_venv,.venvs/bench,--group bench --editable '$(PROJECT)')

.venvs/audit/installed: .venvs/interpreter
	$(call make_venv,.venvs/audit,pip-audit)

.PRECIOUS: .venvs/openai-%.txt .venvs/openai-%/installed

# The lowest direct versions; for all else, what was tested.
.venvs/minimum.txt: $(MINIMUM) $(TESTED) | .venvs/interpreter
	awk -F'[=<>]' 'NR == FNR { low[$$1] } NR == FNR || !($$1 in low)' $(MINIMUM) $(TESTED) > $@

.venvs/openai-%.txt: $(TESTED) | .venvs/interpreter
	{ echo 'openai==$*.*'; grep -v '^openai==' $(TESTED); } > $@

# The interpreter to build with, rewritten only when it is another one: `make PYTHON=python3.13
# test` makes new environments. The base one, since an active .venv must not be built with itself.
.venvs/interpreter: FORCE
	@mkdir -p .venvs
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "'$(PYTHON)' is not Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; print(sys._base_executable, sys.version, sep="\n")' > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

.PHONY: FORCE
FORCE:
